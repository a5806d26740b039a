"""Converts RLDS data once into LeRobot v3.0, so that training knows one format only."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.layout import DatasetSchema, EpisodeRecord, Feature
from training.data.reader import read_json
from training.data.rlds import RldsFolder, StepFeature
from training.data.schema import ACTION_KEY, STATE_KEY
from training.data.selection import IMAGE_PREFIX
from training.data.writer import LeRobotWriter
from training.files import replace_atomically
from vla_align_ros.contract.images import decode_compressed
from vla_align_ros.contract.spec import ACTION_DIM, ACTION_NAMES
from vla_align_ros.errors import ContractError, DataError

CONVERSION_PATH = "meta/conversion.json"
_IMAGES = ("observation/image", "observation/image_0", "observation/rgb")
_STATES = ("observation/state", "observation/proprio")
_WORDS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
)
_NO_DELTAS = re.compile(r"joint|vel|absolute")  # in a path: seven values that are no deltas


@dataclass(frozen=True, slots=True)
class RldsMapping:
    """Which features of a step become what; paths below the step, as features.json nests them.

    images: each becomes a camera of its last name. action, state: joined end to end, in order;
    state empty for none. instruction: the text; the episode's first is its task. state_names: of
    the state's values, by which a robot supplies them; empty numbers them.
    """

    images: tuple[str, ...]
    action: tuple[str, ...]
    state: tuple[str, ...]
    instruction: str
    state_names: tuple[str, ...] = ()


def find_mapping(
    folder: RldsFolder,
    *,
    images: Sequence[str] = (),
    action: Sequence[str] = (),
    state: Sequence[str] = (),
    instruction: str | None = None,
    state_names: Sequence[str] = (),
) -> RldsMapping:
    """Fill in what is not named by the usual names; DataError lists what there is.

    It also refuses two pictures of one last name, and names that are not as many as the state.
    """
    pictures = [path for path, feature in folder.features.items() if feature.kind == "image"]
    common = [path for path in _IMAGES if path in pictures][:1]
    only = pictures if len(pictures) == 1 else []
    chosen = RldsMapping(
        tuple(images) or tuple(common or only),
        tuple(action) or ("action",),
        tuple(state) or tuple(path for path in _STATES if path in folder.features)[:1],
        instruction or next((path for path in _WORDS if path in folder.features), ""),
        tuple(state_names),
    )
    for option, paths, kind in (
        ("--image", chosen.images, "image"),
        ("--action", chosen.action, "tensor"),
        ("--state", chosen.state, "tensor"),
        ("--instruction", (chosen.instruction,), "text"),
    ):
        there = sorted(p for p, feature in folder.features.items() if _kind(feature) == kind)
        if (not paths and option == "--image") or not set(paths) <= set(there):
            raise DataError(
                f"{folder.name} has no such feature for {option}",
                got=", ".join(paths) or "none",
                expected="one of " + (", ".join(there) or f"kind {kind}, but there is none"),
                fix=f"pass {option} PATH",
            )
    _check_names(folder, chosen)
    return chosen


def _kind(feature: StepFeature) -> str:
    """The feature's kind; texts are also kept as tensors of strings."""
    return "text" if feature.dtype in ("string", "object") else feature.kind


def _check_names(folder: RldsFolder, mapping: RldsMapping) -> None:
    cameras = [_camera_key(path) for path in mapping.images]
    if len(set(cameras)) != len(cameras):
        raise DataError(
            f"Two pictures of {folder.name} would be one camera",
            got=", ".join(mapping.images),
            expected="different last names",
            fix="leave one out of --image",
        )
    size = sum(int(np.prod(folder.features[path].shape)) for path in mapping.state)
    if mapping.state_names and len(set(mapping.state_names)) != size:
        raise DataError(
            f"The state of {folder.name} has another number of values than names",
            got=", ".join(mapping.state_names),
            expected=f"{size} different names, one for each value",
            fix="correct --state-names, or --state",
        )


def convert_rlds(
    folder: RldsFolder,
    out: str | Path,
    mapping: RldsMapping,
    *,
    fps: int,
    episodes_per_file: int = 20,
    progress: bool = True,
) -> int:
    """Write every episode of `folder` to the dataset `out`; return how many there are in it.

    RLDS does not say at which rate (Hz) it was recorded: `fps` does. An interrupted conversion
    goes on; one with other settings in the same folder is refused.
    """
    from tqdm import tqdm

    out = Path(out)
    origin = {"source": folder.name, "version": folder.path.name, "split": folder.split}
    _hold_settings(out, {**origin, "fps": fps, **asdict(mapping)})
    first = next(folder.episodes(), None)
    if first is None:
        raise DataError(
            f"{folder.name} is empty", got="no episode", expected="at least one", fix="try --split"
        )
    schema = _make_schema(folder, mapping, make_record(first, mapping, "episode 0"), fps)
    writer = LeRobotWriter(out, schema, episodes_per_file=episodes_per_file)
    done = writer.num_episodes
    bar = tqdm(total=folder.episode_count, initial=done, unit="episode", disable=not progress)
    with bar:
        try:
            for number, episode in enumerate(folder.episodes(done), done):
                writer.append(make_record(episode, mapping, f"episode {number}"))
                bar.update()
        finally:
            writer.flush()
    return writer.num_episodes


def make_record(episode: dict[str, Any], mapping: RldsMapping, what: str) -> EpisodeRecord:
    """One episode as it is written; DataError names `what` if a feature of it cannot be read."""
    for path in (*mapping.images, *mapping.action, *mapping.state):
        values = episode.get(path)
        packed = isinstance(values, list)  # bytes come as lists
        got = ""
        if values is None or not len(values):
            got = f"no {path}"
        elif packed and path not in mapping.images:
            got = f"{path} in bytes, as TFDS compresses tensors"
        elif not packed and path in mapping.images:
            got = f"plain numbers in {path}"
        if got:
            raise DataError(
                f"A feature of {what} cannot be read",
                got=got,
                expected="PNG or JPEG for pictures, plain numbers for the others, in every step",
                fix="choose another feature, or write the data again with encoding none",
            )
    images = {}
    for path in mapping.images:
        try:
            frames = [decode_compressed(content) for content in episode[path]]
        except ContractError as error:
            raise DataError(
                f"A picture of {what} cannot be decoded",
                got=str(error.got),
                expected=f"PNG or JPEG in {path}",
                fix="download the data again",
            ) from error
        images[_camera_key(path)] = np.stack(frames)
    columns = {ACTION_KEY: _join(episode, mapping.action)}
    if mapping.state:
        columns[STATE_KEY] = _join(episode, mapping.state)
    lengths = {len(values) for values in (*images.values(), *columns.values())}
    words = episode.get(mapping.instruction) or [b""]
    if len(lengths) != 1 or not isinstance(words, list):
        raise DataError(
            f"The features of {what} differ in length",
            got=str(sorted(lengths)),
            expected="one value of each a step",
            fix="choose other features by --image, --action, --state, --instruction",
        )
    return EpisodeRecord(words[0].decode("utf-8", "replace").strip(), images, columns)


def _join(episode: dict[str, Any], paths: Sequence[str]) -> np.ndarray:
    parts = [np.asarray(episode[path], dtype=np.float32) for path in paths]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _camera_key(path: str) -> str:
    return IMAGE_PREFIX + path.rpartition("/")[2]


def _make_schema(
    folder: RldsFolder, mapping: RldsMapping, record: EpisodeRecord, fps: int
) -> DatasetSchema:
    features = {
        key: Feature("video", frames.shape[1:], ("height", "width", "channels"))
        for key, frames in record.images.items()
    }
    for key, paths in ((ACTION_KEY, mapping.action), (STATE_KEY, mapping.state)):
        if key not in record.columns:
            continue
        names = tuple(
            f"{path.rpartition('/')[2]}_{number}"
            for path in paths
            for number in range(int(np.prod(folder.features[path].shape)))
        )
        if key == ACTION_KEY and len(names) == ACTION_DIM and not _NO_DELTAS.search(str(paths)):
            names = ACTION_NAMES
        if key == STATE_KEY and mapping.state_names:
            names = mapping.state_names
        features[key] = Feature("float32", record.columns[key].shape[1:], names)
    return DatasetSchema(fps=fps, features=features, robot_type=folder.name)


def _hold_settings(out: Path, wanted: dict[str, Any]) -> None:
    """Write meta/conversion.json, or refuse to continue a conversion made otherwise."""
    path = out / CONVERSION_PATH
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    kept = read_json(path)
    # Conversions of before these were held: they could be of any version and split.
    older = {"version": wanted["version"], "split": wanted["split"], "state_names": []}
    found = {**older, **kept}
    if found != wanted:
        differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise DataError(
            f"{out} was converted with other settings",
            got=", ".join(f"{k}={wanted.get(k)}" for k in differing),
            expected=", ".join(f"{k}={found.get(k)}" for k in differing),
            fix="pass the same settings, or another --out",
        )
    if unknown := [key for key in ("version", "split") if key not in kept]:
        print(
            f"{path} does not tell the {' and '.join(unknown)} of what is there:"
            f" taken for {', '.join(wanted[key] for key in unknown)}",
            file=sys.stderr,
        )
