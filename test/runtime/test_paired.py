"""The paired test is exact, states its power, and calls nothing proved that it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vla_align_ros.runtime.limits import BEHAVIOUR_LIMITS, BehaviourLimits
from vla_align_ros.runtime.paired import compute_power, find_worse, judge_pairs

LIMITS = BehaviourLimits(alpha=0.05, worse_by=0.2, power=0.8)


@given(st.integers(0, 60), st.integers(0, 60))
def test_p_is_the_binomial_tests_of_a_second_implementation(lost, won):
    if lost + won == 0:
        assert find_worse(0, 0) == 1.0
        return
    expected = stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue
    assert find_worse(lost, won) == pytest.approx(expected)


def test_power_is_how_often_simulated_pairs_are_found():
    pairs, drop, won = 60, 0.2, 0.05
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(4000):
        drawn = rng.random(pairs)
        lost, gained = (
            (drawn < drop + won).sum(),
            ((drawn >= drop + won) & (drawn < drop + 2 * won)).sum(),
        )
        found += find_worse(int(lost), int(gained)) < 0.05
    assert compute_power(pairs, drop, won, 0.05) == pytest.approx(found / 4000, abs=0.02)


@given(st.integers(1, 80), st.floats(0.01, 0.3))
def test_power_is_a_probability_that_grows_with_the_drop(pairs, won):
    small, large = (compute_power(pairs, drop, won, 0.05) for drop in (0.1, 0.4))
    assert 0.0 <= small <= large + 1e-9 <= 1.0 + 1e-9


def test_the_same_outcomes_are_not_worse_once_there_are_enough():
    outcomes = [True] * 45 + [False] * 5
    verdict = judge_pairs(outcomes, outcomes, LIMITS)
    assert verdict["ok"] and verdict["verdict"] == "not worse"
    assert (verdict["lost"], verdict["won"], verdict["p"]) == (0, 0, 1.0)
    assert verdict["power"] > 0.8


def test_too_few_episodes_decide_nothing():
    verdict = judge_pairs([True] * 8, [True] * 8, LIMITS)
    assert not verdict["ok"] and verdict["verdict"] == "undecided" and verdict["power"] < 0.8


def test_a_policy_that_loses_a_fifth_is_found():
    verdict = judge_pairs([True] * 50, [False] * 10 + [True] * 40, BEHAVIOUR_LIMITS)
    assert not verdict["ok"] and verdict["verdict"] == "worse" and verdict["p"] < 0.01
    assert (verdict["reference"], verdict["candidate"]) == (50, 40)


@given(st.integers(0, 11), st.integers(0, 11))
def test_beside_a_reference_that_hardly_succeeds_nothing_is_proved(reference, candidate):
    """Of fewer than 12 in 60 no fifth can be lost: not even total collapse could be found."""
    outcomes = ([k < successes for k in range(60)] for successes in (reference, candidate))
    verdict = judge_pairs(*outcomes, BEHAVIOUR_LIMITS)
    assert not verdict["ok"] and verdict["power"] == 0.0


def test_total_collapse_is_found_where_it_can_be():
    verdict = judge_pairs([True] * 12 + [False] * 48, [False] * 60, BEHAVIOUR_LIMITS)
    assert verdict["verdict"] == "worse"


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="argument 2"):
        judge_pairs([True], [True, False], LIMITS)
