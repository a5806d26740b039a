"""Notices that whoever decides at a rate was held up, so that it may not have read its messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_align_ros.runtime.watchdog import PERIODS

READING_PERIODS = 0.5  # how long reading what came meanwhile may take


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick. `since_s`: since the tick before it.

    `overrun_s`: nothing was decided for so long that the arm stands by the watchdog's zero or by
    its controller's timeout, and messages may wait that nobody has read; None otherwise. `read_s`:
    until when they were read: silence that is longer than that may not be theirs who sent them.
    """

    since_s: float
    overrun_s: float | None
    read_s: float


class Ticks:
    """Takes the times of ticks that are due every `period_s`; seconds on one monotonic clock.

    After a gap of two periods, the watchdog's limit, ticks are overrun for half a period: the
    executor reads in between. Callers use one thread.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._last_s = self._read_s = 0.0
        self._woke_s = -math.inf
        self._gap_s = 0.0

    def begin(self, now_s: float) -> None:
        """The ticks begin now, and nothing waits."""
        self._last_s = self._read_s = now_s
        self._woke_s = -math.inf

    def take(self, now_s: float) -> Tick:
        """One tick happens now."""
        since_s, self._last_s = now_s - self._last_s, now_s
        if since_s > PERIODS * self._period_s:
            self._woke_s, self._gap_s = now_s, since_s
        if now_s - self._woke_s < READING_PERIODS * self._period_s:
            return Tick(since_s, self._gap_s, self._read_s)
        self._read_s = now_s
        return Tick(since_s, None, now_s)
