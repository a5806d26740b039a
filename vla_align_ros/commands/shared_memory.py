"""What the doctor looks at in the shared memory by which Fast DDS hands pictures on."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from vla_align_ros.commands.findings import Finding, judge

SHM = Path("/dev/shm")
LEAST_FREE_BYTES = 64 << 20
LOCKS = tuple(f"{domain}_*_{kind}l" for domain in ("fastrtps", "fastdds") for kind in "es")
"""The lock files beside segments and ports, of Fast DDS 2 and of 3, exclusive and shared."""


def check_room() -> Finding:
    """See that there is room in /dev/shm, which containers often keep small."""
    try:
        free = shutil.disk_usage(SHM).free
    except OSError as error:
        return Finding("graph", "shared memory", False, str(error), "mount a tmpfs on /dev/shm")
    fix = "docker run --ipc host, or --shm-size 256m"
    return judge("graph", "shared memory", free >= LEAST_FREE_BYTES, f"{free >> 20} MiB free", fix)


def check_left_overs(folder: Path = SHM) -> Finding:
    """See that no killed process left its segments and ports behind.

    Fast DDS takes a left-over away only where it comes upon it, so that they fill the memory, and
    nodes of another user or another build may not find each other through them
    (eProsima/Fast-DDS, issues 2003, 2790 and 3535). Beside each lies a file that is locked while
    its process lives.
    """
    left = find_left_overs(folder)
    if not left:
        return Finding("graph", "left-overs", True, f"no segment of a killed process in {folder}")
    size = sum(map(_measure, left))
    found = f"{len(left)} segments or ports of killed processes, {size / 2**20:.1f} MiB"
    fix = f"when no ROS 2 process runs here: rm -f {folder}/*fastrtps_* {folder}/*fastdds_*"
    return Finding("graph", "left-overs", False, found, fix)


def find_left_overs(folder: Path = SHM) -> list[Path]:
    """The segments and ports of Fast DDS whose lock no process holds; closed ones are left out."""
    left = []
    for lock in sorted(path for pattern in LOCKS for path in folder.glob(pattern)):
        try:
            held = _is_held(lock)
        except OSError:
            continue  # gone meanwhile, or of a user whose files are closed to this one
        if not held:
            left.append(lock.with_name(lock.name[: -len("_el")]))
    return left


def _measure(segment: Path) -> int:
    try:
        return segment.stat().st_blocks * 512
    except OSError:
        return 0  # only its lock is left


def _is_held(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
