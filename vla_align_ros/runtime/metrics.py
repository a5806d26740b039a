"""Counts and times what the runtime does, cheaply enough to be always on."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

TOTAL = "total"
STAGES = ("transport", "wait", "prepare", "infer", "decode", TOTAL)
WINDOW = 4096


class Metrics:
    """Latencies a stage, rates with jitter, and counters; written by two threads, read by a third.

    Stages, in milliseconds: `transport` camera stamp to arrival, `wait` arrival to the start of
    inference, `prepare`, `infer`, `decode`, and `total` camera stamp to the first command that
    follows from it. Percentiles cover the last `WINDOW` samples, which may be minutes; the sum and
    the count of `total` go on from the start, so that who reads twice has the mean in between.
    `snapshot` names stay.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency_ms: dict[str, deque[float]] = {s: deque(maxlen=WINDOW) for s in STAGES}
        self._total_ms, self._totals = 0.0, 0
        self._count: Counter[str] = Counter()
        self._intervals_s: dict[str, deque[float]] = {}
        self._last_s: dict[str, float] = {}

    def observe_ms(self, stage: str, value_ms: float) -> None:
        """Record one latency in ms of one of `STAGES`."""
        with self._lock:
            self._latency_ms[stage].append(value_ms)
            if stage == TOTAL:
                self._total_ms += value_ms
                self._totals += 1

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._count[name] += by

    def counted(self, name: str) -> int:
        """The value of one counter."""
        with self._lock:
            return self._count[name]

    def tick(self, series: str, now_s: float) -> None:
        """Record that an event of a regular series happened at `now_s` (a monotonic clock)."""
        with self._lock:
            last_s = self._last_s.get(series)
            if last_s is not None:
                window = self._intervals_s.setdefault(series, deque(maxlen=WINDOW))
                window.append(now_s - last_s)
            self._last_s[series] = now_s

    def pause(self, series: str) -> None:
        """End a run of a series: the silence until its next event is no interval."""
        with self._lock:
            self._last_s.pop(series, None)

    def percentile_ms(self, stage: str, percent: float) -> float | None:
        """Percentile (0..100) of a stage's latency in ms, None without samples."""
        with self._lock:
            samples = list(self._latency_ms[stage])
        return float(np.percentile(samples, percent)) if samples else None

    def snapshot(self) -> dict[str, float | int]:
        """All figures by stable names; a latency or rate without samples is left out.

        `latency_<stage>_{p50,p99}_ms`, `total_latency_{sum_ms,count}`, `<series>_rate_hz`,
        `<series>_jitter_{p50,p99}_ms` (distance of the interval from its median), and every counter
        by its name.
        """
        with self._lock:
            latency = {stage: list(samples) for stage, samples in self._latency_ms.items()}
            intervals = {series: list(samples) for series, samples in self._intervals_s.items()}
            figures: dict[str, float | int] = dict(self._count)
            if self._totals:
                figures["total_latency_sum_ms"] = self._total_ms
                figures["total_latency_count"] = self._totals
        for stage, samples in latency.items():
            figures.update(_percentiles(f"latency_{stage}", samples))
        for series, samples in intervals.items():
            median_s = float(np.median(samples))
            if median_s > 0:
                figures[f"{series}_rate_hz"] = len(samples) / float(np.sum(samples))
            jitter_ms = [1e3 * abs(interval - median_s) for interval in samples]
            figures.update(_percentiles(f"{series}_jitter", jitter_ms))
        return figures


def _percentiles(name: str, samples: Iterable[float]) -> dict[str, float]:
    values = np.fromiter(samples, float)
    if not values.size:
        return {}
    p50, p99 = np.percentile(values, (50, 99))
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}
