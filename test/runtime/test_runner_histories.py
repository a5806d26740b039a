"""Whatever happens in whatever order: the runner's decisions against a second account of them."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from rig import OTHER, PICTURE, SAY, Rig, wait_for
from sample_policy import HORIZON, make_spec

from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.errors import BackendError, ContractError, SafetyError
from vla_align_ros.runtime.interlock import InterlockConfig
from vla_align_ros.runtime.motion import MotionLimits
from vla_align_ros.runtime.safety import Command, Limits, Timeouts
from vla_align_ros.runtime.stops import Hold, Reason

TICK_S = 0.02
ACTION_S = 1.0 / make_spec().action.rate_hz
LIMITS = Limits(0.25, 1.0, motion=MotionLimits(linear_m_s2=2.0, angular_rad_s2=8.0))
TIMEOUTS = Timeouts(image_s=0.5, state_s=0.4, action_s=0.6, instruction_s=5.0)
BELIEVED_S = 0.3  # dead-man switch and watchdog
JUMP_S = 0.1
KINDS = ("still", "slow", "fast", "far", "nan", "raises", "hangs")
SPEEDS_M_S = {"still": 0.0, "slow": 0.1, "hangs": 0.1, "fast": 0.4, "far": 9.0, "nan": math.nan}
BY_THE_POLICY = {
    *(Reason.INFERENCE_ERROR, Reason.NON_FINITE, Reason.OUT_OF_LIMITS),
    *(Reason.PLANNING, Reason.CHUNK_EXHAUSTED, Reason.STALE_ACTION, Reason.UNSYNCHRONISED),
}
EDGE_S = 1e-6
ages = st.floats(-0.2, 0.6)


@dataclass(frozen=True)
class Heard:
    """A message: its sender's stamp, and when it came by the monotonic clock."""

    stamp_s: float
    came_s: float

    def is_fresh(self, now_s: float, steady_s: float, limit_s: float) -> bool:
        return abs(now_s - self.stamp_s) <= limit_s and steady_s - self.came_s <= limit_s


@dataclass(frozen=True)
class Seen(Heard):
    """A picture, the words it was seen under, and what the policy makes of it."""

    words: str | None
    kind: str


class Whim:
    """A policy that answers each picture as the test wants it, by its first value."""

    def __init__(self) -> None:
        self.spec = make_spec()
        self.last_timings_ms = {"prepare": 0.0, "infer": 0.0, "decode": 0.0}
        self.hangs, self.go = threading.Event(), threading.Event()

    def infer(self, observation: Observation) -> ActionChunk:
        (image,) = observation.images.values()
        kind = KINDS[image[0, 0, 0]]
        if kind == "raises":
            raise BackendError("the engine fails, as asked")
        if kind == "hangs":
            self.hangs.set()
            assert self.go.wait(30.0)
            self.hangs.clear()
        actions = np.zeros((HORIZON, 7))
        actions[:, 1] = SPEEDS_M_S[kind] * ACTION_S
        return ActionChunk(actions, ACTION_S, observation.stamp_s, observation.instruction)


class Histories(RuleBasedStateMachine):
    """People, sensors, clocks and the policy act as they like; the node ticks as it does."""

    @initialize(dead_man=st.booleans(), watched=st.booleans(), start_armed=st.booleans())
    def begin(self, dead_man: bool, watched: bool, start_armed: bool) -> None:
        self.config = InterlockConfig(
            start_armed=start_armed,
            dead_man_s=BELIEVED_S if dead_man else 0.0,
            watchdog_timeout_s=BELIEVED_S if watched else 0.0,
        )
        self.policy = Whim()
        self.rig = Rig(
            self.policy,
            interlock=self.config,
            limits=LIMITS,
            timeouts=TIMEOUTS,
            command_period_s=TICK_S,
        )
        self.runner = self.rig.runner
        self.armed, self.stopped, self.taken_over = start_armed, False, False
        self.let_go = False
        self.held_s = self.watched_s = -math.inf
        self.words: str | None = None
        self.words_s = -math.inf
        self.pictures: list[Seen] = []
        self.image: Heard | None = None
        self.pose: Heard | None = None
        self.gripper: Heard | None = None
        self.moving, self.twist = False, np.zeros(6)
        self.stops = 0
        self._activated()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.policy.go.set()
            self.runner.deactivate()

    def _activated(self) -> None:
        self.active, self.words = True, None
        self.last_tick_s = self.read_s = self.changed_s = self.rig.steady_s
        self.shown_s, self.stood = self.rig.now_s, False
        self.woke_s, self.latest_ros_s = -math.inf, -math.inf
        self.forbidden_before = self._forbid(self.rig.steady_s) is not None
        self._forget()

    def _forget(self) -> None:
        """Nothing that was seen until now may be planned on or moved by."""
        self.image = self.pose = self.gripper = None
        self.twist = np.zeros(6)
        self._plan_anew()

    def _plan_anew(self, since_s: float = -math.inf) -> None:
        self.anew = len(self.pictures)
        self.since_s = since_s  # by ROS time: what is older answers an earlier turn

    # -- what may happen ---------------------------------------------------------------------------

    @rule(kind=st.sampled_from(KINDS), age_s=ages)
    def picture(self, kind: str, age_s: float) -> None:
        stamp_s = self.rig.now_s - age_s
        self.pictures.append(Seen(stamp_s, self.rig.steady_s, self.words, kind))
        self.image = self.pictures[-1]
        pixels = np.full_like(PICTURE, KINDS.index(kind))
        self.runner.take_image(lambda: pixels, stamp_s)
        self._settle()

    @precondition(lambda self: self.policy.hangs.is_set())
    @rule()
    def inference_returns(self) -> None:
        self.policy.go.set()
        wait_for(lambda: not self.policy.hangs.is_set())
        self._settle()
        self.policy.go.clear()
        self._settle()
        self._tick()

    def _settle(self) -> None:
        """Wait until inference, which has a thread of its own, has nothing to do, or hangs."""
        worker = self.runner._planner._worker
        hangs = self.policy.hangs.is_set
        wait_for(lambda: worker is None or hangs() or not (worker._item or worker.busy))

    @rule(age_s=ages)
    def robot_state(self, age_s: float) -> None:
        self.pose = self.gripper = Heard(self.rig.now_s - age_s, self.rig.steady_s)
        self.runner.take_pose(np.array([0.3, 0, 0.2, 0, 0, 0]), self.pose.stamp_s)
        self.runner.take_gripper(1.0, self.gripper.stamp_s)

    @rule(age_s=ages)
    def gripper_alone(self, age_s: float) -> None:
        self.gripper = Heard(self.rig.now_s - age_s, self.rig.steady_s)
        self.runner.take_gripper(1.0, self.gripper.stamp_s)

    @rule(kind=st.sampled_from(KINDS[:3]), age_s=st.sampled_from((0.0, 0.0, 0.05, 0.2)))
    def all_is_well(self, kind: str, age_s: float) -> None:
        """What lets an arm move, so that histories are long enough to be worth something."""
        if self.policy.hangs.is_set():
            self.inference_returns()
        if self.stopped:
            self.reset_stop()
        self.take_over(False)
        self.arm()
        self.dead_man(True)
        self.watchdog()
        self.time_passes(TICK_S)
        self.time_passes(TICK_S)
        if not self.active:
            self.activate()
        self.instruction(self.words or SAY)
        self.robot_state(0.0)
        self.picture(kind, age_s)
        self._tick()
        assert self.moving or age_s or self._nothing_newer(), self.runner.hold

    def _nothing_newer(self) -> bool:
        """Whether a picture of now counts for nothing: the clock was set back a little.

        Or an earlier one was stamped ahead.
        """
        latest_s = max((seen.stamp_s for seen in self.pictures[self.anew : -1]), default=-math.inf)
        return self.rig.now_s < max(latest_s, self.since_s)

    @rule()
    def inference_fails(self) -> None:
        self.all_is_well("slow", 0.0)
        self.picture("raises", 0.0)
        self._tick()
        assert not self.moving
        assert self.runner.hold is not None
        assert self.runner.hold.reason is Reason.INFERENCE_ERROR or self._nothing_newer()

    @rule(periods=st.integers(1, 60), age_s=st.sampled_from((0.0, 0.05, 0.3)))
    def all_stays_well(self, periods: int, age_s: float) -> None:
        """Everybody goes on as they do; nobody says the instruction again."""
        for _ in range(periods):
            self.dead_man(True)
            self.watchdog()
            self.robot_state(age_s)
            self.picture("slow", age_s)
            self.nothing_comes(5)

    @rule(periods=st.integers(1, 10))
    def all_is_well_but_inference(self, periods: int) -> None:
        self.all_is_well("slow", 0.0)
        self.picture("hangs", 0.0)
        self.all_stays_well(periods, 0.0)

    @rule()
    def a_moving_node_is_restarted(self) -> None:
        self.all_is_well("fast", 0.0)
        self.nothing_comes(5)
        self.deactivate()
        self.all_is_well("fast", 0.0)

    @rule(seconds=st.sampled_from((0.0, 0.005, TICK_S, TICK_S, 0.03, 0.041, 0.1, 0.35, 0.7, 6.0)))
    def time_passes(self, seconds: float) -> None:
        self.rig.pass_time(seconds)
        self._tick()

    @rule(periods=st.integers(2, 40))
    def nothing_comes(self, periods: int) -> None:
        for _ in range(periods):
            self.time_passes(TICK_S)

    @rule(
        seconds=st.sampled_from((-60.0, -1.0, -0.3, -0.15, -0.05, 0.05, 0.3, 60.0)),
        moving=st.booleans(),
    )
    def clock_is_set(self, seconds: float, moving: bool) -> None:
        if moving:
            self.all_is_well("slow", 0.0)
        self.rig.now_s += seconds
        self._tick()

    @rule(periods=st.integers(1, 40))
    def clock_stands(self, periods: int) -> None:
        """Everything goes on, under one and the same stamp."""
        for _ in range(periods):
            self.rig.steady_s += TICK_S
            self.robot_state(0.0)
            self.picture("slow", 0.0)
            self._tick()

    @rule(words=st.sampled_from((SAY, OTHER, "", "x" * 600)))
    def instruction(self, words: str) -> None:
        said: str | None = words or None
        if len(words) > 500:
            said = None
        try:
            self.runner.set_instruction(words)
            refused = False
        except ContractError:
            refused = True
        assert refused == (self.active and len(words) > 500)
        if not self.active:
            return
        if not refused:
            self.words_s = self.rig.steady_s
        if said != self.words:
            self.words = said
            self.anew = len(self.pictures)

    @rule()
    def arm(self) -> None:
        if self.stopped:
            with pytest.raises(SafetyError):
                self.runner.interlock.arm()
        else:
            self.runner.interlock.arm()
            self.armed = True
        self._tick()

    @rule()
    def disarm(self) -> None:
        self.runner.interlock.disarm()
        self.armed = False
        self._tick()

    @rule()
    def stop(self) -> None:
        assert self.runner.interlock.stop(Hold(Reason.STOPPED, "a person")) is not self.stopped
        self.stopped, self.armed = True, False
        self._tick()

    @rule()
    def reset_stop(self) -> None:
        assert self.runner.interlock.reset() is self.stopped
        self.stopped = False
        self._tick()

    @rule(drives=st.booleans())
    def take_over(self, drives: bool) -> None:
        self.runner.interlock.take_over("a joystick" if drives else None)
        self.taken_over = drives
        self._tick()

    @rule(held=st.booleans())
    def dead_man(self, held: bool) -> None:
        self.runner.interlock.press_dead_man(held, self.rig.steady_s)
        self.let_go, self.held_s = not held, self.rig.steady_s if held else -math.inf
        self._tick()

    @rule()
    def watchdog(self) -> None:
        self.runner.interlock.note_watched(self.rig.steady_s)
        self.watched_s = self.rig.steady_s

    @precondition(lambda self: self.active and not self.policy.hangs.is_set())
    @rule()
    def deactivate(self) -> None:
        assert self.runner.deactivate()
        self.stops += self.moving
        self.active = self.moving = False
        assert self.runner.stops.total == self.stops
        self.words = None
        self._forget()

    @precondition(lambda self: not self.active)
    @rule()
    def activate(self) -> None:
        self.runner.activate()
        self._activated()

    # -- what must follow --------------------------------------------------------------------------

    def _forbid(self, read_s: float) -> Reason | None:
        if self.stopped:
            return Reason.STOPPED
        if not self.armed:
            return Reason.DISARMED
        if self.taken_over:
            return Reason.TAKEOVER
        if self.config.dead_man_s:
            if not read_s - self.held_s <= BELIEVED_S:
                return Reason.DEAD_MAN
        elif self.let_go:
            return Reason.DEAD_MAN
        if self.config.watchdog_timeout_s and not read_s - self.watched_s <= BELIEVED_S:
            return Reason.UNWATCHED
        return None

    def _tick(self) -> None:
        if not self.active:
            return
        now_s, steady_s = self.rig.now_s, self.rig.steady_s
        since_s = steady_s - self.last_tick_s
        self.last_tick_s = steady_s
        if since_s > 2 * TICK_S:
            self.woke_s = steady_s
        overrun = steady_s - self.woke_s < TICK_S / 2
        if not overrun:
            self.read_s = steady_s
        if self.latest_ros_s - now_s > JUMP_S:
            self._forget()
        self.latest_ros_s = now_s
        if now_s != self.shown_s:
            self.shown_s, self.changed_s = now_s, steady_s
        stands = steady_s - self.changed_s > TIMEOUTS.image_s
        if stands != self.stood:
            self.stood = stands
            self._plan_anew(now_s)
        forbidden = self._forbid(self.read_s)
        if (forbidden is not None) != self.forbidden_before:
            self.forbidden_before = forbidden is not None
            self._plan_anew(now_s)

        step = self.runner.tick()

        expected = forbidden or self._expect_hold(now_s, steady_s, overrun)
        if step.command is not None:
            assert expected is None and step.hold is None and not step.stop
            self._check_command(step.command, since_s)
            self.moving, self.twist = True, step.command.twist
            return
        assert step.hold is not None
        if expected is not None:
            assert step.hold.reason is expected
        else:
            assert step.hold.reason in BY_THE_POLICY
            if self.anew == len(self.pictures):
                assert step.hold.reason is not Reason.CHUNK_EXHAUSTED, "of other words"
        assert step.stop is self.moving, "the arm is told once to stand, and when it moved"
        self.stops += step.stop
        assert self.runner.stops.total == self.stops
        self.moving, self.twist = False, np.zeros(6)

    def _expect_hold(self, now_s: float, steady_s: float, overrun: bool) -> Reason | None:
        """What comes before anything that the policy has to say."""
        if self.words is None:
            return Reason.NO_INSTRUCTION
        if overrun:
            return Reason.OVERRUN
        if steady_s - self.words_s > TIMEOUTS.instruction_s:
            return Reason.STALE_INSTRUCTION
        if self.stood or not (
            self.image and self.image.is_fresh(now_s, steady_s, TIMEOUTS.image_s)
        ):
            return Reason.STALE_IMAGE
        for part in (self.pose, self.gripper):
            if not (part and part.is_fresh(now_s, steady_s, TIMEOUTS.state_s)):
                return Reason.STALE_STATE
        return None

    def _check_command(self, command: Command, since_s: float) -> None:
        """It comes from what the policy made of a picture that counts, and is within limits."""
        action = command.action
        stamp_s = action.observation_stamp_s
        origins = [seen for seen in self.pictures[self.anew :] if seen.stamp_s == stamp_s]
        assert any(seen.words == self.words for seen in origins), "an answer to something else"
        assert {seen.kind for seen in origins} & {"still", "slow", "fast", "hangs"}
        assert action.instruction == self.words
        assert stamp_s >= self.since_s
        begun_s = stamp_s + action.index * ACTION_S
        early_s = 0.0 if action.index else ACTION_S  # where the clock was set back a little
        assert begun_s - early_s - EDGE_S <= self.rig.now_s <= begun_s + ACTION_S + EDGE_S
        assert self.rig.now_s - stamp_s <= TIMEOUTS.action_s
        speed, before = command.twist, self.twist
        assert np.isfinite(speed).all()
        assert np.linalg.norm(speed[:3]) <= LIMITS.linear_m_s * (1 + 1e-9)
        largest = LIMITS.motion.linear_m_s2
        assert largest is not None
        step_s = max(since_s, 1e-3)
        assert np.linalg.norm(speed[:3] - before[:3]) <= largest * step_s * (1 + 1e-9)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40)
