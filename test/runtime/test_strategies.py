"""The strategies of chunk execution: what each executes where plans overlap, and how smoothly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.contract.spec import ActionSpec
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.chunks import ChunkBuffer
from vla_align_ros.runtime.strategies import (
    STRATEGIES,
    Ensemble,
    check_strategy,
    count_committed,
    find_strategy,
)

PERIOD_S = 0.2
HORIZON = 8
SAY = "put the carrot on the plate"


def make_chunk(stamp_s: float, seed: int, instruction: str = SAY) -> ActionChunk:
    actions = np.random.default_rng(seed).normal(size=(HORIZON, 7))
    actions[:, 6] = seed % 2
    return ActionChunk(actions, PERIOD_S, stamp_s, instruction)


def make_buffer(name: str, **settings: float) -> ChunkBuffer:
    buffer = ChunkBuffer(PERIOD_S, HORIZON, find_strategy(name, **settings))
    buffer.set_instruction(SAY)
    return buffer


def measure_jumps(name: str, *, delay_s: float = 0.08, seed: int = 0) -> np.ndarray:
    """Largest changes of the executed velocity from tick to tick, where plans disagree."""
    buffer, tick_s = make_buffer(name), 0.02
    rng = np.random.default_rng(seed)
    speeds = []
    for tick in range(300):
        now_s = tick * tick_s
        if tick % 10 == 4:  # a plan every 0.2 s, made of a picture that is 0.08 s old
            actions = np.zeros((HORIZON, 7))
            actions[:, 0] = 0.02 + 0.01 * rng.normal()  # one speed a plan: only hand-overs jump
            buffer.add(ActionChunk(actions, PERIOD_S, now_s - delay_s, SAY), now_s)
        action = buffer.action_at(now_s)
        if action is not None:
            speeds.append(action.action[0] / PERIOD_S)
    return np.abs(np.diff(speeds))


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_plan_alone_is_executed_as_it_is(name: str) -> None:
    buffer, chunk = make_buffer(name), make_chunk(10.0, seed=1)
    buffer.add(chunk, 10.0)
    for index in range(HORIZON):
        scheduled = buffer.action_at(10.0 + (index + 0.5) * PERIOD_S)
        if name == "queue" and index == 0:  # it starts its clock when it is first asked
            continue
        assert scheduled is not None
        assert scheduled.observation_stamp_s == 10.0 and scheduled.plan == 1
        if name != "queue":
            assert np.allclose(scheduled.action, chunk.actions[index])
            assert scheduled.index == index


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_is_executed_past_the_end_of_the_newest_plan(name: str) -> None:
    buffer = make_buffer(name)
    assert buffer.action_at(0.0) is None
    for number in range(3):
        buffer.add(make_chunk(0.1 * number, seed=number), 0.1 * number)
        buffer.action_at(0.1 * number)
    buffer.action_at(0.2 + HORIZON * PERIOD_S)  # the queue goes on to its last chunk here
    assert buffer.action_at(0.2 + 2 * HORIZON * PERIOD_S + 0.01) is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_new_instruction_leaves_nothing_of_the_old_plans(name: str) -> None:
    buffer = make_buffer(name)
    buffer.add(make_chunk(0.0, seed=1), 0.0)
    assert buffer.action_at(0.1) is not None
    buffer.set_instruction("lift the cup")
    assert buffer.action_at(0.1) is None
    fresh = make_chunk(0.1, seed=2, instruction="lift the cup")
    buffer.add(fresh, 0.15)
    scheduled = buffer.action_at(0.15)
    assert scheduled is not None and scheduled.instruction == "lift the cup"
    assert np.array_equal(scheduled.action, fresh.actions[0])


@given(
    delays=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    since_s=st.floats(0.0, 2.0),
    decay=st.floats(0.0, 1.0),
)
def test_the_ensemble_is_the_weighted_mean_of_the_literature(
    delays: list[int], since_s: float, decay: float
) -> None:
    buffer = ChunkBuffer(PERIOD_S, HORIZON, Ensemble(decay))
    buffer.set_instruction(SAY)
    stamps = np.cumsum(delays) * 0.07
    chunks = [make_chunk(float(stamp), seed=n) for n, stamp in enumerate(stamps)]
    for chunk in chunks:
        buffer.add(chunk, chunk.stamp_s)
    now = float(stamps[-1]) + since_s
    scheduled = buffer.action_at(now)
    rows = []
    for chunk in chunks:  # written after ACT's pseudo-code, on a table of (plan, time)
        index = math.floor((now - chunk.stamp_s) / PERIOD_S)
        rows.append(chunk.actions[index] if index < HORIZON else None)
    if rows[-1] is None:
        assert scheduled is None
        return
    covering = [row for row in rows if row is not None]
    weights = np.array([math.exp(-decay * i) for i in range(len(covering))])
    expected = (weights / weights.sum()) @ np.stack(covering)
    assert scheduled is not None
    assert np.allclose(scheduled.action[:6], expected[:6])
    assert scheduled.action[6] == covering[-1][6]


@given(now=st.floats(0.6, 1.2), seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_a_blend_ends_where_the_newest_plan_is(now: float, seeds: tuple[int, int]) -> None:
    blended, newest = make_buffer("blend", blend_s=0.1), make_buffer("newest")
    for buffer in (blended, newest):
        buffer.add(make_chunk(0.0, seeds[0]), 0.0)
        buffer.add(make_chunk(0.4, seeds[1]), 0.5)
    one, other = blended.action_at(now), newest.action_at(now)
    assert one is not None and other is not None
    assert np.allclose(one.action, other.action)


def test_a_blend_starts_where_the_old_plan_was_and_the_gripper_is_never_half() -> None:
    buffer, old, new = make_buffer("blend"), make_chunk(0.0, seed=2), make_chunk(0.4, seed=3)
    buffer.add(old, 0.0)
    buffer.add(new, 0.5)
    start, middle = buffer.action_at(0.5), buffer.action_at(0.55)
    assert start is not None and middle is not None
    assert np.allclose(start.action[:6], old.actions[2, :6])
    before = buffer.action_at(0.45)  # the clock was set back a little
    assert before is not None and np.allclose(before.action[:6], old.actions[2, :6])
    expected = 0.75 * old.actions[2, :6] + 0.25 * new.actions[0, :6]
    assert np.allclose(middle.action[:6], expected)
    assert start.action[6] == middle.action[6] == new.actions[0, 6]


def test_the_queue_plays_every_action_of_a_chunk_in_turn() -> None:
    buffer, first, second = make_buffer("queue"), make_chunk(0.0, seed=1), make_chunk(0.3, seed=2)
    buffer.add(first, 0.1)
    played = []
    for step in range(2 * HORIZON):
        scheduled = buffer.action_at(0.1 + step * PERIOD_S)
        assert scheduled is not None
        played.append(scheduled.action)
        if step == 1:
            buffer.add(second, 0.4)
    assert np.array_equal(played, np.concatenate([first.actions, second.actions]))
    assert buffer.action_at(0.1 + 2 * HORIZON * PERIOD_S) is None


@given(
    stamps=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=6).map(sorted),
    delay_s=st.floats(0.0, 2.0),
)
def test_the_queue_begins_no_plan_past_its_end_and_lets_none_last_longer(
    stamps: list[float], delay_s: float
) -> None:
    buffer, length_s = make_buffer("queue"), HORIZON * PERIOD_S
    begun: dict[int, float] = {}
    for tick in range(200):
        now_s = 0.05 * tick
        while stamps and stamps[0] + delay_s <= now_s:
            buffer.add(make_chunk(stamps.pop(0), seed=tick), now_s)
        scheduled = buffer.action_at(now_s)
        if scheduled is not None:
            began_s = begun.setdefault(scheduled.plan, now_s)
            assert began_s < scheduled.observation_stamp_s + length_s + 1e-9
            assert now_s < began_s + length_s + 1e-9


def test_smooth_strategies_hand_over_with_smaller_steps_than_abrupt_ones() -> None:
    worst = {name: measure_jumps(name).max() for name in STRATEGIES}
    assert worst["blend"] < 0.35 * worst["newest"]
    assert worst["ensemble"] < 0.8 * worst["newest"]


@given(
    st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 2)), min_size=1, max_size=4),
    st.floats(0.0, 0.8),
    st.integers(1, 8),
)
@example([(0.0, 0)], 1e-6, 8)  # the plan ends within the eighth period, by more than rounding
@example([(0.0, 0)], 1e-8, 8)
def test_what_is_committed_moves_the_arm_as_the_plans_would(
    plans: list[tuple[float, int]], ahead_s: float, count: int
) -> None:
    """By a second implementation: the mean of what is executed at a thousand moments."""
    buffer, stamp_s = make_buffer("rtc"), 10.0
    for seed, (later_s, told) in enumerate(plans):
        stamp_s += later_s
        buffer.add(make_chunk(stamp_s, seed), stamp_s, told=told)
    from_s = stamp_s + ahead_s
    committed = buffer.commit(from_s, count)
    assert committed is not None
    # What is less than a millionth of a period past an edge counts as on it (`_NOW` of strategies).
    periods = HORIZON - ahead_s / PERIOD_S + 1e-6
    assume(abs(periods - round(periods)) > 1e-9)
    whole = max(0, math.floor(periods))
    assert len(committed) == min(count, whole), "no period beyond the plans' end"
    for index, action in enumerate(committed):
        moments = from_s + (index + (np.arange(1000) + 0.5) / 1000) * PERIOD_S
        executed = [buffer.action_at(moment) for moment in moments]
        mean = np.mean([one.action for one in executed if one is not None], axis=0)
        np.testing.assert_allclose(action[:6], mean[:6], atol=0.02)


@pytest.mark.parametrize("name", STRATEGIES)
def test_nobody_changes_what_is_executed_or_committed(name: str) -> None:
    buffer = make_buffer(name)
    for seed in (1, 2):
        buffer.add(make_chunk(0.1 * seed, seed), 0.1 * seed)
    scheduled, committed = buffer.action_at(0.25), buffer.commit(0.25, 2)
    assert scheduled is not None and (committed is not None) == (name == "rtc")
    for actions in (scheduled.action, committed):
        assert actions is None or not actions.flags.writeable


def test_a_committed_grip_is_that_of_the_longer_part() -> None:
    buffer, actions = make_buffer("rtc"), np.zeros((HORIZON, 7))
    actions[1:, 6] = 1.0
    buffer.add(ActionChunk(actions, PERIOD_S, 0.0, SAY), 0.0)
    for share, grip in ((0.3, 0.0), (0.7, 1.0)):
        committed = buffer.commit(share * PERIOD_S, 1)
        assert committed is not None and committed[0, 6] == grip


def test_a_plan_takes_over_where_what_it_was_told_ends() -> None:
    buffer = make_buffer("rtc")
    buffer.add(make_chunk(10.0, seed=1), 10.0)
    buffer.add(make_chunk(10.1, seed=2), 10.15, told=1)
    moments = [buffer.action_at(10.225 + 0.05 * k) for k in range(4)]
    assert [one.plan for one in moments if one is not None] == [1, 1, 2, 2], "from 10.3 s on"
    alone = make_buffer("rtc")
    alone.add(make_chunk(10.1, seed=2), 10.15, told=1)
    scheduled = alone.action_at(10.2)
    assert scheduled is not None and scheduled.index == 0, "there is no other: it has them, too"


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_real_time_chunking_commits(name: str) -> None:
    buffer = make_buffer(name)
    assert buffer.commit(10.0, 2) is None, "nothing is planned"
    chunk = make_chunk(10.0, seed=1)
    buffer.add(chunk, 10.0)
    told = buffer.commit(10.0 + PERIOD_S, 2)
    if name != "rtc":
        assert told is None
        return
    np.testing.assert_allclose(told, chunk.actions[1:3], atol=1e-12)
    buffer.set_instruction("put the corn on the tray")
    assert buffer.commit(10.0 + PERIOD_S, 2) is None, "other words: nothing is decided"


def test_a_plan_that_goes_on_from_what_it_was_told_is_handed_over_without_a_step() -> None:
    """The policy's speed changes at random; told, it takes the last one up and changes slowly."""
    worst = {}
    for name in ("newest", "rtc"):
        buffer, speeds, rng = make_buffer(name), [], np.random.default_rng(0)
        for tick in range(300):
            now_s = tick * 0.02
            if tick % 10 == 4:
                actions = np.zeros((HORIZON, 7))
                actions[:, 0] = 0.02 + 0.01 * rng.normal()
                told = buffer.commit(now_s - 0.08, 1)
                if told is not None:
                    ramp = np.linspace(0.0, 1.0, HORIZON)
                    actions[:, 0] = told[-1, 0] + ramp * (actions[:, 0] - told[-1, 0])
                count = 0 if told is None else len(told)
                chunk = ActionChunk(actions, PERIOD_S, now_s - 0.08, SAY)
                buffer.add(chunk, now_s, told=count)
            action = buffer.action_at(now_s)
            if action is not None:
                speeds.append(action.action[0] / PERIOD_S)
        worst[name] = np.abs(np.diff(speeds)).max()
    assert worst["rtc"] < 0.3 * worst["newest"]


@pytest.mark.parametrize(
    ("delay_s", "count"),
    [(-5.0, 0), (0.0, 0), (0.01, 1), (0.2, 1), (0.1 + 0.1 + 1e-9, 1), (0.21, 2), (9.0, 3)],
)
def test_as_many_actions_are_decided_as_begin_during_the_delay(delay_s: float, count: int) -> None:
    """A clock that was set back gives a delay below zero; three is what this policy takes."""
    assert count_committed(delay_s, ActionSpec("base_link", 5.0, HORIZON, committed=3)) == count
    assert count_committed(delay_s, ActionSpec("base_link", 5.0, HORIZON)) == 0


def test_a_policy_that_takes_no_committed_actions_cannot_be_run_by_rtc() -> None:
    for strategy in (factory() for factory in STRATEGIES.values()):
        check_strategy(strategy, ActionSpec("base_link", 5.0, HORIZON, committed=2))
        if not strategy.commits:
            check_strategy(strategy, ActionSpec("base_link", 5.0, HORIZON))
    with pytest.raises(ConfigurationError, match=r"model\.head\.committed above 0.*chunk_strategy"):
        check_strategy(find_strategy("rtc"), ActionSpec("base_link", 5.0, HORIZON))


@pytest.mark.parametrize("replan_s", [0.0, 0.2])
def test_a_blend_that_outlasts_the_older_plan_is_refused(replan_s: float) -> None:
    action = ActionSpec("base_link", 5.0, HORIZON)
    longest_s = HORIZON / 5.0 - replan_s
    check_strategy(find_strategy("blend", blend_s=longest_s), action, replan_s)
    with pytest.raises(ConfigurationError, match=f"at most {longest_s:g} s.*smaller blend_s"):
        check_strategy(find_strategy("blend", blend_s=longest_s + 0.01), action, replan_s)


@pytest.mark.parametrize("name", ["fastest", ""])
def test_an_unknown_strategy_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigurationError, match="newest, queue, ensemble, blend, rtc"):
        find_strategy(name)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ensemble", {"decay": -1.0}), ("ensemble", {"decay": math.nan}), ("blend", {"blend_s": 0.0})],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        find_strategy(name, **settings)
