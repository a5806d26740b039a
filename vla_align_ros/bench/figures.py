"""Turns traces into figures: how late a timer was, and percentiles that tell the whole story."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late each call of a timer was, in ms, and how many calls never came."""

    late_ms: tuple[float, ...]
    missed: int


def find_lateness(
    ticks: Sequence[tuple[str, float]], period_s: float, since_s: float, until_s: float
) -> Lateness:
    """Hold a timer's calls in [since_s, until_s] against its schedule.

    As rcl does: a call is due one period after the last due time; where that has passed already,
    the periods between are skipped (`missed`). A "reset" starts the schedule anew. The schedule's
    origin is a reset, or without one the earliest phase that any call had.
    """
    late: list[float] = []
    missed = 0
    for due_s, times in _split_runs(ticks, period_s, since_s, until_s):
        found = []
        next_s = times[0] if due_s is None else due_s
        for time_s in times:
            found.append(time_s - next_s)
            next_s += period_s
            if next_s < time_s:
                skipped = math.ceil((time_s - next_s) / period_s)
                missed += skipped
                next_s += skipped * period_s
        origin = min(found) if due_s is None else 0.0
        late.extend(1e3 * (value - origin) for value in found)
    return Lateness(tuple(late), missed)


def _split_runs(
    ticks: Sequence[tuple[str, float]], period_s: float, since_s: float, until_s: float
) -> list[tuple[float | None, list[float]]]:
    """Runs of calls between resets, each with the time that its first call was due, if known."""
    runs: list[tuple[float | None, list[float]]] = [(None, [])]
    for kind, time_s in ticks:
        if not since_s <= time_s <= until_s:
            continue
        if kind == "reset":
            runs.append((time_s + period_s, []))
        else:
            runs[-1][1].append(time_s)
    return [run for run in runs if run[1]]


def percentiles(samples_ms: Sequence[float]) -> dict[str, float | int | None]:
    """p50, p99 and the largest of samples, rounded to microseconds; None without any."""
    if not samples_ms:
        return {"p50": None, "p99": None, "max": None, "samples": 0}
    p50, p99 = np.percentile(samples_ms, (50, 99))
    return {
        "p50": round(float(p50), 3),
        "p99": round(float(p99), 3),
        "max": round(max(samples_ms), 3),
        "samples": len(samples_ms),
    }
