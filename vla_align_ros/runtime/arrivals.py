"""Counts what arrives of each source and what is lost, and notices one that is sent in vain."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

WINDOW_S = 2.0
SILENCE_S = 1.5  # with a check every 0.25 s a silent camera is noticed within 2 s
LOST_SHARE = 0.2
LEAST_LOST = 5
EVENTS_KEPT = 4096


class Trouble(str, Enum):
    """What is wrong with a source that somebody publishes.

    Nothing comes, much is lost, or nothing that comes can be used.
    """

    SILENT = "silent"
    LOSSY = "lossy"
    USELESS = "useless"


@dataclass(slots=True)
class Arrivals:
    """What is known of one source's messages; every time is monotonic seconds of the caller.

    `expected_hz` is the rate that its driver should have, 0 if nobody said. The middleware tells
    what it lost; `received`, `lost` and `largest_bytes` count from the start. A message that cannot
    be used is received all the same; `useless` says why the last such one could not.
    """

    expected_hz: float = 0.0
    received: int = 0
    lost: int = 0
    largest_bytes: int = 0
    publishers: int = 0
    useless: str = ""
    _came_s: deque[float] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    _lost_s: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    _since_s: float | None = None
    _useless_since_s: float | None = None

    def note(self, now_s: float, size_bytes: int = 0) -> None:
        """A message came."""
        self.received += 1
        self.largest_bytes = max(self.largest_bytes, size_bytes)
        self._came_s.append(now_s)
        while self._came_s[0] <= now_s - WINDOW_S:
            self._came_s.popleft()

    def note_use(self, now_s: float, useless: str | None) -> None:
        """Whether the message that came could be used: None, or why not."""
        if useless is None:
            self._useless_since_s = None
            return
        self.useless = useless
        if self._useless_since_s is None:
            self._useless_since_s = now_s

    def note_lost(self, count: int, now_s: float) -> None:
        """The middleware reports messages that were sent and did not come."""
        self.lost += count
        self._lost_s.append((now_s, count))

    def note_publishers(self, count: int, now_s: float) -> None:
        """How many publish on the topic now."""
        if count == 0:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        self.publishers = count

    def rate_hz(self, now_s: float) -> float:
        """Messages a second over the last two seconds."""
        return sum(came_s > now_s - WINDOW_S for came_s in self._came_s) / WINDOW_S

    def find_trouble(self, now_s: float) -> Trouble | None:
        """What is wrong at `now_s`; None if nothing, or if nobody publishes at all."""
        if self._since_s is None:
            return None
        heard_s = max(self._since_s, self._came_s[-1] if self._came_s else self._since_s)
        if now_s - heard_s >= SILENCE_S:
            return Trouble.SILENT
        if self._useless_since_s is not None and now_s - self._useless_since_s >= WINDOW_S:
            return Trouble.USELESS
        return Trouble.LOSSY if self._is_lossy(now_s) else None

    def _is_lossy(self, now_s: float) -> bool:
        came = sum(came_s > now_s - WINDOW_S for came_s in self._came_s)
        lost = sum(count for at_s, count in self._lost_s if at_s > now_s - WINDOW_S)
        if lost >= LEAST_LOST and lost >= LOST_SHARE * (lost + came):
            return True
        known_for_s = now_s - (now_s if self._since_s is None else self._since_s)
        few = came < (1.0 - LOST_SHARE) * self.expected_hz * WINDOW_S
        return known_for_s >= WINDOW_S and few
