"""Features of frozen towers, computed once a picture and kept on disk.

A cache holds what a frozen network gives for the stored, unaugmented pictures; with image
augmentation the pictures change every epoch and features must be computed online instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from training.data.dataset import ActionChunkDataset
from training.data.frames import CACHE_FOLDER
from training.files import replace_atomically


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """Sha-256 of names, shapes and bytes of a state dict, 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureStore:
    """Memory-mapped features (frames, N, W) float16 of a data set, one file a root.

    `compute` maps frame indices (n,) to (n, N, W). What a root's file lacks is computed now; a file
    appears whole or not at all, and is found again by `key`, the root's content and the picture's
    size, so roots can be added to a mixture without computing the others again.
    """

    def __init__(
        self,
        data: ActionChunkDataset,
        key: str,
        compute: Callable[[NDArray[np.int64]], Tensor],
        folder: Path | None = None,
        *,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        self._root_id, self._starts = data.root_id, data.root_starts
        self._parts: list[NDArray[np.float16]] = []
        for number, reader in enumerate(data.readers):
            name = f"features-{key}-{data.image_size}-{reader.content_hash()[:16]}.npy"
            path = (folder if folder is not None else reader.root / CACHE_FOLDER) / name
            frames = np.arange(self._starts[number], self._starts[number + 1])
            if not path.exists():
                _compute(path, frames, compute, batch_size, progress)
            self._parts.append(np.load(path, mmap_mode="r", allow_pickle=False))

    def rows(self, indices: NDArray[np.int64]) -> Tensor:
        """Features (B, N, W) float32 of B frames."""
        roots = self._root_id[indices]
        shape = (len(indices), *self._parts[0].shape[1:])
        output = np.empty(shape, dtype=np.float32)
        for number in np.unique(roots):
            here = np.flatnonzero(roots == number)
            output[here] = self._parts[number][indices[here] - self._starts[number]]
        return torch.from_numpy(output)


def _compute(
    path: Path,
    frames: NDArray[np.int64],
    compute: Callable[[NDArray[np.int64]], Tensor],
    batch_size: int,
    progress: bool,
) -> None:
    out: NDArray[np.float16] | None = None
    with replace_atomically(path) as partial:
        for start in tqdm(
            range(0, len(frames), batch_size), desc="features", unit="batch", disable=not progress
        ):
            part = compute(frames[start : start + batch_size]).float().numpy()
            if out is None:
                out = np.lib.format.open_memmap(
                    partial, mode="w+", dtype=np.float16, shape=(len(frames), *part.shape[1:])
                )
            out[start : start + len(part)] = part
        if out is not None:
            out.flush()
