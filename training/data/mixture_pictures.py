"""The pictures of a mixture: kept on disk or decoded on the way, plain or augmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from training.data.augment import augment, draw_window
from training.data.config import DataConfig
from training.data.frames import FrameStore
from training.data.health import known_damage
from training.data.pictures import OnlinePictures, RawPictures
from training.data.sources import Source
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import DataError

_GB = 1 << 30
_PLAIN_BYTES = _GB // 4  # of un-augmented pictures beside augmented ones: some held-out frames


class Pictures(Protocol):
    """One data set's pictures at the model's size."""

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Frames (n, S, S, 3) uint8 RGB of `rows` (n,) int64 within the data set."""


class MixturePictures:
    """Pictures of several data sets by their rows in the mixture.

    broken: (root, episode in it) -> why its video cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        transform: ImageTransform,
        config: DataConfig,
        *,
        seed: int,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        """Decode or check the videos; a damaged one is a DataError unless they are skipped."""
        self._sources, self._config, self._seed = sources, config, seed
        self._size, self._centred = transform.size, transform.crop_box(1, 1)
        self._starts = np.cumsum([0, *(len(source.reader) for source in sources)])
        self.broken: dict[tuple[int, int], str] = {}
        self._plain: list[Pictures] = []
        self._whole: list[Pictures] = []  # without the robot's centred crop, to be augmented
        whole = dataclasses.replace(transform, crop=1.0)
        for number, source in enumerate(sources):
            share = len(source.reader) / self._starts[-1]
            room = int(config.decode_cache_gb * _GB * share)
            stored: FrameStore | OnlinePictures
            first = whole if config.augment.enabled else transform
            reader, camera = source.reader, source.selection.camera
            if config.decode == "once":
                stored = FrameStore(
                    reader,
                    camera,
                    first,
                    cache_dir=cache_dir,
                    progress=progress,
                    skip_broken=config.skip_broken,
                )
            else:
                known = known_damage(source, cache_dir, skip=config.skip_broken)
                stored = OnlinePictures(reader, camera, first, capacity_bytes=room, broken=known)
            plain: Pictures = stored
            if config.augment.enabled:
                plain = OnlinePictures(
                    reader,
                    camera,
                    transform,
                    capacity_bytes=int(_PLAIN_BYTES * share),
                    broken=stored.broken,
                )
            self._whole.append(stored)
            self._plain.append(plain)
            self.broken |= {(number, episode): why for episode, why in stored.broken.items()}

    def get(self, indices: np.ndarray, passes: np.ndarray | None = None) -> np.ndarray:
        """Frames (B, S, S, 3) uint8 RGB of rows `indices` (B,) int64 of the mixture.

        With `passes` (B,) int64, and augmentation switched on, augmented by the draw of (seed,
        pass, row); otherwise as the robot would resize them.
        """
        draws = self._draws(indices, passes)
        stores = self._plain if draws is None else self._whole
        roots = np.searchsorted(self._starts, indices, side="right") - 1
        output = np.empty((len(indices), self._size, self._size, 3), dtype=np.uint8)
        for number in np.unique(roots):
            here = np.flatnonzero(roots == number)
            output[here] = stores[number].get(indices[here] - self._starts[number])
        for place, draw in enumerate(draws or ()):
            output[place] = augment(output[place], self._config.augment, draw)
        return output

    def windows(self, indices: np.ndarray, passes: np.ndarray | None = None) -> np.ndarray:
        """What `get` shows of the recorded pictures (B, 4) float64.

        Left, top, right, bottom as shares of width and height.
        """
        draws = self._draws(indices, passes)
        if draws is None:
            return np.tile(np.asarray(self._centred, dtype=np.float64), (len(indices), 1))
        shown = [draw_window(self._config.augment, draw) for draw in draws]
        return np.asarray(shown, dtype=np.float64).reshape(-1, 4)

    def broken_of(self, root: int) -> list[int]:
        """Broken episodes of one data set, by their numbers in it."""
        return [episode for number, episode in self.broken if number == root]

    def _draws(
        self, indices: np.ndarray, passes: np.ndarray | None
    ) -> list[tuple[int, int, int]] | None:
        """Each picture's draw (seed, pass, row); None where they are not augmented."""
        if passes is None or not self._config.augment.enabled:
            return None
        pairs = zip(indices, passes, strict=True)
        return [(self._seed, int(count), int(index)) for index, count in pairs]

    def as_recorded(self, indices: np.ndarray) -> np.ndarray:
        """The same frames before any resizing, (B, H, W, 3) uint8 RGB; DataError if sizes differ.

        For a few frames: nothing of it is kept.
        """
        raw: dict[int, RawPictures] = {}
        pictures: dict[int, np.ndarray] = {}
        for index in np.sort(indices):
            root = int(np.searchsorted(self._starts, index, side="right")) - 1
            if root not in raw:
                source = self._sources[root]
                raw[root] = RawPictures(source.reader, source.selection.camera)
            pictures[int(index)] = raw[root].picture(int(index - self._starts[root]))
        sizes = sorted({picture.shape[:2] for picture in pictures.values()})
        if len(sizes) != 1:
            raise DataError(
                "The cameras of the data sets differ in size",
                got=", ".join(map(str, sizes)),
                expected="one size",
                fix="take pictures of one data set at a time",
            )
        return np.stack([pictures[int(index)] for index in indices])
