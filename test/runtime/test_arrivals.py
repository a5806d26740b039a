"""A camera that is published and does not arrive is noticed, and one that rests is not."""

from __future__ import annotations

import pytest

from vla_align_ros.runtime.arrivals import Arrivals, Trouble

CHECK_S = 0.25


def notice(arrivals: Arrivals, until_s: float, came_s: list[float]) -> tuple[float, Trouble] | None:
    """When a check every 0.25 s finds trouble, with messages at the times given."""
    pending = sorted(came_s)
    now_s = 0.0
    while now_s < until_s:
        while pending and pending[0] <= now_s:
            arrivals.note(pending.pop(0), 921_600)
        trouble = arrivals.find_trouble(now_s)
        if trouble is not None:
            return now_s, trouble
        now_s += CHECK_S
    return None


def test_nothing_is_wrong_where_nobody_publishes() -> None:
    arrivals = Arrivals()
    arrivals.note_publishers(0, 0.0)
    assert notice(arrivals, 60.0, []) is None


def test_a_camera_of_which_nothing_arrives_is_noticed_within_two_seconds() -> None:
    arrivals = Arrivals()
    arrivals.note_publishers(1, 0.0)
    found = notice(arrivals, 60.0, [])
    assert found is not None
    assert found[1] is Trouble.SILENT and found[0] <= 2.0 - CHECK_S


def test_a_camera_that_falls_silent_is_noticed_again_and_forgiven_when_it_speaks() -> None:
    arrivals = Arrivals()
    arrivals.note_publishers(1, 0.0)
    assert notice(arrivals, 3.0, [k / 30 for k in range(90)]) is None
    assert arrivals.find_trouble(2.97 + 1.5) is Trouble.SILENT
    arrivals.note(5.0)
    assert arrivals.find_trouble(5.0) is None
    arrivals.note_publishers(0, 5.1)
    assert arrivals.find_trouble(60.0) is None, "a camera that was switched off is not trouble"


@pytest.mark.parametrize(("lost", "expected"), [(4, None), (6, None), (40, Trouble.LOSSY)])
def test_a_share_of_losses_is_noticed_while_they_are_recent(
    lost: int, expected: Trouble | None
) -> None:
    arrivals = Arrivals()
    arrivals.note_publishers(1, 0.0)
    for k in range(30):
        arrivals.note(k / 30)
    arrivals.note_lost(lost, 0.9)
    assert arrivals.find_trouble(1.0) is expected
    for k in range(30, 120):
        arrivals.note(k / 30)
    assert arrivals.find_trouble(4.0) is None
    assert (arrivals.received, arrivals.lost) == (120, lost)


def test_a_rate_below_the_expected_one_is_noticed_where_the_middleware_says_nothing() -> None:
    arrivals = Arrivals(expected_hz=30.0)
    arrivals.note_publishers(1, 0.0)
    found = notice(arrivals, 60.0, [k / 10 for k in range(600)])
    assert found == (2.0, Trouble.LOSSY)
    good = Arrivals(expected_hz=30.0)
    good.note_publishers(1, 0.0)
    assert notice(good, 10.0, [k / 29 for k in range(600)]) is None


def test_the_rate_is_that_of_the_last_two_seconds() -> None:
    arrivals = Arrivals()
    for k in range(90):
        arrivals.note(k / 30, 100)
    assert arrivals.rate_hz(3.0) == pytest.approx(30.0, abs=1.0)
    assert arrivals.rate_hz(6.0) == 0.0
    assert arrivals.largest_bytes == 100


def test_messages_of_which_none_is_of_use_are_noticed_with_the_reason() -> None:
    arrivals = Arrivals()
    arrivals.note_publishers(1, 0.0)
    for k in range(40):  # every second one is another driver's
        arrivals.note(0.1 * k)
        arrivals.note_use(0.1 * k, "of the arm" if k % 2 else None)
    assert arrivals.find_trouble(4.0) is None
    for k in range(40, 60):
        arrivals.note(0.1 * k)
        arrivals.note_use(0.1 * k, "of the arm")
        assert (arrivals.find_trouble(0.1 * k) is Trouble.USELESS) == (0.1 * k - 3.9 >= 2.0)
    arrivals.note(6.0)
    arrivals.note_use(6.0, "of the arm")
    assert arrivals.find_trouble(6.0) is Trouble.USELESS and arrivals.useless == "of the arm"
    arrivals.note_use(6.1, None)
    assert arrivals.find_trouble(6.1) is None
    assert arrivals.received == 61
