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


def pool(lines: Sequence[Line]) -> dict[str, Any]:
    """What the episodes of a variant's policies in one environment say together.

    The policies act in the same scenes, so that their episodes are no independent trials:
    `interval` is Wilson's at the pooled rate with as many trials as there are scenes. It covers
    which scenes were drawn; how far training seeds lie apart, their own rates show.
    """
    row = summarise(lines)
    row.pop("failed_seeds")
    scenes = len({line["seed"] for line in lines})
    for key, successes in (("interval", "successes"), ("interval_end", "successes_end")):
        share = row[successes] * scenes / len(lines) if lines else 0.0
        row[key] = list(wilson_interval(share, scenes))
    return row


def compare(better: Iterable[Line], worse: Iterable[Line]) -> dict[str, Any]:
    """Is the first policy, or variant, better on the same environments and seeds?

    Where several policies of a variant were run, "repeat" of a line tells them apart, and those of
    the same repeat (training seed) are paired; a single policy is paired with each of the other's,
    whatever its own seed.

    Paired one-sided Wilcoxon signed-rank test of the successes, the difference of the rates, and
    two effect sizes: the matched-pairs rank-biserial correlation (-1..1) and the odds of winning a
    pair that differs. That test takes episodes of one training as independent; `differences` by
    repeat and `p_repeats`, the same test of those, take the training as the unit. One policy
    beside several is one training, however often it is paired: its `p_repeats` is None.
    """
    first, second = _by_repeat(better), _by_repeat(worse)
    alone = 1 in (len(first), len(second)) and len(first) != len(second)
    if len(first) == 1:
        first = dict.fromkeys(second, next(iter(first.values())))
    elif len(second) == 1:
        second = dict.fromkeys(first, next(iter(second.values())))
    by_repeat = {
        repeat: [first[repeat][key] - second[repeat][key] for key in sorted(keys)]
        for repeat in sorted(first.keys() & second.keys())
        if (keys := first[repeat].keys() & second[repeat].keys())
    }
    differences = np.array([value for values in by_repeat.values() for value in values])
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    means = {repeat: float(np.mean(values)) for repeat, values in by_repeat.items()}
    return {
        "pairs": len(differences),
        "wins": wins,
        "losses": losses,
        "difference": float(differences.mean()) if by_repeat else None,
        "p_value": sign_p(wins, losses),
        "rank_biserial": (wins - losses) / (wins + losses) if wins + losses else 0.0,
        "odds": wins / losses if losses else None,
        "differences": means,
        "p_repeats": None if alone else signed_rank_p(list(means.values())),
    }


def _by_repeat(lines: Iterable[Line]) -> dict[int, dict[tuple[str, int], float]]:
    """Success 0 or 1 by environment and seed, by repeat."""
    found: dict[int, dict[tuple[str, int], float]] = {}
    for line in lines:
        own = found.setdefault(line.get("repeat", 0), {})
        own[line["env"], line["seed"]] = float(bool(line["success"]))
    return found


def sign_p(wins: int, losses: int) -> float:
    """One-sided p value that wins are more than losses; 1 without either.

    The Wilcoxon signed-rank test of differences that are all -1, 0 or 1: zeros are dropped, all
    ranks are equal, and what is left is the sign test, computed exactly.
    """
    from scipy.stats import binomtest

    if not wins + losses:
        return 1.0
    return float(binomtest(wins, wins + losses, alternative="greater").pvalue)


def signed_rank_p(differences: Any) -> float:
    """One-sided p value of the Wilcoxon signed-rank test that differences are above zero.

    Zeros are dropped; 1 when nothing differs: then nothing speaks for the first. Differences are
    of rates: what lies closer together than 1e-9 is the same, not a rank of its own.
    """
    from scipy.stats import wilcoxon

    values = np.round(np.asarray(differences, float), 9)
    values = values[values != 0.0]
    if not len(values):
        return 1.0
    return float(wilcoxon(values, alternative="greater").pvalue)


def tell_p(value: float | None) -> str:
    """A p value as it is printed; a dash where there is none."""
    return "-" if value is None else f"{value:.2g}"
