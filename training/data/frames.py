"""Decodes a dataset's videos once into a memory map, so that training never waits for them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from training.data.cache_files import check_room, explain_errors
from training.data.pictures import TablePictures
from training.data.reader import LeRobotReader, read_json
from training.data.versions import Clip
from training.data.video import VideoReader, decode_numbered
from training.files import hold_lock, replace_atomically
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import DataError

CACHE_FOLDER = "cache"
_MAX_THREADS = 4
_SPARE_BYTES = 1 << 20  # headers, the note of what is broken
_WHAT = "The frame cache"
_ELSEWHERE = "pass --cache DIR on another disk, or --set data.decode=online, which keeps no file"
# Raise when decoding or resizing changes, so that old caches are not taken for new ones.
_CACHE_VERSION = 2


class FrameStore:
    """Every frame of one camera, resized to the model's input, in the order of the rows.

    `frames` is a read-only memory map (N, S, S, 3) uint8 RGB, where S is `transform.size`.
    `broken` names the episodes whose videos are damaged, with the reason; their frames are black.
    """

    def __init__(
        self,
        reader: LeRobotReader,
        video_key: str,
        transform: ImageTransform,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = False,
        skip_broken: bool = False,
    ) -> None:
        """Open the cache, filling it first if needed; it lies in <dataset>/cache by default.

        A damaged video is a DataError that names the episode, unless `skip_broken`.
        """
        folder = Path(cache_dir) if cache_dir is not None else reader.root / CACHE_FOLDER
        self.path = folder / f"frames-{cache_key(reader, video_key, transform)}.npy"
        self._broken_path = self.path.with_suffix(".broken.json")
        if not self._is_current(reader, video_key):
            lock = self.path.with_name(f".{self.path.name}.lock")
            with explain_errors(_WHAT, self.path, _ELSEWHERE), hold_lock(lock):
                # Another process may have filled it meanwhile.
                if not self._is_current(reader, video_key):
                    self._fill(reader, video_key, transform, progress, skip_broken)
        self.frames: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        expected = (len(reader), transform.size, transform.size, 3)
        if self.frames.shape != expected:
            raise DataError(
                f"The frame cache {self.path} is damaged",
                got=f"shape {self.frames.shape}",
                expected=f"{expected}",
                fix="delete the file; it is made again",
            )
        self.broken: Mapping[int, str] = self._read_broken()
        if self.broken and not skip_broken:
            raise broken_error(reader, self.broken)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Frames (n, S, S, 3) uint8 RGB of `rows` (n,) int64."""
        frames: np.ndarray = self.frames[rows]
        return frames

    def _read_broken(self) -> dict[int, str]:
        known = read_json(self._broken_path) if self._broken_path.exists() else {}
        return {int(number): str(reason) for number, reason in known.items()}

    def _is_current(self, reader: LeRobotReader, camera: str) -> bool:
        if not self.path.exists():
            return False
        return not find_mended(reader, camera, self._read_broken(), self._broken_path)

    def _fill(
        self,
        reader: LeRobotReader,
        camera: str,
        transform: ImageTransform,
        progress: bool,
        skip_broken: bool,
    ) -> None:
        from tqdm import tqdm

        shape = (len(reader), transform.size, transform.size, 3)
        broken: dict[int, str] = {}
        with replace_atomically(self.path) as temporary:
            needed = int(np.prod(shape)) + _SPARE_BYTES
            check_room(_WHAT, self.path, needed, _ELSEWHERE)
            target: np.memmap = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint8, shape=shape
            )
            _allocate(temporary)
            bar = tqdm(total=shape[0], unit="frame", desc="decoding", disable=not progress)

            def decode(clips: list[Clip]) -> None:
                found = decode_clips(reader, camera, clips, target, transform, bar.update)
                if found and not skip_broken:
                    raise broken_error(reader, found)
                broken.update(found)

            with bar, ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
                list(pool.map(decode, group_clips(reader, camera)))
            target.flush()
            if broken:
                with replace_atomically(self._broken_path) as note:
                    note.write_text(json.dumps(broken, indent=2) + "\n", encoding="utf-8")
            else:
                self._broken_path.unlink(missing_ok=True)


def _allocate(path: Path) -> None:
    """Claim a file's blocks on the disk: a memory map without them is killed when it is full."""
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not every file system can
                raise


def group_clips(reader: LeRobotReader, camera: str) -> list[list[Clip]]:
    """A camera's episodes, those of one file together; pictures in tables count as one file."""
    if camera not in reader.schema.video_keys:
        lengths = reader.episodes["length"].to_pylist()
        return [[Clip(n, reader.root, 0, length)] for n, length in enumerate(lengths)]
    files: dict[Path, list[Clip]] = {}
    for clip in reader.clips(camera):
        files.setdefault(clip.path, []).append(clip)
    return list(files.values())


def decode_clips(
    reader: LeRobotReader,
    camera: str,
    clips: list[Clip],
    target: np.ndarray | None,
    transform: ImageTransform | None,
    advance: object = None,
) -> dict[int, str]:
    """Decode one file's episodes into their rows of `target`; return what is broken, and why.

    A place that cannot be decoded spoils its own episode: the others of the file are sought.
    """
    starts, seen = reader.episode_starts, {clip.episode: 0 for clip in clips}
    reasons = dict.fromkeys(seen, "frames are missing")
    row_of = {
        clip.first + k: (clip.episode, int(starts[clip.episode]) + k)
        for clip in clips
        for k in range(clip.length)
    }

    def keep(number: int, image: np.ndarray) -> None:
        episode, row = row_of.pop(number)
        if target is not None and transform is not None:
            target[row] = transform.resize(image)
        seen[episode] += 1
        if callable(advance):
            advance()

    try:
        for number, image in _numbered(reader, camera, clips):
            if number in row_of:
                keep(number, image)
    except DataError as error:
        reasons = dict.fromkeys(seen, str(error.got or error))
        for clip in clips if camera in reader.schema.video_keys else ():
            wanted = [n for n in range(clip.first, clip.first + clip.length) if n in row_of]
            try:
                with contextlib.closing(VideoReader(clip.path, reader.rate_hz)) as video:
                    for number in wanted:
                        keep(number, video.frame(number))
            except DataError as own:
                reasons[clip.episode] = str(own.got or own)
    broken = {}
    for clip in clips:
        if seen[clip.episode] != clip.length:
            where = clip.path.name if camera in reader.schema.video_keys else "the table"
            have = f"{seen[clip.episode]} of {clip.length} frames in {where}"
            broken[clip.episode] = f"{have}: {reasons[clip.episode]}"
            if target is not None:
                target[starts[clip.episode] : starts[clip.episode + 1]] = 0
    return broken


def find_mended(
    reader: LeRobotReader, camera: str, broken: Collection[int], note: Path
) -> set[Path]:
    """Videos of the episodes that `note` calls broken which are newer than it.

    Another size is another content; what was damaged inside of a file has the same.
    """
    if not broken or camera not in reader.schema.video_keys:
        return set()
    noted_ns = note.stat().st_mtime_ns
    paths = {clip.path for clip in reader.clips(camera) if clip.episode in broken}
    return {path for path in paths if path.exists() and path.stat().st_mtime_ns > noted_ns}


def broken_error(reader: LeRobotReader, broken: Mapping[int, str]) -> DataError:
    """The one error for damaged videos: it names the episodes."""
    first = ", ".join(f"episode {number} ({broken[number]})" for number in sorted(broken)[:3])
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return DataError(
        f"{reader.root} has damaged videos",
        got=first + more,
        expected="every frame of every episode",
        fix="download or collect them again, or train without them: --skip-broken",
    )


def cache_key(reader: LeRobotReader, video_key: str, transform: ImageTransform) -> str:
    """Name of a cache: the size, and a hash of all that decides the frames' bytes."""
    decisive = {
        "version": _CACHE_VERSION,
        "content": reader.content_hash(video_key),
        "video": video_key,
        "size": transform.size,
        "crop": transform.crop,
        "interpolation": transform.interpolation,
    }
    text = json.dumps(decisive, sort_keys=True)
    return f"{transform.size}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _numbered(
    reader: LeRobotReader, camera: str, clips: list[Clip]
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of a video file, or of one episode's rows of a table."""
    if camera in reader.schema.video_keys:
        yield from decode_numbered(clips[0].path, reader.rate_hz)
        return
    pictures = TablePictures(reader, camera)
    start = int(reader.episode_starts[clips[0].episode])
    for number in range(clips[0].length):
        yield number, pictures.picture(start + number)
