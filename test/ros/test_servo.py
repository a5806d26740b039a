"""The simulated arm accepts commands as MoveIt Servo does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_align_ros.ros.servo import ServoInput

FORWARD = (0.05, 0.0, 0.0, 0.0, 0.0, 0.0)
REST = (0.0,) * 6


def make_servo() -> ServoInput:
    return ServoInput(frame="base_link", timeout_s=0.1)


def send(servo: ServoInput, now_s: float, twist: tuple[float, ...] = FORWARD) -> str | None:
    return servo.accept(twist, frame="base_link", stamp_s=now_s, now_s=now_s)


def test_nothing_moves_before_the_first_command() -> None:
    assert not make_servo().twist_at(1.0).any()


def test_a_command_moves_until_it_is_too_old_and_the_end_is_counted_once() -> None:
    servo = make_servo()
    assert send(servo, 1.0) is None
    np.testing.assert_array_equal(servo.twist_at(1.09), FORWARD)
    assert not servo.twist_at(1.11).any()
    assert not servo.twist_at(1.2).any()
    assert servo.statistics()["expired"] == 1


def test_a_clock_that_goes_back_ends_a_motion() -> None:
    servo = make_servo()
    send(servo, 100.0)
    assert not servo.twist_at(95.0).any()
    assert servo.statistics()["expired"] == 1


def test_falling_silent_after_a_zero_is_no_expiry() -> None:
    servo = make_servo()
    send(servo, 1.0)
    send(servo, 1.05, REST)
    assert not servo.twist_at(2.0).any()
    assert servo.statistics()["expired"] == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frame": "tool0"}, "wrong_frame"),
        ({"frame": ""}, "wrong_frame"),
        ({"twist": (math.nan, 0, 0, 0, 0, 0)}, "non_finite"),
        ({"twist": (0, 0, 0, 0, 0, math.inf)}, "non_finite"),
        ({"stamp_s": 9.8}, "stale"),
        ({"stamp_s": 10.2}, "future"),
    ],
)
def test_a_bad_command_is_refused_counted_and_leaves_the_last_one(
    changes: dict[str, object], reason: str
) -> None:
    servo = make_servo()
    send(servo, 9.95)
    command = {"twist": REST, "frame": "base_link", "stamp_s": 10.0, "now_s": 10.0, **changes}
    assert servo.accept(command.pop("twist"), **command) == reason  # type: ignore[arg-type]
    assert servo.statistics()[f"refused_{reason}"] == 1
    np.testing.assert_array_equal(servo.twist_at(10.0), FORWARD)


def test_a_command_of_the_last_episode_is_refused_after_the_reset() -> None:
    servo = make_servo()
    servo.forget(5.0)
    late = servo.accept(FORWARD, frame="base_link", stamp_s=4.99, now_s=5.01)
    assert late == "stale"
    assert not servo.twist_at(5.01).any()


def test_a_reset_stops_the_arm_and_zeroes_the_counts() -> None:
    servo = make_servo()
    send(servo, 1.0)
    send(servo, 1.02)
    servo.forget(1.03)
    assert not servo.twist_at(1.03).any()
    assert servo.statistics() == {"accepted": 0, "expired": 0}


def test_rate_and_jitter_leave_out_the_pauses() -> None:
    servo = make_servo()
    for k in range(11):
        send(servo, 1.0 + 0.05 * k)
    send(servo, 1.55, REST)  # a stop: what follows starts anew
    send(servo, 1.85)
    send(servo, 1.90)
    send(servo, 9.00)  # a long silence without a zero
    statistics = servo.statistics()
    assert statistics["command_rate_hz"] == pytest.approx(20.0, rel=1e-3)
    assert statistics["command_jitter_p99_ms"] == pytest.approx(0.0, abs=1e-6)


# -- what the arm can do, and what a unit means ----------------------------------------------------
def test_a_command_beyond_the_arms_speed_is_slowed_as_a_whole_and_counted() -> None:
    servo = ServoInput(frame="base_link", timeout_s=0.1, max_linear_m_s=0.1, max_angular_rad_s=1.0)
    assert send(servo, 1.0, (0.3, 0.0, 0.4, 0.0, 0.5, 0.0)) is None
    np.testing.assert_allclose(servo.twist_at(1.0), [0.06, 0, 0.08, 0, 0.1, 0])
    assert send(servo, 1.02, (0.05, 0.0, 0.0, 0.0, 0.0, 4.0)) is None
    np.testing.assert_allclose(servo.twist_at(1.02), [0.0125, 0, 0, 0, 0, 1.0])
    assert send(servo, 1.04, (0.1, 0.0, 0.0, 0.0, 0.0, 1.0)) is None
    assert servo.statistics()["clamped"] == 2


def test_unitless_commands_would_be_scaled_which_is_why_speed_units_are_asked_for() -> None:
    servo = ServoInput(frame="base_link", timeout_s=0.1, scale=(0.4, 0.8))
    send(servo, 1.0, (0.1, 0.0, 0.0, 0.0, 0.0, 0.5))
    np.testing.assert_allclose(servo.twist_at(1.0), [0.04, 0, 0, 0, 0, 0.4])
