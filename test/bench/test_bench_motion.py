"""The end of a motion is a zero or the controller's timeout, whichever comes first."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.bench.motion import find_motion_ends, is_moving

TIMEOUT_S = 0.1


@dataclass
class Sent:
    arrived_s: float
    moving: bool
    age_s: float = 0.001


def ends(
    commands: list[Sent], since_s: float = 0.0, until_s: float = 10.0
) -> list[tuple[str, float]]:
    found = find_motion_ends(commands, since_s, until_s, TIMEOUT_S)
    return [(end.by, round(end.time_s, 6)) for end in found]


def test_a_zero_ends_a_motion_at_once() -> None:
    assert ends([Sent(1.0, True), Sent(1.05, True), Sent(1.08, False)]) == [("zero", 1.08)]


def test_silence_ends_it_when_the_controller_has_waited() -> None:
    assert ends([Sent(1.0, True), Sent(1.05, True)]) == [("timeout", 1.15)]


def test_a_zero_that_comes_after_the_timeout_ends_nothing() -> None:
    assert ends([Sent(1.0, True), Sent(1.2, False)]) == [("timeout", 1.1)]


def test_a_command_that_comes_too_late_by_its_stamp_moves_nothing_and_ends_nothing() -> None:
    late = [Sent(1.0, True), Sent(1.02, False, 0.11), Sent(2.0, True, 0.95)]
    assert ends(late) == [("timeout", 1.1)]
    assert not is_moving(late, 2.05, TIMEOUT_S)
    assert ends([Sent(2.0, True, 0.1)]) == [("timeout", 2.1)]


def test_every_end_is_found_and_a_motion_that_goes_on_has_none() -> None:
    commands = [Sent(1.0, True), Sent(1.05, False), Sent(2.0, True), Sent(3.0, True)]
    assert ends(commands) == [("zero", 1.05), ("timeout", 2.1), ("timeout", 3.1)]
    assert ends(commands, until_s=3.05) == [("zero", 1.05), ("timeout", 2.1)]
    assert ends(commands, since_s=2.0) == [("timeout", 2.1), ("timeout", 3.1)]


@given(
    st.lists(st.tuples(st.floats(0.001, 0.3), st.booleans()), max_size=30),
    st.floats(0.0, 5.0),
)
def test_after_the_last_end_nothing_moves_and_before_it_something_did(
    gaps: list[tuple[float, bool]], at_s: float
) -> None:
    commands, now_s = [], 0.0
    for gap_s, moving in gaps:
        now_s += gap_s
        commands.append(Sent(now_s, moving))
    found = find_motion_ends(commands, 0.0, 100.0, TIMEOUT_S)
    last_s = found[-1].time_s if found else 0.0
    assert not is_moving(commands, last_s + 1e-6 + at_s, TIMEOUT_S)
    for end in found:
        assert is_moving(commands, end.time_s - 1e-9, TIMEOUT_S)
    assert [end.time_s for end in found] == sorted(end.time_s for end in found)


def test_an_arm_without_commands_stands() -> None:
    assert not is_moving([], 1.0, TIMEOUT_S)
    assert ends([]) == []
    assert is_moving([Sent(1.0, True)], 1.05, TIMEOUT_S)
    assert not is_moving([Sent(1.0, True)], 0.9, TIMEOUT_S)
    assert pytest.approx(1.1) == find_motion_ends([Sent(1.0, True)], 0, 9, TIMEOUT_S)[0].time_s
