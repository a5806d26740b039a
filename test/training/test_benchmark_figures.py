"""Success rates add up, comparisons are paired, and the p value is scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.benchmark.figures import (
    average_axes,
    compare,
    pool,
    sign_p,
    signed_rank_p,
    summarise,
    tell_p,
)
from training.benchmark.paper import ROWS
from training.benchmark.tables import write_comparison
from vla_align_ros.runtime.statistics import wilson_interval
from vla_align_ros.sim.put_on_plate.environments import SUITES

outcomes = st.lists(st.booleans(), min_size=1, max_size=60)


def lines(successes: list[bool], env: str = "Carrot") -> list[dict[str, Any]]:
    return [
        {
            "env": env,
            "seed": seed,
            "success": success,
            "success_end": success and seed % 2 == 0,
            "grasped": True,
            "steps": 80,
            "step_ms": 10.0 + seed,
            "step_cpu_ms": 8.0,
            "infer_ms": None,
        }
        for seed, success in enumerate(successes)
    ]


@given(outcomes)
def test_a_summary_adds_up(successes: list[bool]) -> None:
    row = summarise(lines(successes))
    count = len(successes)
    assert (row["episodes"], row["successes"]) == (count, sum(successes))
    assert row["successes_end"] <= row["successes"] <= row["grasped"]
    assert row["interval"] == list(wilson_interval(sum(successes), count))
    assert len(row["failed_seeds"]) == count - sum(successes)
    assert row["step_ms"] == pytest.approx(10.0 + (count - 1) / 2)
    assert row["infer_ms"] is None


def test_each_figure_of_a_summary_is_of_its_own_column() -> None:
    outcomes = [(True, True, True, 0.0), (True, False, True, 1.0), (True, False, True, 2.0)]
    outcomes += [(False, False, True, 9.0), (False, False, False, 100.0)]
    row = summarise(
        [
            {**line, "success": won, "success_end": at_end, "grasped": held, "step_ms": ms}
            for line, (won, at_end, held, ms) in zip(lines([True] * 5), outcomes, strict=True)
        ]
    )
    assert (row["successes"], row["successes_end"], row["grasped"]) == (3, 1, 4)
    assert row["success_rate"] == pytest.approx(0.6)
    assert row["interval"] == list(wilson_interval(3, 5))
    assert row["interval_end"] == list(wilson_interval(1, 5))
    assert row["step_ms"] == 2.0, "the median, which one slow episode does not move"
    assert row["failed_seeds"] == [3, 4]


def test_nothing_run_is_no_rate() -> None:
    row = summarise([])
    assert row["success_rate"] is None and row["interval"] == [0.0, 1.0]


@given(outcomes, outcomes)
@settings(max_examples=25, deadline=None)
def test_a_comparison_is_paired_and_turns_round(first: list[bool], second: list[bool]) -> None:
    one, two = compare(lines(first), lines(second)), compare(lines(second), lines(first))
    assert one["pairs"] == two["pairs"] == min(len(first), len(second))
    assert (one["wins"], one["losses"]) == (two["losses"], two["wins"])
    assert one["difference"] == pytest.approx(-two["difference"])
    assert one["rank_biserial"] == pytest.approx(-two["rank_biserial"])
    assert -1.0 <= one["rank_biserial"] <= 1.0 and 0.0 <= one["p_value"] <= 1.0
    if one["wins"] > one["losses"]:
        assert one["p_value"] <= two["p_value"]


def variant(*policies: list[bool], first: int = 0) -> list[dict[str, Any]]:
    return [
        {**line, "repeat": repeat}
        for repeat, successes in enumerate(policies, first)
        for line in lines(successes)
    ]


def test_training_seeds_are_paired_by_seed_whatever_is_missing() -> None:
    yes, no = [True] * 4, [False] * 4
    result = compare(variant(yes, no, yes), variant(no, yes, first=1))
    assert result["pairs"] == 8 and result["differences"] == {1: 0.0, 2: 0.0}


def test_a_single_policy_is_compared_with_every_training_seed() -> None:
    start, ends = lines([True] * 4), variant([True] * 4, [False] * 4, [False] * 4)
    result = compare(start, ends)
    assert (result["pairs"], result["wins"]) == (12, 8)
    assert result["differences"] == {0: 0.0, 1: 1.0, 2: 1.0}
    assert result["p_repeats"] is None, "one training is no three trials"
    assert compare(ends, start)["difference"] == pytest.approx(-2 / 3)
    assert compare(ends, start)["p_repeats"] is None


def test_two_single_policies_are_compared_whatever_their_training_seeds() -> None:
    result = compare(variant([True] * 4, first=3), variant([False] * 4, first=7))
    assert (result["pairs"], result["wins"], result["p_repeats"]) == (4, 4, 0.5)


def test_a_comparison_of_one_training_is_printed_without_its_p() -> None:
    row = compare(lines([True] * 4), variant([True] * 4, [False] * 4))
    assert "| - |" in write_comparison({"better": "start", "worse": "ends", **row})
    assert tell_p(None) == "-" and tell_p(0.03125) == "0.031"


def test_five_trainings_that_agree_are_worth_one_in_thirty_two() -> None:
    better, worse = variant(*[[True] * 10] * 5), variant(*[[True] * 8 + [False] * 2] * 5)
    result = compare(better, worse)
    assert result["p_repeats"] == pytest.approx(1 / 32)
    assert result["p_value"] < result["p_repeats"], "episodes of one training are not independent"


def test_training_seeds_in_the_same_scenes_are_no_further_trials() -> None:
    outcomes = [True] * 64 + [False] * 64
    row = pool(variant(outcomes, outcomes, outcomes))
    assert (row["successes"], row["episodes"]) == (192, 384)
    assert row["interval"] == pytest.approx(wilson_interval(64, 128))
    assert row["interval_end"] == pytest.approx(wilson_interval(32, 128))


def test_only_the_same_environment_and_seed_are_a_pair() -> None:
    result = compare(lines([True] * 3, "Carrot"), lines([False] * 5, "Plate"))
    assert result["pairs"] == 0 and result["difference"] is None and result["p_value"] == 1.0


def test_effect_sizes_are_of_the_pairs_that_differ() -> None:
    better = [True, True, True, False, True, True, False, False]
    worse = [False, False, False, True, True, True, False, False]
    result = compare(lines(better), lines(worse))
    assert (result["wins"], result["losses"], result["difference"]) == (3, 1, 0.25)
    assert (result["rank_biserial"], result["odds"]) == (0.5, 3.0)
    assert result["p_value"] == pytest.approx(5 / 16)
    assert compare(lines([True]), lines([False]))["odds"] is None, "no odds without a loss"


@pytest.mark.parametrize(("wins", "losses"), [(30, 10), (60, 40), (25, 25), (100, 60)])
def test_for_yes_and_no_the_test_is_the_sign_test(wins: int, losses: int) -> None:
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 50)
    assert signed_rank_p(differences) == pytest.approx(sign_p(wins, losses), abs=0.06)


def test_pairs_that_do_not_differ_say_nothing() -> None:
    """Three of three is one in eight, however many pairs were alike."""
    won, lost = [True] * 3 + [False] * 72, [False] * 75
    assert compare(lines(won), lines(lost))["p_value"] == pytest.approx(1 / 8)
    assert sign_p(0, 0) == 1.0


@given(st.lists(st.integers(-60, 60), min_size=1, max_size=8), st.integers(1, 5000))
@example([3, -3, 1], 7)  # where unrounded rates rank otherwise
@settings(max_examples=50, deadline=None)
def test_the_test_of_trainings_is_of_counts_whatever_rounding_does(
    counts: list[int], episodes: int
) -> None:
    rates = [(100 + count) / episodes - 100 / episodes for count in counts]
    assert signed_rank_p(rates) == pytest.approx(signed_rank_p(counts))


def test_axes_are_means_over_environments_as_in_the_paper() -> None:
    envs = {"a": {"success_rate": 0.0}, "b": {"success_rate": 0.8}, "c": {"success_rate": None}}
    axes = {"a": "vision", "b": "vision", "c": "semantic"}
    assert average_axes(envs, axes) == {"vision": pytest.approx(0.4)}


def test_the_papers_rows_give_the_papers_means() -> None:
    """Its own averages: Align .606 / .724 / .387, Default .534 / .660 / .333."""
    axes = {env.name: env.axis for env in SUITES["put_on_plate"]}
    for name, means in {"Align": (0.606, 0.724, 0.387), "Default": (0.534, 0.660, 0.333)}.items():
        envs = {key: {"success_rate": rate} for key, rate in ROWS["put_on_plate"][name].items()}
        found = average_axes(envs, axes)
        assert [found[axis] for axis in ("semantic", "vision", "execution")] == pytest.approx(
            list(means), abs=0.001
        )
    names = {env.name for env in SUITES["vl_think"]}
    assert all(set(rates) <= names for rates in ROWS["vl_think"].values())
