"""The operator's rules: what is said when, and what counts as success."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.referee import EpisodeReferee, Plan, other_task

PLAN = Plan(episodes=3, first_seed=7, switch_episode=-1)
CARROT, CORN = "put the carrot on the plate", "put the corn on the plate"


def make_score(time_s: float = 0.0, *done: str) -> dict[str, Any]:
    tasks = [
        {
            "object": thing,
            "receptacle": vessel,
            "instruction": f"put the {thing} on the {vessel}",
            "succeeded": f"put the {thing} on the {vessel}" in done,
        }
        for thing in ("carrot", "corn")
        for vessel in ("tray", "plate")
    ]
    keys = ("frames_sent", "real_time_factor", "skipped_ticks", "commands")
    rest = dict.fromkeys((*keys, "tick_late_ms", "render_ms"), 0)
    return {
        "instruction": CARROT,
        "tasks": tasks,
        "time_s": time_s,
        "seed": 7,
        "shift": "none",
    } | rest


def begin(plan: Plan, index: int = 0) -> EpisodeReferee:
    referee = EpisodeReferee(plan, index)
    referee.begin(make_score())
    return referee


def test_the_other_task_names_another_object_on_the_same_vessel() -> None:
    assert other_task(make_score())["instruction"] == CORN


def test_a_scene_with_one_object_has_no_other_task() -> None:
    score = make_score()
    score["tasks"] = score["tasks"][:2]
    with pytest.raises(ConfigurationError, match="second object"):
        other_task(score)


def test_success_ends_an_episode() -> None:
    referee = begin(PLAN)
    assert referee.update(make_score(3.0)) is None
    assert referee.outcome is None
    referee.update(make_score(4.0, CARROT))
    assert referee.outcome == "success"
    assert referee.result()["success"]


def test_the_other_objects_success_is_none() -> None:
    referee = begin(PLAN)
    referee.update(make_score(4.0, CORN))
    assert referee.outcome is None
    referee.update(make_score(16.0, CORN))
    assert referee.outcome == "timeout"
    assert not referee.result()["success"]


def test_a_switch_says_the_other_task_and_judges_only_that() -> None:
    referee = begin(replace(PLAN, switch_episode=0))
    assert referee.update(make_score(1.9)) is None
    assert referee.update(make_score(2.0)) == CORN
    assert referee.update(make_score(5.0, CARROT)) is None
    assert referee.outcome is None
    referee.update(make_score(17.9))
    assert referee.outcome is None, "the new instruction has its own full time"
    referee.update(make_score(17.95, CORN))
    result = referee.result()
    assert result["outcome"] == "success"
    assert result["success"]
    assert result["switched_at_s"] == 2.0
    assert not result["original_success"]


@pytest.mark.parametrize(
    ("plan", "switched"),
    [
        (PLAN, []),
        (replace(PLAN, switch_episode=1), [1]),
        (replace(PLAN, episodes=1, switch_episode=1), [0]),
        (replace(PLAN, episodes=6, switch_every=2), [1, 3, 5]),
        (replace(PLAN, switch_episode=1, swap=True), []),
    ],
)
def test_which_episodes_are_switched(plan: Plan, switched: list[int]) -> None:
    assert [k for k in range(plan.episodes) if plan.switches(k)] == switched


def test_swap_tells_the_other_object_and_judges_the_first() -> None:
    plan = replace(PLAN, swap=True)
    referee = EpisodeReferee(plan, 0)
    assert referee.begin(make_score()) == CORN
    referee.update(make_score(5.0, CORN))
    result = referee.result()
    assert referee.outcome == "other_task_done"
    assert (result["success"], result["told_success"]) == (False, True)
    assert result["judged_instruction"] == CARROT
