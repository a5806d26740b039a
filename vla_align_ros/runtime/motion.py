"""Keeps commands within acceleration, jerk and gripper rate: what the last command left off at."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import SafetyError

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MotionLimits:
    """How fast a command may change, per part; None does not limit.

    linear in m/s2 and m/s3, angular in rad/s2 and rad/s3, the gripper in fractions of its range a
    second. A jerk limit needs an acceleration limit beside it.
    """

    linear_m_s2: float | None = None
    angular_rad_s2: float | None = None
    linear_m_s3: float | None = None
    angular_rad_s3: float | None = None
    gripper_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise _bad_limit(name, value, "a finite number above 0, or none")
        for jerk, acceleration in (
            ("linear_m_s3", "linear_m_s2"),
            ("angular_rad_s3", "angular_rad_s2"),
        ):
            if getattr(self, jerk) is not None and getattr(self, acceleration) is None:
                raise _bad_limit(jerk, getattr(self, jerk), f"{acceleration} beside it")

    def tighten(self, other: MotionLimits) -> MotionLimits:
        """The smaller of the two in every part: what somebody else may ask for, never loosen."""
        return MotionLimits(
            **{name: _smaller(getattr(self, name), getattr(other, name)) for name in self.__slots__}
        )


class MotionLimiter:
    """Follows the wanted twist and gripper as closely as the limits let it.

    Speeds are held first, then accelerations, then jerks: a jerk beyond its limit happens only
    where the speed limit cuts in. `rest` is what a hold does: an arm that was told to stand still
    starts from zero again, its gripper from where it is measured, and a stop is never delayed by a
    limit.
    """

    def __init__(self, limits: MotionLimits, *, linear_m_s: float, angular_rad_s: float) -> None:
        self._parts = (
            (slice(0, 3), linear_m_s, limits.linear_m_s2, limits.linear_m_s3),
            (slice(3, 6), angular_rad_s, limits.angular_rad_s2, limits.angular_rad_s3),
        )
        self._gripper_per_s = limits.gripper_per_s
        self._twist = np.zeros(6)
        self._acceleration = np.zeros(6)
        self._gripper: float | None = None

    @property
    def twist(self) -> Vector:
        """What was commanded last (6,), m/s and rad/s; zero at rest."""
        return np.array(self._twist, np.float64)

    def rest(self, gripper: float | None = None) -> None:
        """The arm was sent zero, and its gripper stands at `gripper` (fraction open).

        None where that is not known: somebody else may have moved it, so the next opening is taken
        as it is, unless it is measured by then.
        """
        self._twist[:] = 0.0
        self._acceleration[:] = 0.0
        self._gripper = gripper

    def limit(
        self, twist: Vector, gripper: float, dt_s: float, measured: float | None = None
    ) -> tuple[Vector, float]:
        """The twist (6,) and gripper (0..1) that come closest after `dt_s` since the last one.

        Nothing is remembered: `remember` what was really sent, which may be slower still. The
        `measured` opening counts where none was sent.
        """
        result = np.array(twist, np.float64)
        for part, speed, acceleration, jerk in self._parts:
            if acceleration is not None:
                result[part] = _follow(
                    self._twist[part],
                    self._acceleration[part],
                    result[part],
                    dt_s,
                    acceleration,
                    jerk,
                )
            result[part] = _shorten(result[part], speed)
        return result, self._limit_gripper(gripper, dt_s, measured)

    def remember(self, twist: Vector, gripper: float, dt_s: float) -> None:
        """Start the next step from what was sent."""
        self._acceleration = (twist - self._twist) / dt_s
        for part, _, acceleration, _ in self._parts:
            if acceleration is not None:
                # A side may have braked harder; a jerk is counted from the limit then.
                self._acceleration[part] = _shorten(self._acceleration[part], acceleration)
        self._twist = np.array(twist, np.float64)
        self._gripper = gripper

    def _limit_gripper(self, gripper: float, dt_s: float, measured: float | None) -> float:
        last = measured if self._gripper is None else self._gripper
        if last is None or self._gripper_per_s is None:
            return gripper
        step = self._gripper_per_s * dt_s
        return min(max(gripper, last - step), last + step)


class Travel:
    """How far the commands of the last `keep_s` seconds lead, for an arm that follows them."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._legs: deque[tuple[float, Vector]] = deque()
        self._length_s = 0.0

    def note(self, velocity: Vector, dt_s: float) -> None:
        """A velocity (3,) in m/s was in force for the last `dt_s` seconds."""
        self._legs.append((dt_s, velocity))
        self._length_s += dt_s
        while len(self._legs) > 1 and self._length_s - self._legs[0][0] >= self._keep_s:
            self._length_s -= self._legs.popleft()[0]

    def clear(self) -> None:
        """The arm stands, and its place is measured anew."""
        self._legs.clear()
        self._length_s = 0.0

    def within(self, age_s: float) -> Vector:
        """The way (3,) in metres that was commanded in the last `age_s` seconds."""
        way = np.zeros(3)
        for dt_s, velocity in reversed(self._legs):
            if age_s <= 0.0:
                break
            way += velocity * min(dt_s, age_s)
            age_s -= dt_s
        return way


def braking_speed(distance_m: Vector, deceleration_m_s2: float | None, period_s: float) -> Vector:
    """The largest speeds in m/s after a period of which the arm can still end within `distance_m`.

    By its period alone, or by braking from then on: v T + v^2 / 2a = distance. Whoever keeps to it
    on the way never brakes harder than a.
    """
    distance_m = np.maximum(distance_m, 0.0)
    if deceleration_m_s2 is None:
        return distance_m / period_s
    root = np.sqrt(period_s * period_s + 2.0 * distance_m / deceleration_m_s2)
    return 2.0 * distance_m / (period_s + root)  # a (root - T), without its rounding near a side


def _follow(
    velocity: Vector,
    acceleration: Vector,
    wanted: Vector,
    dt_s: float,
    largest: float,
    jerk: float | None,
) -> Vector:
    """Step from `velocity` towards `wanted` (3,); no overshoot while the wanted one stands still.

    With a jerk J the acceleration must be back at zero on arrival. Ramping a down takes a^2 / 2J,
    a dt of it in this step: a dt + a^2 / 2J = distance gives the largest a from which that works.
    """
    error = wanted - velocity
    distance = float(np.linalg.norm(error))
    if jerk is None:
        return velocity + _shorten(error, largest * dt_s)
    if distance == 0.0:
        aim = np.zeros(3)
    else:
        size = jerk * (math.sqrt(dt_s * dt_s + 2.0 * distance / jerk) - dt_s)
        aim = error / distance * min(size, largest)
    change = _shorten(aim - acceleration, jerk * dt_s)
    stepped: Vector = velocity + (acceleration + change) * dt_s
    return stepped


def _shorten(vector: Vector, length: float) -> Vector:
    size = float(np.linalg.norm(vector))
    return vector if size <= length else vector * (length / size)


def _smaller(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


def _bad_limit(name: str, value: object, expected: str) -> SafetyError:
    return SafetyError(
        f"the robot's limit {name} cannot be used",
        got=repr(value),
        expected=expected,
        fix="correct it in the robot's file (config/robots)",
    )
