"""Whether a policy does worse than another on the same episodes, and whether one could tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vla_align_ros.runtime.limits import BehaviourLimits
from vla_align_ros.runtime.statistics import wilson_interval


def find_worse(lost: int, won: int) -> float:
    """Exact one-sided McNemar test: the chance of so many losses among the pairs that differ.

    Args:
        lost: pairs in which the reference succeeded and the candidate failed. won: the reverse.

    Returns:
        P(losses >= lost) if each differing pair is a loss or a win with equal chance; 1 without
        any.
    """
    return _tail(lost, lost + won)


def compute_power(pairs: int, worse_by: float, won_share: float, alpha: float) -> float:
    """Probability that the test finds a drop of the success rate.

    Args:
        pairs: of episodes. worse_by: the drop. won_share: of pairs that the candidate wins by
            chance; it loses that and `worse_by` more. alpha: significance of the test.
    """
    lost_share = min(1.0 - won_share, won_share + worse_by)
    differing = lost_share + won_share
    power = 0.0
    for count in range(1, pairs + 1):
        least = _critical(count, alpha)
        if least is None:
            continue
        share = lost_share / differing
        found = sum(_binomial(k, count, share) for k in range(least, count + 1))
        power += _binomial(count, pairs, differing) * found
    return min(1.0, power)


def judge_pairs(
    reference: Sequence[bool], candidate: Sequence[bool], limits: BehaviourLimits
) -> dict[str, Any]:
    """Judge two policies' successes on the same seeds, in the same order.

    Returns:
        {"ok", "episodes", "reference", "candidate" (successes), "intervals" (Wilson's, by name),
        "lost", "won", "p", "power", "worse_by", "verdict"}; ok only if the candidate is not
        significantly worse *and* the test had the power to find out. There is none where the
        reference succeeds too seldom to be able to lose as much as `limits.worse_by`.
    """
    pairs = list(zip(reference, candidate, strict=True))
    lost = sum(was and not now for was, now in pairs)
    won = sum(now and not was for was, now in pairs)
    count = len(pairs)
    p = find_worse(lost, won)
    by_chance = max(won, 1) / count if count else 0.0
    can_drop = sum(reference) >= limits.worse_by * count
    power = compute_power(count, limits.worse_by, by_chance, limits.alpha) if can_drop else 0.0
    verdict = "worse" if p < limits.alpha else "undecided" if power < limits.power else "not worse"
    successes = {"reference": sum(reference), "candidate": sum(candidate)}
    return {
        "ok": verdict == "not worse",
        "verdict": verdict,
        "episodes": count,
        **successes,
        "intervals": {name: list(wilson_interval(n, count)) for name, n in successes.items()},
        "lost": lost,
        "won": won,
        "p": p,
        "alpha": limits.alpha,
        "power": power,
        "worse_by": limits.worse_by,
    }


def _critical(count: int, alpha: float) -> int | None:
    """The fewest losses of `count` differing pairs that are significant."""
    for lost in range(count // 2, count + 1):
        if _tail(lost, count) < alpha:
            return lost
    return None


def _tail(least: int, count: int) -> float:
    """P(X >= least) for X of Binomial(count, 1/2), exactly."""
    ways = sum(math.comb(count, k) for k in range(least, count + 1))
    return float(ways / 2**count)


def _binomial(successes: int, trials: int, share: float) -> float:
    if share in (0.0, 1.0):
        return float(successes == round(trials * share))
    log = (
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(share)
        + (trials - successes) * math.log1p(-share)
    )
    return math.exp(log)
