"""The tables of one data set as arrays: what a policy reads, does, and which frames count."""

from __future__ import annotations

import warnings

import numpy as np

from training.data.chunks import BoolArray, ChunkCutter, Float32Array, Int64Array, moves
from training.data.config import DataConfig
from training.data.schema import ENVIRONMENT_KEY, SEED_NOTE
from training.data.sources import Source
from vla_align_ros.contract.actions import GRIPPER_CONVENTIONS
from vla_align_ros.errors import DataError

_GRIPPER_SLACK = 0.05  # of the fraction open: noise of a measured gripper
_GRIPPER_SPAN = 0.5  # less is a gripper that moves, but never from shut to open


class SourceRows:
    """One data set's rows (n frames), in order.

    Attributes: state (n, D) float32, D 0 without proprioception; environment_state (n, E) float32,
    E 0 without; frame_index, episode, task (n,) int64 within the data set; moving (n,) bool, False
    for frames that are left out; episode_seed (episodes,) int64, the scene's seed or the episode's
    number.
    """

    def __init__(self, source: Source, config: DataConfig) -> None:
        """Read the columns.

        DataError if an action or a state is not finite, or a gripper's value lies outside of what
        `data.gripper` says.
        """
        self.source = source
        reader, chosen = source.reader, source.selection
        environment = ENVIRONMENT_KEY in reader.schema.features
        action = chosen.chunk_key or chosen.action_key
        wanted = [action, "frame_index", "episode_index", "task_index"]
        wanted += [chosen.state_key] if chosen.state_key else []
        wanted += [ENVIRONMENT_KEY] if environment else []
        columns = reader.columns(wanted)
        count = len(columns["frame_index"])
        recorded = columns[action]
        if not chosen.chunk_key:
            recorded = recorded.reshape(count, -1)
        empty = np.zeros((count, 0), dtype=np.float32)
        self.state = empty
        if chosen.state_key:
            self.state = columns[chosen.state_key].reshape(count, -1).astype(np.float32)
        self.environment_state = empty
        if environment:
            self.environment_state = columns[ENVIRONMENT_KEY].reshape(count, -1).astype(np.float32)
        self.frame_index: Int64Array = columns["frame_index"].astype(np.int64)
        self.episode: Int64Array = columns["episode_index"].astype(np.int64)
        self.task: Int64Array = columns["task_index"].astype(np.int64)
        if self.task.min() < 0 or self.task.max() >= len(reader.tasks):
            raise DataError(
                f"The tasks of {reader.root} are incomplete",
                got=f"{len(reader.tasks)} texts, task {int(self.task.max())}",
                expected="a text for every task index in the tables",
                fix="download or collect the data set again",
            )
        self.episode_seed = _episode_seeds(source)
        _check_numbers(source, self.episode, action, recorded)
        _check_numbers(source, self.episode, str(chosen.state_key), self.state)
        _check_state(source, self.state)
        self._ready = chosen.read_actions(recorded) if chosen.chunk_key else None
        actions = self._ready[:, 0] if self._ready is not None else chosen.read_actions(recorded)
        _check_gripper(source, actions if self._ready is None else self._ready)
        self.moving: BoolArray = np.ones(count, dtype=bool)
        if config.drop_near_zero:
            self.moving = moves(actions, self.episode, config.near_zero_m, config.near_zero_rad)
        self._actions = actions
        self._cutter = ChunkCutter(actions, self.episode, self.moving)

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def horizon(self) -> int | None:
        """Steps of the ready-made chunks; None where they are cut, to any length."""
        return None if self._ready is None else int(self._ready.shape[1])

    def chunks(self, rows: Int64Array, horizon: int) -> tuple[Float32Array, BoolArray]:
        """Chunks (B, H, 7) float32 in metres, radians and gripper fraction; is_pad (B, H) bool."""
        if self._ready is None:
            return self._cutter.cut(rows, horizon)
        return self._ready[rows, :horizon], np.zeros((len(rows), horizon), dtype=bool)

    def all_actions(self) -> Float32Array:
        """Every action that training can show, (M, 7): for statistics."""
        if self._ready is None:
            return self._actions[self.moving]
        ready: Float32Array = self._ready[self.moving].reshape(-1, self._ready.shape[-1])
        return ready


def _episode_seeds(source: Source) -> Int64Array:
    rows = source.reader.episodes
    name = SEED_NOTE if SEED_NOTE in rows.column_names else "episode_index"
    seeds: Int64Array = rows[name].to_numpy().astype(np.int64)
    return seeds


def _check_numbers(source: Source, episode: Int64Array, name: str, values: np.ndarray) -> None:
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(
            f"{source.reader.root} holds numbers that are not finite",
            got=f"{name} in episode {episode[row]}, and {int((~finite).sum())} frames in all",
            expected="finite numbers",
            fix="mend or leave out these episodes",
        )


def _check_gripper(source: Source, actions: np.ndarray) -> None:
    """Refuse grippers that `data.gripper` cannot mean; warn of those that hardly move."""
    fraction, meaning = actions[..., -1], source.selection.gripper
    low, high = float(fraction.min()), float(fraction.max())
    if low < -_GRIPPER_SLACK or high > 1.0 + _GRIPPER_SLACK:
        raise DataError(
            f"The grippers of {source.reader.root} are not what data.gripper says",
            got=f"{low:.3g} to {high:.3g}, read as {meaning}",
            expected="0 (shut) to 1 (open)",
            fix="--set data.gripper=... one of "
            + ", ".join(GRIPPER_CONVENTIONS)
            + f"; in a mixture --set 'data.grippers={{\"{source.reader.name}\": ...}}'",
        )
    if 0.0 < high - low < _GRIPPER_SPAN:
        warnings.warn(
            f"the grippers of {source.reader.root} go from {low:.3g} to {high:.3g} alone, read as"
            f" {meaning}, where 0 is shut and 1 open: is that what data.gripper should be?",
            stacklevel=3,
        )


def _check_state(source: Source, state: Float32Array) -> None:
    """Warn of a state's gripper that is no fraction: a robot supplies one under that name."""
    names = source.selection.state_names
    fraction = state[:, names.index("gripper")] if "gripper" in names else np.zeros(1)
    low, high = float(fraction.min()), float(fraction.max())
    if low < -_GRIPPER_SLACK or high > 1.0 + _GRIPPER_SLACK:
        warnings.warn(
            f"the state's gripper of {source.reader.root} goes from {low:.3g} to {high:.3g}, where"
            " a robot supplies 0 (shut) to 1 (open), so that the policy would read it wrongly;"
            " record it so, name it otherwise, or train without: --set model.state=null",
            stacklevel=3,
        )
