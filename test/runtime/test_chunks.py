"""The chunk buffer puts each action in its place in time and forgets what is out of date."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.errors import ConfigurationError, ContractError
from vla_align_ros.runtime.chunks import ChunkBuffer

PERIOD_S = 0.2
HORIZON = 4
SAY = "put the carrot on the plate"


def make_chunk(
    stamp_s: float = 0.0,
    *,
    instruction: str = SAY,
    period_s: float = PERIOD_S,
    horizon: int = HORIZON,
    mark: float = 0.0,
) -> ActionChunk:
    actions = np.zeros((horizon, 7))
    actions[:, 0] = np.arange(horizon) + mark
    return ActionChunk(actions, period_s, stamp_s, instruction)


def make_buffer(period_s: float = PERIOD_S, horizon: int = HORIZON) -> ChunkBuffer:
    buffer = ChunkBuffer(period_s, horizon)
    buffer.set_instruction(SAY)
    return buffer


@given(
    stamp_s=st.floats(0, 2e9),
    period_s=st.floats(0.01, 2.0),
    horizon=st.integers(1, 64),
    share=st.floats(-2.0, 3.0),
)
def test_the_clock_alone_tells_the_action(
    stamp_s: float, period_s: float, horizon: int, share: float
) -> None:
    buffer = make_buffer(period_s, horizon)
    assert buffer.add(make_chunk(stamp_s, period_s=period_s, horizon=horizon))
    now_s = stamp_s + share * horizon * period_s
    elapsed = (now_s - stamp_s) / period_s
    scheduled = buffer.action_at(now_s)
    if elapsed < -1 or elapsed >= horizon:
        assert scheduled is None
    else:
        assert scheduled is not None
        assert scheduled.index == max(0, math.floor(elapsed))
        assert scheduled.action[0] == scheduled.index
        assert scheduled.observation_stamp_s == stamp_s
        assert scheduled.instruction == SAY
        with pytest.raises(ValueError, match="read-only"):
            scheduled.action[0] = 1.0


@given(
    stamps=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    now=st.floats(0, 60),
)
def test_the_newest_observation_rules_in_whatever_order_chunks_come(
    stamps: list[int], now: float
) -> None:
    buffer = make_buffer()
    kept, clock = [], 0.0
    for stamp in stamps:
        clock = max(clock, 0.1 * stamp)
        kept.append(buffer.add(make_chunk(0.1 * stamp, mark=100.0 * stamp), clock))
    newest = -1
    for stamp, added in zip(stamps, kept, strict=True):
        assert added == (stamp >= newest)
        newest = max(newest, stamp)
    assert buffer.accepted == sum(kept)
    scheduled = buffer.action_at(0.1 * now)
    if scheduled is not None:
        assert scheduled.observation_stamp_s == 0.1 * newest
    assert buffer.end_s() == pytest.approx(0.1 * newest + HORIZON * PERIOD_S)


def test_nothing_is_planned_before_the_first_chunk() -> None:
    buffer = make_buffer()
    assert buffer.action_at(0.0) is None
    assert buffer.end_s() is None


def test_a_new_instruction_drops_what_was_planned_and_what_is_still_on_its_way() -> None:
    buffer = make_buffer()
    buffer.add(make_chunk())
    assert buffer.set_instruction("lift the cup")
    assert buffer.action_at(0.0) is None
    assert not buffer.add(make_chunk(0.1)), "an answer to the old words was taken"
    assert buffer.add(make_chunk(0.1, instruction="lift the cup"))


def test_what_was_refused_is_told_until_a_plan_is_taken_or_the_turn_ends() -> None:
    buffer = make_buffer()
    for begin_anew in (
        lambda: buffer.add(make_chunk(0.1), 0.1),
        buffer.clear,
        lambda: buffer.set_instruction(None),
    ):
        buffer.add(make_chunk(9.0), 0.0)
        assert buffer.ahead_s == 9.0
        begin_anew()
        assert buffer.ahead_s is None


def test_repeating_an_instruction_keeps_the_plan() -> None:
    buffer = make_buffer()
    buffer.add(make_chunk())
    assert not buffer.set_instruction(SAY)
    assert buffer.action_at(0.0) is not None


def test_without_an_instruction_nothing_is_accepted() -> None:
    buffer = ChunkBuffer(PERIOD_S, HORIZON)
    assert not buffer.add(make_chunk())
    buffer.set_instruction(SAY)
    buffer.add(make_chunk())
    buffer.set_instruction(None)
    assert buffer.action_at(0.0) is None


def test_clearing_keeps_the_instruction_and_takes_older_stamps_again() -> None:
    buffer = make_buffer()
    buffer.add(make_chunk(5.0))
    buffer.clear()
    assert buffer.action_at(5.0) is None
    assert buffer.instruction == SAY
    assert buffer.add(make_chunk(1.0))


@given(ahead_s=st.floats(-1.0, 60.0), back_s=st.floats(0.0, 60.0))
def test_no_stamp_from_ahead_of_the_clock_keeps_out_the_plans_of_now(
    ahead_s: float, back_s: float
) -> None:
    buffer, stamp_s = make_buffer(), 100.0 + ahead_s
    # Within rounding of a period either will do.
    assume(min(abs(ahead_s - PERIOD_S), abs(ahead_s + back_s - PERIOD_S)) > 1e-9)
    early = buffer.add(make_chunk(stamp_s), 100.0)
    assert early == (stamp_s <= 100.0 + PERIOD_S), "further ahead than a period is no plan for now"
    assert buffer.ahead_s == (None if early else pytest.approx(ahead_s))
    now_s = 100.0 - back_s  # the clock is set back, and somebody plans on a picture of now
    rules = early and now_s < stamp_s <= now_s + PERIOD_S
    assert buffer.add(make_chunk(now_s), now_s) == (not rules)
    assert buffer.action_at(now_s) is not None


@given(ahead_s=st.sampled_from([0.1, 0.2, 0.3]), now_s=st.floats(0.0, 1e9))
def test_a_plan_about_a_period_ahead_is_refused_or_executed(ahead_s: float, now_s: float) -> None:
    buffer = ChunkBuffer(ahead_s, HORIZON)
    buffer.set_instruction(SAY)
    chunk = make_chunk(now_s + ahead_s, period_s=ahead_s)
    assert buffer.add(chunk, now_s) == (buffer.action_at(now_s) is not None)


@pytest.mark.parametrize("start", ["clear", "words", "words and back"])
def test_what_was_begun_before_a_new_start_is_refused_whatever_its_stamp(start: str) -> None:
    buffer = make_buffer()
    begun = buffer.turn
    if start == "clear":
        buffer.clear()
    else:
        buffer.set_instruction("lift the cup")
    if start == "words and back":
        buffer.set_instruction(SAY)
    words = buffer.instruction or ""
    assert not buffer.add(make_chunk(instruction=words), turn=begun)
    assert buffer.add(make_chunk(instruction=words), turn=buffer.turn)


def test_what_answers_a_picture_of_before_a_new_start_is_refused_in_any_turn() -> None:
    buffer = make_buffer()
    buffer.clear(since_s=5.0)
    assert not buffer.add(make_chunk(4.99), 5.2, turn=buffer.turn)
    assert buffer.add(make_chunk(5.0), 5.2, turn=buffer.turn)
    buffer.clear()
    assert buffer.add(make_chunk(4.0), 5.4, turn=buffer.turn), "no older start counts any more"


def test_what_was_begun_before_plans_were_dropped_may_still_come() -> None:
    buffer = make_buffer()
    begun = buffer.turn
    buffer.add(make_chunk())
    buffer.drop()
    assert buffer.action_at(0.0) is None
    assert buffer.add(make_chunk(), turn=begun)


@pytest.mark.parametrize("wrong", [{"horizon": HORIZON + 1}, {"period_s": 0.1}])
def test_a_chunk_of_another_policy_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ContractError, match="build the buffer"):
        make_buffer().add(make_chunk(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(("period_s", "horizon"), [(0.0, 4), (-1.0, 4), (math.nan, 4), (0.2, 0)])
def test_a_buffer_that_could_hold_nothing_is_refused(period_s: float, horizon: int) -> None:
    with pytest.raises(ConfigurationError, match="cannot hold an action"):
        ChunkBuffer(period_s, horizon)
