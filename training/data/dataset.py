"""Training batches: the very tensors that the robot's Processor makes, cut from LeRobot data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.data.frames import FrameStore
from training.data.reader import LeRobotReader
from training.data.schema import (
    ACTION_KEY,
    CHUNK_KEY,
    ENVIRONMENT_KEY,
    SEED_NOTE,
    STATE_KEY,
    VIDEO_KEY,
)
from vla_align_ros.contract.normalize import Statistics, compute_statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import DataError

if TYPE_CHECKING:
    import torch

Roots = Sequence[str | Path]


def dataset_statistics(roots: Roots, *, gripper_mask: bool = False) -> dict[str, Statistics]:
    """Statistics of "action" (over every action of every chunk) and of "state".

    `gripper_mask` True normalises the gripper too; by default it passes through as 0..1 (OpenVLA
    leaves the gripper out likewise).
    """
    readers = open_readers(roots)
    columns = _join(reader.columns([CHUNK_KEY, STATE_KEY]) for reader in readers)
    actions = columns[CHUNK_KEY].reshape(-1, columns[CHUNK_KEY].shape[-1])
    mask = np.ones(actions.shape[-1], dtype=bool)
    mask[-1] = gripper_mask
    return {
        "action": compute_statistics(actions, mask),
        "state": compute_statistics(columns[STATE_KEY]),
    }


class ActionChunkDataset:
    """One or several LeRobot datasets as arrays, ready to be cut into batches.

    Attributes (N frames over all roots, H steps a chunk):
        state: (N, D) float32, in metres and radians.
        action_chunk: (N, H, 7) float32, in metres, radians and gripper fraction.
        environment_state: (N, E) float32, simulation's truth; `environment_names` (E,).
        task_id: (N,) int64 into `tasks`. episode: (N,) int64, counted over all roots.
        readers: one a root. root_id: (N,) int64, which root a frame comes from; root_starts
            (roots + 1,) int64, where each begins. frame_index: (N,) int64 in its episode.
        episode_seed: (episodes,) int64, the scene's seed (the episode's number where unknown).
    """

    def __init__(
        self,
        roots: Roots,
        processor: Processor,
        *,
        validation_fraction: float = 0.05,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        """Load all tables, decode the videos (once, cached) and encode what can be in advance."""
        self.processor = processor
        self.readers = open_readers(roots)
        columns = _join(
            reader.columns([STATE_KEY, ENVIRONMENT_KEY, CHUNK_KEY, "frame_index", "episode_index"])
            for reader in self.readers
        )
        self.state = columns[STATE_KEY]
        self.environment_state = columns[ENVIRONMENT_KEY]
        self.action_chunk = columns[CHUNK_KEY]
        self.frame_index = columns["frame_index"]
        self.environment_names = self.readers[0].schema.features[ENVIRONMENT_KEY].names or ()
        self._check_fits_processor()
        frame_counts = [len(reader) for reader in self.readers]
        episode_counts = [reader.episodes.num_rows for reader in self.readers]
        self.root_starts = np.cumsum([0, *frame_counts])
        self.root_id = np.repeat(np.arange(len(self.readers)), frame_counts)
        first_episode = np.cumsum([0, *episode_counts])[:-1]
        self.episode = columns["episode_index"] + np.repeat(first_episode, frame_counts)
        self.episode_seed = np.concatenate([_episode_seeds(reader) for reader in self.readers])
        self.tasks, self.task_id = self._number_tasks()
        self._stores = [
            FrameStore(
                reader, VIDEO_KEY, processor.image_transform, cache_dir=cache_dir, progress=progress
            )
            for reader in self.readers
        ]
        self._encode(validation_fraction)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        return self.processor.image_transform.size

    @property
    def fingerprint(self) -> str:
        """sha256 over the contents of all roots, in order: names the data in a run's provenance."""
        parts = "".join(reader.content_hash() for reader in self.readers)
        return hashlib.sha256(parts.encode()).hexdigest()

    def indices(self, split: str) -> np.ndarray:
        """Frames (n,) of "train" or "val"; a scene's frames are all in one of them."""
        if split not in ("train", "val"):
            raise DataError(
                "No such split",
                got=split,
                expected="train or val",
                fix="pass one of these names",
            )
        return np.flatnonzero(self._is_validation[self.episode] == (split == "val"))

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Frames (B, S, S, 3) uint8 RGB at the model's size."""
        wanted = np.asarray(indices, dtype=np.int64)
        output = np.empty((len(wanted), self.image_size, self.image_size, 3), dtype=np.uint8)
        for number, store in enumerate(self._stores):
            here = np.flatnonzero(self.root_id[wanted] == number)
            if len(here):
                output[here] = store.frames[wanted[here] - self.root_starts[number]]
        return output

    def camera_pictures(self, indices: np.ndarray) -> np.ndarray:
        """The same frames before any resizing, (B, H, W, 3) uint8 RGB; decodes whole videos."""
        wanted = np.asarray(indices, dtype=np.int64)
        parts = [
            reader.pictures(VIDEO_KEY, wanted[self.root_id[wanted] == number] - start)
            for number, (reader, start) in enumerate(
                zip(self.readers, self.root_starts[:-1], strict=True)
            )
        ]
        order = np.argsort(self.root_id[wanted], kind="stable")
        output = np.empty((len(wanted), *parts[0].shape[1:]), dtype=np.uint8)
        output[order] = np.concatenate(parts)
        return output

    def batch(self, indices: np.ndarray, *, pictures: bool = True) -> dict[str, torch.Tensor]:
        """Model inputs and targets of B frames, as `Processor.prepare` makes them.

        Without `pictures` (features come from a cache) pixel_values and images are left out.

        pixel_values (B, C, S, S) float32 normalised; input_ids and attention_mask (B, T) int64;
        state (B, D) float32 normalised (if the policy has one); actions (B, H, 7) float32
        normalised; environment_state (B, E) float32 in metres and radians; images (B, S, S, 3)
        uint8 RGB for a teacher with another normalisation; index (B,) int64.
        """
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        tasks = self.task_id[indices]
        arrays = {
            "input_ids": self._input_ids[tasks],
            "attention_mask": self._attention_mask[tasks],
            "actions": self._actions[indices],
            "environment_state": self.environment_state[indices],
            "index": indices,
        }
        if pictures:
            arrays["images"] = self.images(indices)
            arrays["pixel_values"] = self.processor.image_transform.normalize(arrays["images"])
        if self._states is not None:
            arrays["state"] = self._states[indices]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _check_fits_processor(self) -> None:
        spec = self.processor.spec
        state_names = self.readers[0].schema.features[STATE_KEY].names
        horizon = self.action_chunk.shape[1]
        wanted = None if spec.state is None else tuple(spec.state.names)
        if horizon < spec.action.horizon or wanted not in (None, state_names):
            raise DataError(
                "The data does not fit the policy",
                got=f"chunks of {horizon} steps, state {state_names}",
                expected=f"at least {spec.action.horizon} steps, state {wanted}",
                fix="collect again with the policy's horizon and state",
            )
        self.action_chunk = self.action_chunk[:, : spec.action.horizon]

    def _number_tasks(self) -> tuple[tuple[str, ...], np.ndarray]:
        numbers: dict[str, int] = {}
        ids = []
        for reader in self.readers:
            own = [numbers.setdefault(task, len(numbers)) for task in reader.tasks]
            ids.append(
                np.asarray(own, dtype=np.int64)[reader.columns(["task_index"])["task_index"]]
            )
        return tuple(numbers), np.concatenate(ids)

    def _encode(self, validation_fraction: float) -> None:
        encoded = [self.processor.tokenizer.encode(task) for task in self.tasks]
        self._input_ids = np.stack([ids for ids, _ in encoded])
        self._attention_mask = np.stack([mask for _, mask in encoded])
        self._actions = self.processor.encode_actions(self.action_chunk)
        has_state = self.processor.spec.state is not None
        self._states = self.processor.prepare_state(self.state) if has_state else None
        self._is_validation = hash_to_unit(self.episode_seed) < validation_fraction


def open_readers(roots: Roots) -> list[LeRobotReader]:
    """Open datasets that belong together; raise DataError if one is empty or of another kind."""
    readers = [LeRobotReader(root) for root in roots]
    if not readers:
        raise DataError(
            "There is no data",
            got="no dataset folder",
            expected="at least one",
            fix="pass --data DIR, made by `vla-align collect`",
        )
    for reader in readers:
        features = reader.schema.features
        missing = {VIDEO_KEY, STATE_KEY, ENVIRONMENT_KEY, ACTION_KEY, CHUNK_KEY} - set(features)
        if missing or not len(reader) or features != readers[0].schema.features:
            raise DataError(
                f"{reader.root} cannot be trained on together with {readers[0].root}",
                got=f"{len(reader)} frames of {sorted(features)}",
                expected=f"frames of {sorted(readers[0].schema.features)}",
                fix="collect every dataset with the same version of `vla-align collect`",
            )
    return readers


def hash_to_unit(values: np.ndarray) -> np.ndarray:
    """Well-spread pseudo-random numbers in [0, 1) of int64 values (splitmix64's finaliser)."""
    mixed = np.asarray(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    units: np.ndarray = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / float(1 << 53)
    return units


def _episode_seeds(reader: LeRobotReader) -> np.ndarray:
    rows = reader.episodes
    name = SEED_NOTE if SEED_NOTE in rows.column_names else "episode_index"
    seeds: np.ndarray = rows[name].to_numpy().astype(np.int64)
    return seeds


def _join(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    tables = list(parts)
    return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
