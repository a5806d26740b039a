"""From episodes to figures: success with intervals, and paired comparisons of policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vla_align_ros.runtime.statistics import wilson_interval

Line = Mapping[str, Any]


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
    """What the episodes of one policy in one environment say.

    `interval` is Wilson's at 95 %; `step_ms` the median over episodes of a step's time.
    """
    count = len(lines)
    successes, at_end, grasped = (
        sum(bool(line[key]) for line in lines) for key in ("success", "success_end", "grasped")
    )
    return {
        "successes": successes,
        "episodes": count,
        "success_rate": successes / count if count else None,
        "interval": list(wilson_interval(successes, count)),
        "successes_end": at_end,
        "interval_end": list(wilson_interval(at_end, count)),
        "grasped": grasped,
        "mean_steps": float(np.mean([line["steps"] for line in lines])) if count else None,
        "step_ms": _median(lines, "step_ms"),
        "step_cpu_ms": _median(lines, "step_cpu_ms"),
        "infer_ms": _median(lines, "infer_ms"),
        "failed_seeds": [line["seed"] for line in lines if not line["success"]],
    }


def _median(lines: Sequence[Line], key: str) -> float | None:
    values = [line[key] for line in lines if line[key] is not None]
    return float(np.median(values)) if values else None


def average_axes(
    envs: Mapping[str, Mapping[str, Any]], axes: Mapping[str, str]
) -> dict[str, float]:
    """Mean success rate of each axis over its environments, as the paper averages."""
    rates: dict[str, list[float]] = {}
    for name, row in envs.items():
        if row["success_rate"] is not None:
            rates.setdefault(axes[name], []).append(row["success_rate"])
    return {axis: float(np.mean(values)) for axis, values in rates.items()}


def compare(better: Iterable[Line], worse: Iterable[Line]) -> dict[str, Any]:
    """Is the first policy, or variant, better on the same environments and seeds?

    Where several policies of a variant were run, "repeat" of a line counts them, and those of the
    same count are paired.

    Paired one-sided Wilcoxon signed-rank test of the successes (ties at zero are dropped, as
    scipy does by default), the difference of the rates, and two effect sizes: the matched-pairs
    rank-biserial correlation (-1..1) and the odds of winning a pair that differs.
    """
    first, second = (
        {
            (line.get("repeat", 0), line["env"], line["seed"]): float(bool(line["success"]))
            for line in lines
        }
        for lines in (better, worse)
    )
    keys = sorted(first.keys() & second.keys())
    differences = np.array([first[key] - second[key] for key in keys])
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return {
        "pairs": len(keys),
        "wins": wins,
        "losses": losses,
        "difference": float(differences.mean()) if keys else None,
        "p_value": signed_rank_p(differences),
        "rank_biserial": (wins - losses) / (wins + losses) if wins + losses else 0.0,
        "odds": wins / losses if losses else None,
    }


def signed_rank_p(differences: Any) -> float:
    """One-sided p value of the Wilcoxon signed-rank test that differences are above zero.

    1 when nothing differs: then nothing speaks for the first.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, float)
    if not np.any(values):
        return 1.0
    return float(wilcoxon(values, alternative="greater").pvalue)
