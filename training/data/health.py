"""Finds damaged videos before training does, and remembers which episodes they spoil."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.frames import (
    CACHE_FOLDER,
    broken_error,
    decode_clips,
    find_mended,
    group_clips,
)
from training.data.reader import LeRobotReader
from training.data.sources import Source
from training.data.versions import Clip
from training.data.video import count_frames
from training.files import replace_atomically
from vla_align_ros.errors import DataError


def known_damage(source: Source, cache_dir: str | Path | None, *, skip: bool) -> dict[int, str]:
    """Episodes whose videos are damaged, with the reason; found once and remembered.

    Counts the frames in every file without decoding them, unless `check_videos` decoded them
    before. Raises DataError that names the episodes if there are any and `skip` is False.
    """
    found = check_videos(source.reader, source.selection.camera, cache_dir)
    if found and not skip:
        raise broken_error(source.reader, found)
    return found


def check_videos(
    reader: LeRobotReader,
    camera: str,
    cache_dir: str | Path | None = None,
    *,
    decode: bool = False,
    progress: bool = False,
) -> dict[int, str]:
    """Damaged episodes of a camera (a feature's whole name), with the reason; {} if all is well.

    `decode` looks at every picture, which alone finds damage inside a file that is whole by its
    table of contents. The answer is kept in `cache_dir`, by default in <dataset>/cache; of a
    damaged file until it is replaced.
    """
    from tqdm import tqdm

    path = _record_path(reader, camera, cache_dir)
    known = _read_record(path)
    found: dict[int, str] = {}
    groups = group_clips(reader, camera)
    if known is not None and (known["decoded"] or not decode):
        found = {int(number): str(reason) for number, reason in known["broken"].items()}
        mended = find_mended(reader, camera, found, path)
        if not mended:
            return found
        decode = bool(known["decoded"])
        groups = [clips for clips in groups if clips[0].path in mended]
        again = {clip.episode for clips in groups for clip in clips}
        found = {number: reason for number, reason in found.items() if number not in again}
    for clips in tqdm(groups, desc="checking", unit="file", disable=not progress):
        if decode:
            found |= decode_clips(reader, camera, clips, None, None)
        elif camera in reader.schema.video_keys:
            found |= _count(reader, clips)
    record = {"decoded": decode, "broken": {str(k): v for k, v in sorted(found.items())}}
    try:
        with replace_atomically(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError:  # a read-only data set: it is checked again the next time
        pass
    return found


def check_numbers(reader: LeRobotReader, names: Sequence[str]) -> dict[int, str]:
    """Episodes in which one of these columns holds NaN or infinity, with the reason.

    Columns that the data do not have are passed over.
    """
    held = [name for name in names if name in reader.schema.table_keys]
    columns = reader.columns([*held, "episode_index"])
    episodes, found = columns["episode_index"].astype(np.int64), dict[int, list[str]]()
    for name in held:
        finite = np.isfinite(columns[name]).reshape(len(episodes), -1).all(axis=1)
        numbers, counts = np.unique(episodes[~finite], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            found.setdefault(number, []).append(f"{name} is not finite in {count} frames")
    return {number: ", ".join(reasons) for number, reasons in sorted(found.items())}


def _count(reader: LeRobotReader, clips: list[Clip]) -> dict[int, str]:
    """Episodes of one file that lack frames, judged by the file's packets."""
    try:
        numbers, reason = count_frames(clips[0].path, reader.rate_hz), "frames are missing"
    except DataError as error:
        numbers, reason = set(), str(error.got)
    broken = {}
    for clip in clips:
        have = sum(number in numbers for number in range(clip.first, clip.first + clip.length))
        if have != clip.length:
            broken[clip.episode] = f"{have} of {clip.length} frames in {clip.path.name}: {reason}"
    return broken


def _record_path(reader: LeRobotReader, camera: str, cache_dir: str | Path | None) -> Path:
    folder = Path(cache_dir) if cache_dir is not None else reader.root / CACHE_FOLDER
    key = hashlib.sha256(f"{reader.content_hash(camera)}{camera}".encode()).hexdigest()[:16]
    return folder / f"videos-{key}.json"


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"decoded", "broken"} <= set(record)
    return record if whole else None
