"""Finds in any LeRobot data set what a policy needs: a camera, the state, seven action values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.config import DataConfig
from training.data.layout import DatasetSchema
from training.data.schema import CHUNK_KEY
from vla_align_ros.contract.actions import gripper_to_fraction
from vla_align_ros.contract.spec import ACTION_DIM, ACTION_NAMES
from vla_align_ros.errors import DataError

IMAGE_PREFIX = "observation.images."
_AXES = tuple(enumerate(zip("xyz", ("roll", "pitch", "yaw"), strict=True)))
# Names under which recorders write end-effector deltas, by place, as `_identifier` spells them.
# Joints and velocities have seven values as well, and read as metres they would move an arm; so
# have positions (x.pos, ee.x), and motor_0 to motor_6, which converters give to values that had no
# names, say nothing.
_DELTAS = tuple(
    re.compile(pattern)
    for pattern in (
        *(
            rf"(d|d_|delta_)?{axis}|(d|d_|delta_)(pos_{axis}|{axis}_pos)"
            rf"|world_vector_({axis}|{number}|{number + 1})"
            for number, (axis, _) in _AXES
        ),
        *(
            rf"(d|d_|delta_)?({name}|r{axis}|rot_{axis})|(d|d_|delta_)({name}|r{axis})_pos"
            rf"|(axis_angle_?|rotation_delta_)({axis}|{number}|{number + 1})"
            for number, (axis, name) in _AXES
        ),
        r"(open_|close_)?grip(per)?(_[a-z]+)*",
    )
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which features of one data set are used, and how.

    camera: the feature's whole name; camera_name: as a policy calls it; height, width: px.
    state_key: None without proprioception; state_names: as a policy calls the values.
    action_columns: places of dx dy dz drx dry drz gripper in the action; gripper: its convention.
    chunk_key: feature of ready-made chunks (steps, 7), None where they are cut from the actions.
    """

    camera: str
    camera_name: str
    height: int
    width: int
    state_key: str | None
    state_names: tuple[str, ...]
    action_key: str
    action_columns: tuple[int, ...]
    chunk_key: str | None
    gripper: str

    def read_actions(self, recorded: np.ndarray) -> np.ndarray:
        """Actions (..., 7) float32, gripper 0 shut to 1 open, of recorded ones (..., A)."""
        actions = np.asarray(recorded[..., list(self.action_columns)], dtype=np.float32)
        if self.gripper != "fraction_open":
            actions[..., -1] = gripper_to_fraction(actions[..., -1], self.gripper)
        return actions


def select_features(
    schema: DatasetSchema, config: DataConfig, root: str, name: str = ""
) -> Selection:
    """Find what `config` asks for in a data set; DataError says what is missing and what there is.

    `root` names the data set in errors, `name` in `config`.
    """
    camera = find_camera(schema, config.cameras, root)
    height, width = schema.features[camera].picture_size
    state_key = config.state_key if config.state_key in schema.features else None
    chunk = schema.features.get(CHUNK_KEY)
    plain = config.action_key == "action" and not _goes_by_names(schema, config)
    has_chunks = plain and chunk is not None and chunk.shape[1:] == (ACTION_DIM,)
    return Selection(
        camera=camera,
        camera_name=_identifier(camera.removeprefix(IMAGE_PREFIX)),
        height=height,
        width=width,
        state_key=state_key,
        state_names=() if state_key is None else _state_names(schema, state_key),
        action_key=config.action_key,
        action_columns=_action_columns(schema, config, root),
        chunk_key=CHUNK_KEY if has_chunks else None,
        gripper=config.gripper_of(name),
    )


def find_camera(schema: DatasetSchema, names: Sequence[str], root: str) -> str:
    """Name of the camera's feature: the first of `names` that there is, or the only one."""
    cameras = {key.removeprefix(IMAGE_PREFIX): key for key in schema.camera_keys}
    for name in names:
        key = cameras.get(name.removeprefix(IMAGE_PREFIX))
        if key is not None:
            return key
    if not names and len(cameras) == 1:
        return next(iter(cameras.values()))
    example = next(iter(cameras), "front")
    # Another set of the mixture may have those.
    mixed = f" (in a mixture {json.dumps([*names, example])})" if names else ""
    raise DataError(
        f"{root} lacks the camera" if names or not cameras else f"{root} has several cameras",
        got=", ".join(cameras) or "no pictures",
        expected=" or ".join(names) or ("at least one" if not cameras else "the name of one"),
        fix=f"--set 'data.cameras=[\"{example}\"]'{mixed}; of `data` and `teacher`: --camera"
        f" {example}",
    )


def _action_columns(schema: DatasetSchema, config: DataConfig, root: str) -> tuple[int, ...]:
    feature = schema.features.get(config.action_key)
    if feature is None or feature.dtype in ("video", "image", "string"):
        raise DataError(
            f"{root} lacks the actions",
            got=", ".join(key for key in schema.table_keys) or "no columns",
            expected=config.action_key,
            fix="--set data.action_key=NAME",
        )
    size = int(np.prod(feature.shape))
    names = feature.names or ()
    wanted = config.action_names if _goes_by_names(schema, config) else ()
    if wanted and set(wanted) <= set(names):
        return tuple(names.index(name) for name in wanted)
    if not wanted and size == ACTION_DIM:
        _check_are_deltas(names, root)
        return tuple(range(ACTION_DIM))
    raise DataError(
        f"The actions of {root} have the wrong size",
        got=f"{size} values: {', '.join(names) or 'without names'}",
        expected=", ".join(wanted) if wanted else f"{ACTION_DIM}: {' '.join(ACTION_NAMES)}",
        fix="name the seven end-effector deltas among them by --set 'data.action_names=[...]', or"
        " convert joint actions to end-effector deltas first",
    )


def _goes_by_names(schema: DatasetSchema, config: DataConfig) -> bool:
    """Whether `config.action_names` are meant for this data set.

    In a mixture they may be another's: one of seven values without some of them is read as if none
    were asked for, unless they ask for others in another order than its own.
    """
    wanted = config.action_names
    feature = schema.features.get(config.action_key)
    if feature is None or not wanted:
        return bool(wanted)
    names = feature.names or ()
    shared = set(wanted) & set(names)
    moved = any(names.index(name) != wanted.index(name) for name in shared)
    return moved or len(shared) == len(wanted) or int(np.prod(feature.shape)) != ACTION_DIM


def _check_are_deltas(names: Sequence[str], root: str) -> None:
    """Refuse seven values that the data set itself names as something else, or in another order."""
    if len(names) != ACTION_DIM:  # seven values without names of their own
        return
    strange = [
        name
        for name, known in zip(names, _DELTAS, strict=True)
        if not known.fullmatch(_identifier(name))
    ]
    if strange:
        listed = ", ".join(f'"{name}"' for name in names)
        raise DataError(
            f"The actions of {root} do not look like end-effector deltas",
            got=", ".join(names),
            expected=f"{' '.join(ACTION_NAMES)}, or x y z roll pitch yaw gripper",
            fix="convert joint positions or velocities to end-effector deltas (metres and radians"
            " a step) first; if these are such deltas, name them in that order:"
            f" --set 'data.action_names=[{listed}]'",
        )


def _state_names(schema: DatasetSchema, key: str) -> tuple[str, ...]:
    feature = schema.features[key]
    size = int(np.prod(feature.shape))
    names = [_identifier(name) for name in feature.names or ()]
    if len(names) != size or len(set(names)) != size:
        names = [f"state_{number}" for number in range(size)]
    return tuple(names)


def _identifier(name: str) -> str:
    """A name such as "left_waist.pos" as the contract spells it: left_waist_pos."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"n_{plain}".rstrip("_")
