"""What a process under measurement writes down: its timer's ticks, and where commands came from."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

VARIABLE = "VLA_ALIGN_BENCH_TRACE"


class Trace:
    """Collects in memory, writes once at the end: a file must not disturb what is measured.

    `ticks` are (kind, monotonic seconds) with kind "tick" for a timer's call and "reset" where the
    timer starts anew. `firsts` are the first commands of each plan: (observation's stamp, stamp of
    the command, seconds of inference), stamps in seconds. `work_ms` is the processor time of each
    call that sends a command: what Python does on the way to the arm.
    """

    def __init__(self) -> None:
        self._path = Path(os.environ[VARIABLE])
        self.ticks: list[tuple[str, float]] = []
        self.firsts: list[tuple[float, float, float]] = []
        self.work_ms: list[float] = []
        self.frames = 0
        self.infer_s: dict[float, float] = {}

    def tick(self) -> None:
        """The timer called."""
        self.ticks.append(("tick", time.monotonic()))

    def reset(self) -> None:
        """The timer starts a period now."""
        self.ticks.append(("reset", time.monotonic()))

    def first(self, observation_s: float, command_s: float) -> None:
        """The first command of the plan that answers an observation leaves."""
        self.firsts.append((observation_s, command_s, self.infer_s.get(observation_s, 0.0)))

    def write(self) -> None:
        """Write everything, for `read_trace`."""
        content = {
            "ticks": self.ticks,
            "firsts": self.firsts,
            "work_ms": self.work_ms,
            "frames": self.frames,
        }
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(self._path)
