"""Finds the samples that belong to one instant, by the stamps of their senders. Reads no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vla_align_ros.errors import ConfigurationError

T = TypeVar("T")
KEPT_SAMPLES = 16  # of the others, while one source is silent


@dataclass(frozen=True, slots=True, eq=False)
class Sample(Generic[T]):
    """One message's content with its stamp (sender's clock) and arrival (monotonic), seconds."""

    value: T
    stamp_s: float
    arrived_s: float


class Synchroniser(Generic[T]):
    """Puts samples of several sources together whose stamps lie within `tolerance_s`.

    A set is complete once every source has reached the stamp of the slowest one, so that both
    neighbours of that stamp are known: the nearest are taken, and nothing is guessed. Sources of
    one rate thus give a set a period, sources of different rates one for each sample of the
    slowest; their stamps go back no more than the sources' do. With one source every sample is a
    set.

    Raises ConfigurationError without sources, or on a tolerance that is no number above 0.
    """

    def __init__(self, names: Sequence[str], tolerance_s: float) -> None:
        if not names or not (math.isfinite(tolerance_s) and tolerance_s > 0):
            raise ConfigurationError(
                "samples cannot be put together",
                got=f"sources {list(names)}, tolerance {tolerance_s} s",
                expected="one source or more, and a tolerance above 0 s",
                fix="correct sync_tolerance_s",
            )
        self.tolerance_s = tolerance_s
        self.spread_s: float | None = None
        """Between the oldest and the newest stamp of the last attempt; None before the first."""
        self._recent: dict[str, deque[Sample[T]]] = {
            name: deque(maxlen=KEPT_SAMPLES) for name in names
        }
        self._last: dict[str, Sample[T]] = {}

    def put(self, name: str, sample: Sample[T]) -> dict[str, Sample[T]] | None:
        """Take a sample of a source; the set that it completes, by name, or None.

        A source whose stamps go back starts anew (its clock or its driver did).
        """
        recent = self._recent[name]
        if recent and sample.stamp_s < recent[-1].stamp_s:
            recent.clear()
        recent.append(sample)
        if not all(self._recent.values()):
            return None
        anchor_s = min(samples[-1].stamp_s for samples in self._recent.values())
        found = {
            name: min(reversed(samples), key=lambda seen: abs(seen.stamp_s - anchor_s))
            for name, samples in self._recent.items()
        }
        for samples in self._recent.values():
            while len(samples) > 1 and samples[1].stamp_s <= anchor_s:
                samples.popleft()  # no later anchor is nearer to it than to its successor
        stamps = [seen.stamp_s for seen in found.values()]
        self.spread_s = max(stamps) - min(stamps)
        known = all(seen is self._last.get(name) for name, seen in found.items())
        if self.spread_s > self.tolerance_s or known:
            return None
        self._last = found
        return found

    def clear(self) -> None:
        """Forget every sample."""
        for recent in self._recent.values():
            recent.clear()
        self.spread_s = None
