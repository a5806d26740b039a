"""What this machine computes with, by name."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")  # of machines whose processor has no name, as a Jetson


def find_processor() -> str:
    """Name of the processor, such as "AMD EPYC"; of the board, or the architecture, without one."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    try:
        return BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return platform.processor() or platform.machine()
