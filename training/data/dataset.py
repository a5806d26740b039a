"""Training batches: the very tensors that the robot's Processor makes, cut from LeRobot data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.data.config import DataConfig
from training.data.draws import draw_counts, hash_to_unit
from training.data.mixture_pictures import MixturePictures
from training.data.reader import LeRobotReader
from training.data.rows import SourceRows
from training.data.schema import ENVIRONMENT_KEY
from training.data.sources import Source
from training.data.statistics import as_sources, dataset_statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ContractError, DataError

if TYPE_CHECKING:
    import torch

__all__ = ["ActionChunkDataset", "dataset_statistics", "open_readers"]

_SHOWN = 60  # characters of a text in an error
_NAMED = 3  # texts in one
Roots = Sequence[str | Path] | Sequence[Source]


class ActionChunkDataset:
    """One or several LeRobot datasets as arrays, ready to be cut into batches.

    Attributes (N frames over all roots):
        state: (N, D) float32, in metres and radians; D 0 without proprioception.
        environment_state: (N, E) float32, simulation's truth; `environment_names` (E,); E 0
            for real data.
        task_id: (N,) int64 into `tasks`. episode: (N,) int64, counted over all roots.
        readers, weights: one a root. root_id: (N,) int64, which root a frame comes from;
            root_starts (roots + 1,) int64, where each begins. frame_index: (N,) int64 in its
            episode.
        episode_seed: (episodes,) int64, the scene's seed (the episode's number where unknown).
        broken: episode -> reason; skipped because their videos are damaged. dropped: frames left
            out because nothing moves in them. unlabelled: frames left out because their episode
            has no instruction. unasked: frames left out because config.instructions lacks theirs.
            has_padding: whether chunks are cut, so that those
            at an episode's end are padded.
    """

    def __init__(
        self,
        roots: Roots,
        processor: Processor,
        config: DataConfig | None = None,
        *,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        progress: bool = False,
        refuse_unknown: bool = False,
    ) -> None:
        """Load all tables, open or decode the videos, and encode what can be in advance.

        `seed`: of the augmentation, and of how many committed actions a sample tells.
        `refuse_unknown`: raise DataError for words that the tokenizer does not know, as training
        must: they all become one token, and what they ask for the same input.
        """
        self._seed = seed
        self.processor, self.config = processor, config or DataConfig()
        self.sources = as_sources(roots, self.config)
        self.readers = [source.reader for source in self.sources]
        self.weights = [source.weight for source in self.sources]
        self._rows = [SourceRows(source, self.config) for source in self.sources]
        self.has_padding = any(rows.horizon is None for rows in self._rows)
        self._horizon = processor.spec.action.horizon
        self._check_fits_processor()
        frame_counts = [len(rows) for rows in self._rows]
        episode_counts = [len(rows.episode_seed) for rows in self._rows]
        self.root_starts = np.cumsum([0, *frame_counts])
        self.root_id = np.repeat(np.arange(len(self._rows)), frame_counts)
        self._first_episode = np.cumsum([0, *episode_counts])[:-1]
        self.state = np.concatenate([rows.state for rows in self._rows])
        self.environment_state, self.environment_names = self._join_environment()
        self.frame_index = np.concatenate([rows.frame_index for rows in self._rows])
        own = np.concatenate([rows.episode for rows in self._rows])
        self.episode = own + np.repeat(self._first_episode, frame_counts)
        self.episode_seed = np.concatenate([rows.episode_seed for rows in self._rows])
        moving = np.concatenate([rows.moving for rows in self._rows])
        self.dropped = int((~moving).sum())
        self.tasks, self.task_id = self._number_tasks()
        self._asked = self._choose_tasks()
        self._input_ids, self._attention_mask = self._encode_tasks()
        if refuse_unknown:
            self._refuse_unknown_words()
        self._pictures = MixturePictures(
            self.sources,
            processor.image_transform,
            self.config,
            seed=seed,
            cache_dir=cache_dir,
            progress=progress,
        )
        self.broken = {
            int(self._first_episode[root]) + episode: reason
            for (root, episode), reason in self._pictures.broken.items()
        }
        self._split(moving)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        return self.processor.image_transform.size

    @property
    def left_out(self) -> dict[str, int]:
        """What training does not see, for a run's record: counts by reason."""
        counts = {
            "broken_episodes": len(self.broken),
            "still_frames": self.dropped,
            "unlabelled_frames": self.unlabelled,
        }
        if self.config.instructions:  # runs from before there was a choice do not tell
            counts["frames_of_other_instructions"] = self.unasked
        return counts

    @property
    def fingerprint(self) -> str:
        """sha256 over the contents of all roots, in order: names the data in a run's provenance."""
        parts = "".join(
            source.reader.content_hash(source.selection.camera) for source in self.sources
        )
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def meaning(self) -> str:
        """sha256 over words, names and rates of all roots: what the contents' numbers mean."""
        parts = "".join(reader.meaning_hash() for reader in self.readers)
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def action_chunk(self) -> np.ndarray:
        """Every frame's chunk (N, H, 7) float32; for a few frames, `chunks` costs less."""
        return self.chunks(np.arange(len(self)))[0]

    def chunks(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chunks (B, H, 7) float32 in metres, radians, gripper fraction; is_pad (B, H) bool."""
        wanted = np.asarray(indices, dtype=np.int64)
        chunks = np.empty((len(wanted), self._horizon, 7), dtype=np.float32)
        is_pad = np.empty(chunks.shape[:2], dtype=bool)
        for number, rows in enumerate(self._rows):
            here = np.flatnonzero(self.root_id[wanted] == number)
            own = wanted[here] - self.root_starts[number]
            chunks[here], is_pad[here] = rows.chunks(own, self._horizon)
        return chunks, is_pad

    def pictures_key(self, root: int) -> str:
        """Name of all that decides the bytes of a root's pictures, for caches of features."""
        from training.data.features import pictures_key

        camera = self.sources[root].selection.camera
        transform, broken = self.processor.image_transform, self._pictures.broken_of(root)
        return pictures_key(self.readers[root], [camera], transform, broken)

    def indices(self, split: str) -> np.ndarray:
        """Frames (n,) of "train" or "val"; a scene's frames are all in one of them.

        Frames without motion (if they are dropped), of broken episodes, of instructions that were
        not asked for, and of episodes without an instruction (as OpenVLA leaves them out) are in
        neither.
        """
        if split not in ("train", "val"):
            raise DataError(
                "No such split",
                got=split,
                expected="train or val",
                fix="pass one of these names",
            )
        return np.flatnonzero(self._usable & (self._is_validation == (split == "val")))

    def images(self, indices: np.ndarray, passes: np.ndarray | None = None) -> np.ndarray:
        """Frames (B, S, S, 3) uint8 RGB at the model's size, as the robot would resize them.

        With `passes` (B,) int64, and augmentation switched on, they are augmented: the draw is
        that of (seed, pass, frame).
        """
        return self._pictures.get(np.asarray(indices, dtype=np.int64), passes)

    def windows(self, indices: np.ndarray, passes: np.ndarray | None = None) -> np.ndarray:
        """What `images` shows of the recorded pictures: left, top, right, bottom (B, 4) float64.

        Shares of width and height: augmentation crops at random, the robot about the middle.
        """
        return self._pictures.windows(np.asarray(indices, dtype=np.int64), passes)

    def camera_pictures(self, indices: np.ndarray) -> np.ndarray:
        """The same frames before any resizing, (B, H, W, 3) uint8 RGB.

        Data sets of several sizes cannot be stacked: DataError.
        """
        return self._pictures.as_recorded(np.asarray(indices, dtype=np.int64))

    def batch(
        self, indices: np.ndarray, *, pictures: bool = True, passes: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """Model inputs and targets of B frames, as `Processor.prepare` makes them.

        Without `pictures` (features come from a cache) pixel_values and images are left out. With
        `passes` (see `images`) both show the same augmented picture.

        pixel_values (B, C, S, S) float32 normalised; input_ids and attention_mask (B, T) int64;
        state (B, D) float32 normalised (if the policy has one); actions (B, H, 7) float32
        normalised; is_pad (B, H) bool where chunks are cut (see `has_padding`);
        committed (B, C, 7) float32 and committed_mask (B, C) int64, the first 0 to C actions of
        each by the draw of (seed, pass, frame), if the policy takes such and `passes` is given;
        environment_state (B, E) float32 in metres and radians; images (B, S, S, 3)
        uint8 RGB for a teacher with another normalisation; index (B,) int64.
        """
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        tasks = self.task_id[indices]
        chunks, is_pad = self.chunks(indices)
        arrays = {
            "input_ids": self._input_ids[tasks],
            "attention_mask": self._attention_mask[tasks],
            "actions": self.processor.encode_actions(chunks),
            "environment_state": self.environment_state[indices],
            "index": indices,
        }
        if self.has_padding:
            arrays["is_pad"] = is_pad
        if pictures:
            arrays["images"] = self.images(indices, passes)
            arrays["pixel_values"] = self.processor.image_transform.normalize(arrays["images"])
        if self.processor.spec.state is not None:
            arrays["state"] = self.processor.prepare_state(self.state[indices])
        if passes is not None and (most := self.processor.spec.action.committed):
            counts = draw_counts(self._seed, passes, indices, most)
            counts = np.minimum(counts, (~is_pad).sum(axis=1))
            arrays |= self.processor.prepare_committed(chunks[:, :most], counts)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _check_fits_processor(self) -> None:
        spec, first = self.processor.spec, self.sources[0]
        state_names = first.selection.state_names
        lengths = [rows.horizon for rows in self._rows if rows.horizon is not None]
        longest = min(lengths, default=self._horizon)
        wanted = None if spec.state is None else tuple(spec.state.names)
        if longest < self._horizon or wanted not in (None, state_names):
            raise DataError(
                "The data does not fit the policy",
                got=f"chunks of {longest} steps, state {state_names}",
                expected=f"at least {self._horizon} steps, state {wanted}",
                fix="collect again with the policy's horizon and state",
            )

    def _join_environment(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Simulation's truth where every root has the same one, else nothing."""
        features = [reader.schema.features.get(ENVIRONMENT_KEY) for reader in self.readers]
        if features[0] is None or any(feature != features[0] for feature in features):
            return np.zeros((len(self.root_id), 0), dtype=np.float32), ()
        parts = [rows.environment_state for rows in self._rows]
        return np.concatenate(parts), tuple(features[0].names or ())

    def _number_tasks(self) -> tuple[tuple[str, ...], np.ndarray]:
        numbers: dict[str, int] = {}
        ids = []
        for rows, reader in zip(self._rows, self.readers, strict=True):
            own = [numbers.setdefault(task, len(numbers)) for task in reader.tasks]
            ids.append(np.asarray(own, dtype=np.int64)[rows.task])
        return tuple(numbers), np.concatenate(ids)

    def _encode_tasks(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and masks (tasks, T) int64; DataError for a text that a robot would refuse.

        Texts that nobody trains on need not be words; their frames get those of a placeholder.
        """
        encode = self.processor.tokenizer.encode
        used = np.zeros(len(self.tasks), dtype=bool)
        used[self.task_id] = True
        encoded: list[tuple[np.ndarray, np.ndarray]] = []
        refused: dict[int, ContractError] = {}
        for number, task in enumerate(self.tasks):
            try:
                encoded.append(encode(task))
            except ContractError as cause:
                encoded.append(encode("unlabelled"))
                if self._asked[number] and used[number]:
                    refused[number] = cause
        if refused:
            number, error = next(iter(refused.items()))
            frames = self.task_id == number
            root = int(self.root_id[frames][0])
            episodes = np.unique(self.episode[frames & (self.root_id == root)])
            own = [str(n) for n in episodes[:3] - self._first_episode[root]]
            more = f" and {len(episodes) - 3} more" if len(episodes) > 3 else ""
            others = f"; {len(refused) - 1} other texts like it" if len(refused) > 1 else ""
            raise DataError(
                f"{self.readers[root].root} has an instruction that no policy can be given",
                got=f"{self.tasks[number][:_SHOWN]!a} in episode {', '.join(own)}{more}"
                f" ({error.summary}, got {str(error.got)[:_SHOWN]}){others}",
                expected=str(error.expected or "words"),
                fix="correct the text in the data set's table of tasks (an empty one leaves its"
                " episodes out), or train on others: --set 'data.instructions=[...]'",
            )
        return np.stack([ids for ids, _ in encoded]), np.stack([mask for _, mask in encoded])

    def _refuse_unknown_words(self) -> None:
        used = [int(number) for number in np.unique(self.task_id) if self._asked[number]]
        tokenizer = self.processor.tokenizer
        unknown = {self.tasks[n]: tokenizer.unknown_words(self.tasks[n]) for n in used}
        named = [
            f"{', '.join(words)} in {task[:_SHOWN]!r}" for task, words in unknown.items() if words
        ]
        if named:
            more = f", and {len(named) - _NAMED} other texts" if len(named) > _NAMED else ""
            raise DataError(
                "The data has words that the tokenizer does not know",
                got="; ".join(named[:_NAMED]) + more,
                expected="words that differ to the network, as these all become the same token",
                fix="train on other instructions, --set 'data.instructions=[...]', or leave --base"
                " out: a network from scratch takes the data's words",
            )

    def _split(self, moving: np.ndarray) -> None:
        """Choose the frames of both splits; an episode without words is not used."""
        spoken = np.array([_has_words(task) for task in self.tasks])
        self.unlabelled = int((~spoken[self.task_id]).sum())
        self.unasked = int((spoken & ~self._asked)[self.task_id].sum())
        held_out = hash_to_unit(self.episode_seed) < self.config.validation
        self._is_validation = held_out[self.episode]
        whole = ~np.isin(self.episode, list(self.broken))
        self._usable = moving & whole & self._asked[self.task_id]

    def _choose_tasks(self) -> np.ndarray:
        """Which of `tasks` have words and are asked for by the configuration, (tasks,) bool."""
        wanted = self.config.instructions
        unknown = sorted(set(wanted) - set(self.tasks))
        if unknown:
            raise DataError(
                "No episode has this instruction",
                got=", ".join(map(repr, unknown)),
                expected="some of " + ", ".join(map(repr, sorted(self.tasks))),
                fix="correct --set data.instructions",
            )
        return np.array(
            [_has_words(task) and (not wanted or task in wanted) for task in self.tasks]
        )


def _has_words(task: str) -> bool:
    """Whether a text says anything: dots and blanks are what cleaning an instruction removes."""
    return bool(task.strip(" .\t\r\n"))


def open_readers(roots: Roots, config: DataConfig | None = None) -> list[LeRobotReader]:
    """Open datasets that belong together; raise DataError if one is empty or does not fit."""
    return [source.reader for source in as_sources(roots, config)]
