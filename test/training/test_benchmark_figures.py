"""Success rates add up, comparisons are paired, and the p value is scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from training.benchmark.figures import average_axes, compare, signed_rank_p, summarise
from training.benchmark.paper import ROWS
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


def test_nothing_run_is_no_rate() -> None:
    row = summarise([])
    assert row["success_rate"] is None and row["interval"] == [0.0, 1.0]


@given(outcomes, outcomes)
def test_a_comparison_is_paired_and_turns_round(first: list[bool], second: list[bool]) -> None:
    one, two = compare(lines(first), lines(second)), compare(lines(second), lines(first))
    assert one["pairs"] == two["pairs"] == min(len(first), len(second))
    assert (one["wins"], one["losses"]) == (two["losses"], two["wins"])
    assert one["difference"] == pytest.approx(-two["difference"])
    assert one["rank_biserial"] == pytest.approx(-two["rank_biserial"])
    assert -1.0 <= one["rank_biserial"] <= 1.0 and 0.0 <= one["p_value"] <= 1.0
    if one["wins"] > one["losses"]:
        assert one["p_value"] <= two["p_value"]


def test_only_the_same_environment_and_seed_are_a_pair() -> None:
    result = compare(lines([True] * 3, "Carrot"), lines([False] * 5, "Plate"))
    assert result["pairs"] == 0 and result["difference"] is None and result["p_value"] == 1.0


@pytest.mark.parametrize(("wins", "losses"), [(30, 10), (60, 40), (25, 25), (100, 60)])
def test_for_yes_and_no_the_test_is_close_to_the_sign_test(wins: int, losses: int) -> None:
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 50)
    exact = binomtest(wins, wins + losses, alternative="greater").pvalue
    assert signed_rank_p(differences) == pytest.approx(exact, abs=0.06)


def test_axes_are_means_over_environments_as_in_the_paper() -> None:
    envs = {"a": {"success_rate": 0.2}, "b": {"success_rate": 0.6}, "c": {"success_rate": None}}
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
