"""Decodes a dataset's videos once into a memory map, so that training never waits for them."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from training.data.reader import LeRobotReader
from training.data.video import decode_video
from training.files import replace_atomically
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import DataError

CACHE_FOLDER = "cache"
_MAX_THREADS = 4
# Raise when decoding or resizing changes, so that old caches are not taken for new ones.
_CACHE_VERSION = 2


class FrameStore:
    """Every frame of one camera, resized to the model's input, in the order of the rows.

    `frames` is a read-only memory map (N, S, S, 3) uint8 RGB, where S is `transform.size`.
    """

    def __init__(
        self,
        reader: LeRobotReader,
        video_key: str,
        transform: ImageTransform,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        """Open the cache, filling it first if needed; it lies in <dataset>/cache by default."""
        folder = Path(cache_dir) if cache_dir is not None else reader.root / CACHE_FOLDER
        self.path = folder / f"frames-{cache_key(reader, video_key, transform)}.npy"
        if not self.path.exists():
            self._fill(reader, video_key, transform, progress)
        self.frames: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        expected = (len(reader), transform.size, transform.size, 3)
        if self.frames.shape != expected:
            raise DataError(
                f"The frame cache {self.path} is damaged",
                got=f"shape {self.frames.shape}",
                expected=f"{expected}",
                fix="delete the file; it is made again",
            )

    def _fill(
        self, reader: LeRobotReader, video_key: str, transform: ImageTransform, progress: bool
    ) -> None:
        from tqdm import tqdm

        files = reader.video_files(video_key)
        starts = np.cumsum([0, *(count for _, count in files)])
        shape = (int(starts[-1]), transform.size, transform.size, 3)
        with replace_atomically(self.path) as temporary:
            target: np.memmap = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint8, shape=shape
            )
            bar = tqdm(total=shape[0], unit="frame", desc="decoding", disable=not progress)

            def decode(number: int) -> None:
                path, expected = files[number]
                index = int(starts[number])
                for image in decode_video(path):
                    if index < starts[number + 1]:
                        target[index] = transform.resize(image)
                    index += 1
                    bar.update()
                if index != starts[number + 1]:
                    raise DataError(
                        f"The video {path} does not match its table",
                        got=f"{index - starts[number]} frames",
                        expected=f"{expected} frames",
                        fix="delete the dataset and collect it again",
                    )

            with bar, ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
                list(pool.map(decode, range(len(files))))
            target.flush()


def cache_key(reader: LeRobotReader, video_key: str, transform: ImageTransform) -> str:
    """Name of a cache: the size, and a hash of all that decides the frames' bytes."""
    decisive = {
        "version": _CACHE_VERSION,
        "content": reader.content_hash(),
        "video": video_key,
        "size": transform.size,
        "crop": transform.crop,
        "interpolation": transform.interpolation,
    }
    text = json.dumps(decisive, sort_keys=True)
    return f"{transform.size}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
