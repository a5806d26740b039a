"""Decides what may reach the arm: a command within its limits, or a hold with one named reason."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.actions import twist_from_delta
from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.chunks import ScheduledAction

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


class Reason(str, Enum):
    """Why the arm must not move. The names are public: logs, status and diagnostics carry them."""

    INACTIVE = "inactive"
    NO_INSTRUCTION = "no_instruction"
    STALE_IMAGE = "stale_image"
    STALE_STATE = "stale_state"
    INFERENCE_ERROR = "inference_error"
    NON_FINITE = "non_finite"
    OUT_OF_LIMITS = "out_of_limits"
    PLANNING = "planning"
    CHUNK_EXHAUSTED = "chunk_exhausted"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Hold:
    """Stand still: the arm gets zero once and then silence. `detail` is for a person to read."""

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else str(self.reason)


@dataclass(frozen=True, slots=True)
class Command:
    """A twist (6,) in m/s and rad/s in the command frame, and the gripper as a fraction open."""

    twist: NDArray[np.float64]
    gripper: float
    action: ScheduledAction
    clamped: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the arm may do, from the robot's own file. A bundle can never loosen it.

    A speed above its limit is scaled down to it, direction kept, up to `hold_factor` times the
    limit; beyond that the output is not trusted and the arm holds. `workspace_m` is the box
    (lowest corner, highest corner) in the command frame that the end effector must not leave: an
    axis slows to zero at its side, so that the arm slides along it.
    """

    linear_m_s: float
    angular_rad_s: float
    hold_factor: float = 2.0
    workspace_m: Box | None = None

    def __post_init__(self) -> None:
        for name in ("linear_m_s", "angular_rad_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise _bad_limit(name, value, "a finite number above 0")
        if not (math.isfinite(self.hold_factor) and self.hold_factor >= 1):
            raise _bad_limit("hold_factor", self.hold_factor, "a finite number of at least 1")
        if self.workspace_m is not None:
            sizes = [len(corner) for corner in self.workspace_m]
            if sizes != [3, 3] or not np.less(*self.workspace_m).all():
                raise _bad_limit(
                    "workspace_m", self.workspace_m, "(x, y, z) of the lowest and highest corner"
                )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How old an input may be, in seconds, before the arm holds."""

    image_s: float = 0.5
    state_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decision for one tick rests on; ages in seconds, None where nothing arrived.

    `fault` is what inference reported since its last good chunk; `plans` counts the chunks that
    answered the current instruction; `position_m` (3,) is the end effector in the command frame.
    """

    instruction: str | None
    image_age_s: float | None
    action: ScheduledAction | None
    plans: int = 0
    state_age_s: float | None = None
    state_needed: bool = False
    position_m: NDArray[np.float64] | None = None
    fault: Hold | None = None
    active: bool = True


class SafetyGate:
    """Turns the action for now into a command, or into a hold whose reason comes first in order.

    Holds no state and reads no clock: the same situation always gives the same answer.
    """

    def __init__(self, limits: Limits, timeouts: Timeouts) -> None:
        self.limits = limits
        self.timeouts = timeouts

    def check(self, situation: Situation) -> Command | Hold:
        """Decide for one tick; reasons in order: inputs, inference, plan, the command itself."""
        hold = self._check_inputs(situation) or situation.fault
        if hold is not None:
            return hold
        if situation.action is None:
            if situation.plans == 0:
                return Hold(Reason.PLANNING, "no action planned for this instruction yet")
            return Hold(Reason.CHUNK_EXHAUSTED, "the last planned action is over")
        return self._check_action(situation.action, situation.position_m)

    def _check_inputs(self, situation: Situation) -> Hold | None:
        if not situation.active:
            return Hold(Reason.INACTIVE)
        if situation.instruction is None:
            return Hold(Reason.NO_INSTRUCTION)
        late = _judge_age(situation.image_age_s, self.timeouts.image_s, "image")
        if late is not None:
            return Hold(Reason.STALE_IMAGE, late)
        if situation.state_needed or self.limits.workspace_m is not None:
            late = _judge_age(situation.state_age_s, self.timeouts.state_s, "robot state")
            if late is not None:
                return Hold(Reason.STALE_STATE, late)
        return None

    def _check_action(
        self, scheduled: ScheduledAction, position_m: NDArray[np.float64] | None
    ) -> Command | Hold:
        action = scheduled.action
        if not np.isfinite(action).all():
            return Hold(Reason.NON_FINITE, f"action {scheduled.index} is {action.tolist()}")
        with np.errstate(over="ignore"):  # what overflows is far out of limits, below
            twist = twist_from_delta(action, scheduled.period_s)
        limited = twist.copy()
        for part, limit, unit in (
            (slice(0, 3), self.limits.linear_m_s, "m/s"),
            (slice(3, 6), self.limits.angular_rad_s, "rad/s"),
        ):
            speed = math.hypot(*twist[part])
            if not speed <= limit * self.limits.hold_factor:
                return Hold(
                    Reason.OUT_OF_LIMITS,
                    f"{speed:.3g} {unit} asked, {limit * self.limits.hold_factor:.3g} at most",
                )
            if speed > limit:
                limited[part] *= limit / speed
        if self.limits.workspace_m is not None:
            if position_m is None or not np.isfinite(position_m).all():
                return Hold(Reason.STALE_STATE, "the end effector's position is unknown")
            limited[:3] = _stay_inside(
                limited[:3], position_m, scheduled.period_s, self.limits.workspace_m
            )
        gripper = min(max(float(action[6]), 0.0), 1.0)
        return Command(limited, gripper, scheduled, clamped=bool((limited != twist).any()))


@dataclass(frozen=True, slots=True)
class Stop:
    """A moving arm was told to stand still: when (seconds on the caller's clock), and why first."""

    reason: Reason
    detail: str
    time_s: float


class StopRecord:
    """Keeps the stops. The first cause stays: what else fails while the arm stands adds nothing."""

    def __init__(self, keep: int = 100) -> None:
        self.stops: deque[Stop] = deque(maxlen=keep)
        self.total = 0
        self._moving = False

    def note_motion(self) -> None:
        """The arm was sent a command: the next hold is a stop of its own."""
        self._moving = True

    def note_hold(self, hold: Hold, now_s: float) -> bool:
        """The arm must stand still; True if it was moving, so that this is a stop."""
        if not self._moving:
            return False
        self._moving = False
        self.total += 1
        self.stops.append(Stop(hold.reason, hold.detail, now_s))
        return True


def _stay_inside(
    velocity: NDArray[np.float64], position_m: NDArray[np.float64], period_s: float, box: Box
) -> NDArray[np.float64]:
    """Slow each axis (3,) so that a period of motion ends in the box; outside, only inwards."""
    low, high = np.asarray(box, float)
    slowest = np.minimum((low - position_m) / period_s, 0.0)
    fastest = np.maximum((high - position_m) / period_s, 0.0)
    return np.clip(velocity, slowest, fastest)


def _judge_age(age_s: float | None, timeout_s: float, what: str) -> str | None:
    if age_s is None:
        return f"no {what} yet"
    if not age_s <= timeout_s:
        return f"the {what} is {age_s:.2f} s old, {timeout_s:.2f} s at most"
    if age_s < -timeout_s:
        return f"the {what} is stamped {-age_s:.2f} s ahead of this node's clock"
    return None


def _bad_limit(name: str, value: object, expected: str) -> SafetyError:
    return SafetyError(
        f"the robot's limit {name} cannot be used",
        got=repr(value),
        expected=expected,
        fix="correct it in the robot's file (config/robots)",
    )
