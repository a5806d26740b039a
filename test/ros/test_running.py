"""A node's process keeps the memory of its pictures: none of them is mapped page by page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PICTURES, BYTES = 200, 640 * 480 * 3
COUNT_FAULTS = f"""
import resource, sys
from vla_align_ros.ros.running import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
bytes({BYTES})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({PICTURES}):
    one, other = bytearray({BYTES}), bytearray({BYTES})
    one[::4096] = other[::4096] = b"x" * len(one[::4096])
    del one, other
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_pictures_memory_is_used_again() -> None:
    faults = {
        word: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, word], text=True))
        for word in ("keep", "leave")
    }
    pages = 2 * BYTES // 4096
    assert faults["keep"] < 4 * pages, faults
    assert faults["keep"] < faults["leave"] / 4, faults
