"""A joystick's buttons: a stop while pressed and at each loss, and the safe reading of the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.runtime.joystick import Hand, Joystick

LOSS_S = 0.5


@given(st.lists(st.booleans(), max_size=40))
def test_a_press_stops_for_as_long_as_it_lasts_and_is_new_once(presses: list[bool]) -> None:
    joystick = Joystick(stop_button=0)
    hands = [joystick.take([int(p)], 0.1 * k) for k, p in enumerate(presses)]
    assert [hand.stop is not None for hand in hands] == presses
    rises = [p and not before for before, p in zip([False, *presses], presses, strict=False)]
    assert [hand.stop is not None and not hand.again for hand in hands] == rises


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=30))
def test_silence_is_one_stop_once_the_joystick_was_there(gaps_s: list[float]) -> None:
    joystick, now_s, stops = Joystick(0, loss_s=LOSS_S), 0.0, 0
    assert joystick.check(100.0) == Hand(), "a joystick that never was is no loss"
    for gap_s in gaps_s:
        joystick.take([0], now_s)
        now_s += gap_s
        stops += sum(joystick.check(now_s).stop is not None for _ in range(3))
    assert stops == sum(gap_s > LOSS_S for gap_s in gaps_s) or any(
        abs(gap_s - LOSS_S) < 1e-9 for gap_s in gaps_s
    )


def test_a_button_that_is_not_there_stops_and_never_holds_the_dead_man() -> None:
    joystick = Joystick(stop_button=5, dead_man_button=6)
    hand = joystick.take([0, 0], 0.0)
    assert hand.stop is not None and "does not exist" in hand.stop
    assert hand.dead_man is False


def test_the_dead_man_follows_its_button_and_is_released_by_loss() -> None:
    joystick = Joystick(stop_button=0, dead_man_button=1, loss_s=LOSS_S)
    assert joystick.take([0, 1], 0.0) == Hand(dead_man=True)
    assert joystick.take([0, 0], 0.1) == Hand(dead_man=False)
    assert joystick.check(0.1 + LOSS_S) == Hand()
    assert joystick.check(0.2 + LOSS_S).dead_man is False


def test_no_loss_where_none_is_watched() -> None:
    joystick = Joystick(0, loss_s=0.0)
    joystick.take([0], 0.0)
    assert joystick.check(1e6) == Hand()
