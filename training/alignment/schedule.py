"""How lambda changes over a run: constant as in the paper, warmed up, or decayed."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int, float], float]


def constant(step: int, total_steps: int, steps: int, final: float) -> float:
    """1 at every step (the paper's)."""
    return 1.0


def warmup(step: int, total_steps: int, steps: int, final: float) -> float:
    """Rise linearly over the first `steps` steps, from 1 / steps to 1, and stay there."""
    return min(1.0, (step + 1) / steps)


def linear_decay(step: int, total_steps: int, steps: int, final: float) -> float:
    """Fall linearly from 1 to `final` over `steps` steps (0: the whole run), and stay there."""
    return 1.0 + (final - 1.0) * _progress(step, steps or total_steps)


def cosine_decay(step: int, total_steps: int, steps: int, final: float) -> float:
    """Fall as half a cosine from 1 to `final` over `steps` steps (0: the whole run)."""
    fallen = 0.5 * (1.0 - math.cos(math.pi * _progress(step, steps or total_steps)))
    return 1.0 + (final - 1.0) * fallen


SCHEDULES: dict[str, Schedule] = {
    schedule.__name__: schedule for schedule in (constant, warmup, linear_decay, cosine_decay)
}


def _progress(step: int, steps: int) -> float:
    """Share of `steps` that is done at `step`: 0 at the first, 1 from step `steps` on."""
    return min(1.0, step / max(1, steps))
