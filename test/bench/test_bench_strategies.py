"""The comparison of strategies plans as the node does, and its figures are what it says."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_policy import HORIZON, make_bundle, make_spec

from vla_align_ros.bench.cli_strategies import add_arguments, run, write_table
from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.strategies import STRATEGIES

if importlib.util.find_spec("mujoco") is None:  # importing it here would choose how it draws
    pytest.skip("needs the extra [sim]", allow_module_level=True)

SAY = "put the carrot on the plate"


class Camera:
    """What a pilot needs of a simulator; counts the looks."""

    def __init__(self) -> None:
        self.looks = 0

    def render(self) -> np.ndarray:
        self.looks += 1
        return np.zeros((24, 32, 3), np.uint8)

    def state(self) -> np.ndarray:
        return np.zeros(7, np.float32)


class Numbered:
    """A policy whose plans are numbered in their first value."""

    def __init__(self, committed: int) -> None:
        self.spec = make_spec(committed=committed)
        self.seen: list[Observation] = []

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        actions = np.zeros((HORIZON, 7))
        actions[:, 0] = len(self.seen)
        return ActionChunk(actions, 0.2, observation.stamp_s, observation.instruction)


def fly(
    strategy: str, *, latency_s: float, replan_s: float, committed: int = 2
) -> tuple[Numbered, Camera, list[int | None]]:
    """Half a second of 0.02 s ticks: the plan that each was of."""
    from vla_align_ros.bench.handover import Pilot

    policy, camera = Numbered(committed), Camera()
    pilot = Pilot(policy, strategy, latency_s, replan_s)  # type: ignore[arg-type]
    pilot.buffer.set_instruction(SAY)
    actions = [pilot.act(camera, tick * 0.02) for tick in range(26)]  # type: ignore[arg-type]
    return policy, camera, [None if action is None else action.plan for action in actions]


def test_a_plan_takes_effect_after_the_latency_and_no_other_is_begun_before() -> None:
    policy, camera, plans = fly("newest", latency_s=0.1, replan_s=0.0)
    assert [round(seen.stamp_s, 9) for seen in policy.seen] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert camera.looks == 6
    assert plans == [None] * 5 + [plan for plan in range(1, 5) for _ in range(5)] + [5]


def test_it_looks_no_more_often_than_it_is_told_to() -> None:
    policy, _, _ = fly("newest", latency_s=0.04, replan_s=0.2)
    assert [round(seen.stamp_s, 9) for seen in policy.seen] == [0.0, 0.2, 0.4]


@pytest.mark.parametrize(("latency_s", "count"), [(0.1, 1), (0.2, 1), (0.24, 2)])
def test_rtc_tells_the_policy_what_is_executed_meanwhile(latency_s: float, count: int) -> None:
    policy, _, _ = fly("rtc", latency_s=latency_s, replan_s=0.0)
    assert policy.seen[0].committed is None
    told = policy.seen[1].committed
    assert told is not None and told[:, 0].tolist() == [1.0] * count


def test_others_tell_it_nothing() -> None:
    policy, _, _ = fly("blend", latency_s=0.1, replan_s=0.0)
    assert all(seen.committed is None for seen in policy.seen)


def test_jerk_and_steps_are_those_of_the_velocities() -> None:
    from vla_align_ros.bench.handover import TICK_S, Drive, measure_jerk

    velocity = np.zeros((6, 3))
    velocity[:, 0] = [9.0, 0.0, 0.0, 0.1, 0.1, 0.1]  # the first tick is of no plan
    found = measure_jerk([Drive(velocity, np.array([0, 1, 1, 2, 2, 3]), None)])
    assert found["handover_step_mm_s_p50"] == pytest.approx(50.0), "of 100 and 0"
    jerks = np.array([0.1, 0.1, 0.0]) / TICK_S**2
    assert found["jerk_rms_m_s3"] == pytest.approx(np.sqrt(np.mean(jerks**2)), abs=0.01)


def test_the_reaction_is_the_first_command_that_differs() -> None:
    from vla_align_ros.bench.handover import CHANGE_S, TICK_S, Drive, find_reaction_s

    plain = np.zeros((100, 3))
    changed = plain.copy()
    changed[round(CHANGE_S / TICK_S) + 7 :, 1] = 0.03
    plans = np.ones(100, dtype=np.int64)
    answer = find_reaction_s(Drive(plain, plans, None), Drive(changed, plans, None))
    assert answer == pytest.approx(7 * TICK_S)
    assert find_reaction_s(Drive(plain, plans, None), Drive(plain, plans, None)) is None


def test_the_command_compares_what_the_policy_can_do(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path).path
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = [
        "--bundle",
        str(bundle),
        "--scenes",
        "1",
        "--episodes",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    report = run(parser.parse_args(words))
    rows = {name: row for name, row in report.items() if isinstance(row, dict)}
    assert set(rows) == set(STRATEGIES) - {"rtc"}, "this one takes no committed actions"
    assert report["latency_s"] == 0.1
    for row in rows.values():
        assert row["episodes"] == 1 and row["successes"] in (0, 1)
        assert row["reaction_to_words_s"]["median"] == pytest.approx(0.1, abs=0.03)
    assert json.loads((tmp_path / "out/strategies.json").read_text()) == report
    assert (tmp_path / "out/table.md").read_text().splitlines() == write_table(report)


def test_a_table_without_episodes_has_no_column_for_them() -> None:
    figures: dict[str, Any] = dict.fromkeys(
        ("handover_step_mm_s_p50", "handover_step_mm_s_p99", "jerk_rms_m_s3", "jerk_p99_m_s3"), 1.5
    )
    figures |= {f"reaction_to_{what}_s": {"median": None} for what in ("words", "moved_object")}
    (head, _, row) = write_table({"scenes": 1, "newest": figures})
    assert "success" not in head and row.endswith("| None | None |")


@pytest.mark.parametrize(
    "words",
    [["--scenes", "0"], ["--episodes", "-1"], ["--latency-ms", "-1"], ["--replan-ms", "-1"]],
)
def test_nothing_to_compare_is_one_clear_error(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigurationError, match="Nothing to compare"):
        run(parser.parse_args(words))
