"""Decides what may reach the arm: a command within its limits, or a hold with one named reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.actions import twist_from_delta
from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.boxes import Box, check_box, confine
from vla_align_ros.runtime.chunks import ScheduledAction
from vla_align_ros.runtime.motion import MotionLimiter, MotionLimits, Travel
from vla_align_ros.runtime.stops import Hold, Reason

LONGEST_TICK_S = 0.2  # a later tick speeds up no faster than this one would


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
    limit; beyond that the output is not trusted and the arm holds. `motion` limits how fast a
    command may change. `workspace_m` is the box (lowest corner, highest corner) in the command
    frame that the end effector must not leave, `keep_out_m` are boxes that it must not enter: at
    a side an axis slows to zero, so that the arm slides along it.
    """

    linear_m_s: float
    angular_rad_s: float
    hold_factor: float = 2.0
    workspace_m: Box | None = None
    keep_out_m: tuple[Box, ...] = ()
    motion: MotionLimits = field(default_factory=MotionLimits)

    def __post_init__(self) -> None:
        for name in ("linear_m_s", "angular_rad_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise _bad_limit(name, value, "a finite number above 0")
        if not (math.isfinite(self.hold_factor) and self.hold_factor >= 1):
            raise _bad_limit("hold_factor", self.hold_factor, "a finite number of at least 1")
        if self.workspace_m is not None:
            check_box("workspace_m", self.workspace_m)
        for box in self.keep_out_m:
            check_box("keep_out_m", box)

    @property
    def needs_position(self) -> bool:
        """Whether the end effector's position must be known."""
        return self.workspace_m is not None or bool(self.keep_out_m)

    def tighten(self, asked: Mapping[str, float]) -> Limits:
        """The smaller of these limits and a bundle's, by name (see `contract.motion_limits`)."""
        motion = MotionLimits(
            linear_m_s2=asked.get("max_linear_m_s2"),
            angular_rad_s2=asked.get("max_angular_rad_s2"),
            linear_m_s3=asked.get("max_linear_m_s3"),
            angular_rad_s3=asked.get("max_angular_rad_s3"),
            gripper_per_s=asked.get("gripper_max_per_s"),
        )
        return replace(
            self,
            linear_m_s=min(self.linear_m_s, asked.get("max_linear_m_s", math.inf)),
            angular_rad_s=min(self.angular_rad_s, asked.get("max_angular_rad_s", math.inf)),
            motion=self.motion.tighten(motion),
        )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How old an input may be, in seconds, before the arm holds.

    `action_s` counts from the observation that an action came from, `instruction_s` from the
    operator's last message; 0 sets no limit (a chunk ends by itself).
    """

    image_s: float = 0.5
    state_s: float = 0.5
    action_s: float = 0.0
    instruction_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decision for one tick rests on; ages in seconds, None where nothing arrived.

    `image` names the picture that is furthest off; `disorder` says why pictures and state do not
    fit together (see Observer); `strange` why the scene is not familiar enough (see SightLoop).
    `forbidden` is what a person has against motion (see Interlock);
    `fault` is what inference reported since its last good chunk; `plans` counts the chunks that
    answered the current instruction, `ahead_s` how far ahead of this clock the last one was
    stamped if it was refused for that; `position_m` (3,) is the end effector in the command frame,
    measured `position_age_s` ago; `gripper` the measured opening, None where it is not known;
    `since_tick_s` the time since the last decision, `overrun_s` how long there was none (see Tick);
    `clock_still_s` for how long the clock of all stamps has shown the same time.
    """

    instruction: str | None
    image_age_s: float | None
    action: ScheduledAction | None
    image: str = "image"
    disorder: str | None = None
    strange: str | None = None
    plans: int = 0
    ahead_s: float | None = None
    state_age_s: float | None = None
    state_needed: bool = False
    position_m: NDArray[np.float64] | None = None
    position_age_s: float = 0.0
    gripper: float | None = None
    fault: Hold | None = None
    forbidden: Hold | None = None
    active: bool = True
    instruction_age_s: float = 0.0
    action_age_s: float = 0.0
    since_tick_s: float = 0.05
    overrun_s: float | None = None
    clock_still_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one tick asks of the arm: the command, or `stop` (send zero once), or silence."""

    command: Command | None = None
    hold: Hold | None = None
    stop: bool = False


class SafetyGate:
    """Turns the action for now into a command, or into a hold whose reason comes first in order.

    Reads no clock. It remembers the last command, from which it limits the next one, and the way
    commanded since the pose was measured, which tells where the arm is by now. A command stays in
    force for `command_period_s`.
    """

    def __init__(
        self, limits: Limits, timeouts: Timeouts, *, command_period_s: float = 0.05
    ) -> None:
        self.limits = limits
        self.timeouts = timeouts
        self.command_period_s = command_period_s
        self._travel = Travel(timeouts.state_s)
        self._limiter = MotionLimiter(
            limits.motion, linear_m_s=limits.linear_m_s, angular_rad_s=limits.angular_rad_s
        )

    def check(self, situation: Situation) -> Command | Hold:
        """Decide for one tick; order: person, inputs, inference, plan, the command itself."""
        self._travel.note(self._limiter.twist[:3], situation.since_tick_s)
        decision = self._decide(situation)
        if isinstance(decision, Hold):
            self._limiter.rest(situation.gripper)
        return decision

    def rest(self) -> None:
        """The arm was brought to a stand outside of `check`: the next command starts from zero."""
        self._limiter.rest()
        self._travel.clear()

    def _decide(self, situation: Situation) -> Command | Hold:
        hold = self._check_inputs(situation) or situation.fault
        if hold is not None:
            return hold
        if situation.action is None:
            refused = _explain_refusal(situation.ahead_s)
            if situation.plans == 0:
                return Hold(
                    Reason.PLANNING, refused or "no action planned for this instruction yet"
                )
            return Hold(Reason.CHUNK_EXHAUSTED, refused or "the last planned action is over")
        late = _judge_limit(situation.action_age_s, self.timeouts.action_s, "planned action")
        if late is not None:
            return Hold(Reason.STALE_ACTION, late)
        return self._check_action(situation.action, situation)

    def _check_inputs(self, situation: Situation) -> Hold | None:
        if not situation.active:
            return Hold(Reason.INACTIVE)
        if situation.forbidden is not None:
            return situation.forbidden
        if situation.instruction is None:
            return Hold(Reason.NO_INSTRUCTION)
        if situation.overrun_s is not None:
            told = f"nothing was decided for {situation.overrun_s:.2f} s; first, messages are read"
            return Hold(Reason.OVERRUN, told)
        late = _judge_limit(situation.instruction_age_s, self.timeouts.instruction_s, "instruction")
        if late is not None:
            return Hold(Reason.STALE_INSTRUCTION, late)
        if situation.clock_still_s > self.timeouts.image_s:
            return Hold(Reason.STALE_IMAGE, _explain_still(situation.clock_still_s))
        late = _judge_age(situation.image_age_s, self.timeouts.image_s, situation.image)
        if late is not None:
            return Hold(Reason.STALE_IMAGE, late)
        if situation.state_needed or self.limits.needs_position:
            late = _judge_age(situation.state_age_s, self.timeouts.state_s, "robot state")
            if late is not None:
                return Hold(Reason.STALE_STATE, late)
        if situation.disorder is not None:
            return Hold(Reason.UNSYNCHRONISED, situation.disorder)
        if situation.strange is not None:
            return Hold(Reason.UNFAMILIAR_SCENE, situation.strange)
        return None

    def _check_action(self, scheduled: ScheduledAction, situation: Situation) -> Command | Hold:
        action = scheduled.action
        if not np.isfinite(action).all():
            return Hold(Reason.NON_FINITE, f"action {scheduled.index} is {action.tolist()}")
        with np.errstate(over="ignore"):  # what overflows is far out of limits, below
            twist = twist_from_delta(action, scheduled.period_s)
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
        since_s = min(max(situation.since_tick_s, 1e-3), LONGEST_TICK_S)
        asked = min(max(float(action[6]), 0.0), 1.0)
        limited, gripper = self._limiter.limit(twist, asked, since_s, situation.gripper)
        if self.limits.needs_position:
            position_m = situation.position_m
            if position_m is None or not np.isfinite(position_m).all():
                return Hold(Reason.STALE_STATE, "the end effector's position is unknown")
            way_m = self._travel.within(situation.position_age_s)
            held_s = max(scheduled.period_s, self.command_period_s)
            limited[:3] = confine(
                limited[:3],
                # Where the arm is if it did not follow since, and if it did.
                (position_m, position_m + way_m),
                held_s,
                self.limits.workspace_m,
                self.limits.keep_out_m,
                self.limits.motion.linear_m_s2,
            )
        self._limiter.remember(limited, gripper, since_s)
        return Command(limited, gripper, scheduled, clamped=bool((limited != twist).any()))


def _judge_age(age_s: float | None, timeout_s: float, what: str) -> str | None:
    if age_s is None:
        return f"no {what} yet"
    if not age_s <= timeout_s:
        return f"the {what} is {age_s:.2f} s old, {timeout_s:.2f} s at most"
    if age_s < -timeout_s:
        return f"the {what} is stamped {-age_s:.2f} s ahead of this node's clock"
    return None


def _explain_still(still_s: float) -> str:
    return (
        f"this node's clock has stood still for {still_s:.2f} s, so no stamp tells an age: "
        "run what publishes /clock, or set use_sim_time: false"
    )


def _explain_refusal(ahead_s: float | None) -> str | None:
    if ahead_s is None:
        return None
    return f"the last plan was refused: stamped {ahead_s:.2f} s ahead of this node's clock"


def _judge_limit(age_s: float, limit_s: float, what: str) -> str | None:
    if limit_s <= 0 or age_s <= limit_s:
        return None
    return f"the {what} is {age_s:.2f} s old, {limit_s:.2f} s at most"


def _bad_limit(name: str, value: object, expected: str) -> SafetyError:
    return SafetyError(
        f"the robot's limit {name} cannot be used",
        got=repr(value),
        expected=expected,
        fix="correct it in the robot's file (config/robots)",
    )
