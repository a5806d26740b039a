"""How busy a machine is with other things while something is measured on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)  # idle, iowait


class Neighbours:
    """From construction to `describe`: the share of all processors that others used.

    Own is this process with its children that have ended; so end them before.
    """

    def __init__(self) -> None:
        self._busy_s, self._all_s = read_processor_s()
        self._own_s = _own_s()

    def describe(self) -> dict[str, Any]:
        """{"others": share in 0..1, "own": share, "load_average": of one minute}."""
        busy_s, all_s = read_processor_s()
        span_s = max(all_s - self._all_s, 1e-9)
        own = (_own_s() - self._own_s) / span_s
        others = max(0.0, (busy_s - self._busy_s) / span_s - own)
        return {
            "others": round(others, 3),
            "own": round(own, 3),
            "load_average": round(os.getloadavg()[0], 2),
        }


def read_processor_s() -> tuple[float, float]:
    """Seconds that all processors were busy, and were there at all, since the machine started."""
    fields = [int(word) for word in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    idle = sum(fields[index] for index in IDLE_FIELDS)
    return (sum(fields) - idle) / tick, sum(fields) / tick


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
