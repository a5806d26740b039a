"""Features of frozen networks, computed once a picture and kept on disk.

A cache holds what a frozen network gives for the stored, unaugmented pictures. With image
augmentation a picture is another one in every epoch, and features are computed online instead.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.feature_file import fill_feature_file, open_feature_file
from training.data.frames import CACHE_FOLDER, cache_key
from training.data.reader import LeRobotReader
from training.fingerprint import fingerprint_weights
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import DataError

__all__ = ["FeatureStore", "Pictures", "fingerprint_weights", "pictures_key"]


class Pictures(Protocol):
    """What a store needs to know of data: one or several data sets, the roots.

    Frames are counted over all of them. readers: one a root. root_id (N,) int64: each frame's root.
    root_starts (roots + 1,) int64: each root's first frame.
    """

    readers: Any
    root_id: NDArray[np.int64]
    root_starts: NDArray[np.int64]

    def pictures_key(self, root: int) -> str:
        """Name of all that decides the bytes of a root's pictures: see `pictures_key`."""
        ...


def pictures_key(
    reader: LeRobotReader,
    cameras: Sequence[str],
    transform: ImageTransform,
    broken: Collection[int] = (),
) -> str:
    """Name of all that decides a root's pictures: content, cameras, size, crop, interpolation.

    And which episodes are `broken`: their pictures are black until their videos are mended.
    """
    keys = [cache_key(reader, camera, transform) for camera in cameras]
    keys += [f"without {sorted(broken)}"] if broken else []
    if len(keys) == 1:
        return keys[0]
    return f"{transform.size}-{hashlib.sha256('/'.join(keys).encode()).hexdigest()[:16]}"


class FeatureStore:
    """Memory-mapped features (frames, N, W) float16 of data, one file a root.

    `compute` maps frame indices (n,) to (n, N, W). What a root's file lacks is computed now, block
    by block: a killed process loses one block at most, and two processes do not disturb each other.
    A file is found again by `key` and by what decides the root's pictures, so roots can be added to
    a mixture without computing the others again. `computed`: frames that this store computed.
    """

    def __init__(
        self,
        data: Pictures,
        key: str,
        compute: Callable[[NDArray[np.int64]], Tensor],
        folder: Path | None = None,
        *,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        self._root_id, self._starts = data.root_id, data.root_starts
        self._parts: list[NDArray[np.float16]] = []
        self.paths: list[Path] = []
        self.computed = 0
        for number, reader in enumerate(data.readers):
            name = f"features-{key}-{data.pictures_key(number)}.npy"
            path = (folder if folder is not None else reader.root / CACHE_FOLDER) / name
            first = int(self._starts[number])
            rows = int(self._starts[number + 1]) - first
            self.computed += fill_feature_file(
                path,
                rows,
                functools.partial(_compute, compute, first),
                block=batch_size,
                progress=progress,
            )
            self._parts.append(open_feature_file(path, rows))
            self.paths.append(path)

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return int(self._parts[0].shape[-1])

    def rows(self, indices: NDArray[np.int64]) -> Tensor:
        """Features (B, N, W) float32 of B frames."""
        roots = self._root_id[indices]
        shape = (len(indices), *self._parts[0].shape[1:])
        output = np.empty(shape, dtype=np.float16)
        for number in np.unique(roots):
            here = np.flatnonzero(roots == number)
            output[here] = self._parts[number][indices[here] - self._starts[number]]
        return torch.from_numpy(output).float()  # torch converts several times faster than numpy


def _compute(
    compute: Callable[[NDArray[np.int64]], Tensor], first: int, start: int, stop: int
) -> NDArray[np.float16]:
    """Features of a root's rows start to stop as float16; DataError if one cannot be kept so."""
    frames = np.arange(first + start, first + stop)
    features = compute(frames).to(torch.float16).cpu().numpy()
    finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not finite.all():
        raise DataError(
            "A feature cannot be kept as float16",
            got=f"infinity or NaN in {int((~finite).sum())} of frames {frames[0]} to {frames[-1]}",
            expected="values within 65504",
            fix="--set data.cache=false, or another layer of the network",
        )
    kept: NDArray[np.float16] = features
    return kept
