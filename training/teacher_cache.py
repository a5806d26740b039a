"""One door to a teacher's cached features, so that a run finds what was computed before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.alignment import compute_targets
from training.alignment.teachers import Teacher, TeacherConfig
from training.config import RunConfig
from training.data.config import DataConfig
from training.data.features import FeatureStore, Pictures, pictures_key
from training.data.mixture_pictures import MixturePictures
from training.data.sources import open_sources
from training.setup_model import find_base
from training.setup_processor import find_transform
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import ConfigurationError

BLOCK_FRAMES = 32


class SeenPictures(Pictures, Protocol):
    """Data whose pictures a teacher can look at."""

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Unaugmented frames (B, [cameras,] S, S, 3) uint8 RGB."""
        ...


def teacher_key(teacher: Teacher, grid: int) -> str:
    """Name of what a teacher's features on a grid depend on, but for the pictures."""
    return f"teacher-{teacher.fingerprint}-{grid}"


def open_teacher_store(
    data: SeenPictures,
    teacher: Teacher,
    grid: int,
    folder: Path | None = None,
    *,
    progress: bool = True,
) -> FeatureStore:
    """Features (frames, [cameras *] grid * grid, width) of `teacher`; computes what is missing.

    `folder`: where the files lie; None is each data set's own cache. Only for pictures that are
    not augmented.
    """

    def teach(indices: NDArray[np.int64]) -> Tensor:
        return compute_targets(teacher, data.images(indices), grid)

    return FeatureStore(
        data, teacher_key(teacher, grid), teach, folder, batch_size=BLOCK_FRAMES, progress=progress
    )


class RecordedPictures:
    """The pictures of data sets as a run sees them, without its processor or actions.

    Implements SeenPictures over `roots`: folders or hub names, as for training.
    """

    def __init__(
        self,
        roots: Sequence[str | Path],
        config: DataConfig,
        *,
        transform: ImageTransform | None = None,
        cache_dir: Path | None = None,
        progress: bool = True,
    ) -> None:
        """`transform`: the processor's; None is that of every recipe (centred crop, bicubic)."""
        self._sources = open_sources(roots, config)
        self._transform = transform or ImageTransform(size=config.image_size, crop=config.crop)
        self._pictures = MixturePictures(
            self._sources, self._transform, config, seed=0, cache_dir=cache_dir, progress=progress
        )
        self.readers = [source.reader for source in self._sources]
        counts = [len(reader) for reader in self.readers]
        self.root_starts = np.cumsum([0, *counts])
        self.root_id = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return int(self.root_starts[-1])

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Unaugmented frames (B, S, S, 3) uint8 RGB."""
        return self._pictures.get(np.asarray(indices, dtype=np.int64))

    def pictures_key(self, root: int) -> str:
        """Name of all that decides the bytes of a root's pictures."""
        source = self._sources[root]
        broken = self._pictures.broken_of(root)
        return pictures_key(source.reader, [source.selection.camera], self._transform, broken)


@dataclasses.dataclass(frozen=True, slots=True)
class CachePlan:
    """What a cache of teacher features depends on beside the recorded pictures.

    grid: patches a side of the student. precision: "bf16" or "fp32", of the teacher's weights.
    transform: the student's; None is centred crop, bicubic.
    """

    teacher: TeacherConfig
    data: DataConfig
    grid: int
    precision: str
    transform: ImageTransform | None = None

    def __post_init__(self) -> None:
        """Refuse pictures that change from epoch to epoch."""
        if not self.data.keeps_features:
            raise ConfigurationError(
                "Features of these pictures cannot be cached",
                got=f"data.cache {self.data.cache}, augment.enabled {self.data.augment.enabled}",
                expected="data.cache true and no augmentation: an augmented picture is another one"
                " in every epoch",
                fix="--set data.augment.enabled=false, or train with the teacher online",
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the teacher's weights."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @classmethod
    def of_run(cls, config: RunConfig) -> CachePlan:
        """The plan by which a run of `config` would look for its features.

        Raises ConfigurationError where such a run would not start.
        """
        config = find_base(config)
        transform = find_transform(config)
        return cls(config.teacher, config.data, student_grid(config), config.precision, transform)


def student_grid(config: RunConfig) -> int:
    """Patches a side of the student's first vision tower; nothing is loaded."""
    from training.model.vision import build_tower

    with torch.device("meta"):
        tower = build_tower(config.model.vision[0], "eager", pretrained=False)
    return int(tower.grid)
