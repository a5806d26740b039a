"""Runs a policy against clocks and callbacks: frames in, decisions for the arm out, no ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.contract.prompt import clean_instruction
from vla_align_ros.errors import ContractError
from vla_align_ros.runtime.chunks import ChunkBuffer
from vla_align_ros.runtime.interlock import Interlock, InterlockConfig
from vla_align_ros.runtime.metrics import Metrics
from vla_align_ros.runtime.observing import SYNC_TOLERANCE_S, Load, Observer
from vla_align_ros.runtime.planner import Frame, Planner, PolicyLike
from vla_align_ros.runtime.safety import SafetyGate, Situation, Step
from vla_align_ros.runtime.sight import SightLoop
from vla_align_ros.runtime.sources import RobotState, Source
from vla_align_ros.runtime.stops import Hold, Reason, StopRecord
from vla_align_ros.runtime.strategies import Strategy, check_strategy
from vla_align_ros.runtime.ticks import Tick, Ticks

T = TypeVar("T")
CLOCK_JUMP_S = 0.1
# How long a sight may wait for the plan before it, in times between two sights: a newer one comes
# soon after. A slow camera's sights wait, as far as that costs less than the next one's delay.
PATIENCE = 0.1


class PolicyRunner:
    """Observation, asynchronous inference, chunk buffer and safety gate behind a few calls.

    One thread calls everything here; the runner's own thread runs inference. `clock` is the time
    of stamps and chunks (ROS time), `steady` a monotonic clock; both in seconds. Callbacks:
    `on_chunk(chunk)` and `on_fault(hold, error)` come from the inference thread. `pose_needed`
    says that commands are made from the measured pose. `sight` looks at what the policy looks at.

    Raises ConfigurationError where the policy needs inputs that the runner cannot supply, or cannot
    be run by the strategy.
    """

    def __init__(
        self,
        policy: PolicyLike,
        gate: SafetyGate,
        *,
        clock: Callable[[], float],
        steady: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
        replan_period_s: float = 0.0,
        sync_tolerance_s: float = SYNC_TOLERANCE_S,
        pose_needed: bool = False,
        strategy: Strategy | None = None,
        interlock: Interlock | None = None,
        sight: SightLoop | None = None,
        on_chunk: Callable[[ActionChunk], None] | None = None,
        on_fault: Callable[[Hold, BaseException], None] | None = None,
    ) -> None:
        spec = policy.spec
        self.metrics = Metrics() if metrics is None else metrics
        self.observer = Observer(
            spec, self.metrics, clock=clock, steady=steady, tolerance_s=sync_tolerance_s
        )
        self.stops = StopRecord()
        self.hold: Hold | None = Hold(Reason.INACTIVE)
        self._gate = gate
        self._pose_needed = pose_needed
        self._clock = clock
        self._steady = steady
        self._replan_period_s = replan_period_s
        self.sight = sight
        self.interlock = Interlock(InterlockConfig()) if interlock is None else interlock
        self._buffer = ChunkBuffer(spec.action.period_s, spec.action.horizon, strategy)
        check_strategy(self._buffer.strategy, spec.action, replan_period_s)
        self._planner = Planner(
            policy,
            self._buffer,
            self.metrics,
            clock=clock,
            steady=steady,
            on_chunk=on_chunk,
            on_fault=on_fault,
        )
        self._active = False
        self._permitted = False
        self._plans_before = 0
        self._last_plan = 0
        self._last_now_s = float("-inf")
        self._moved_s = float("-inf")  # when the clock was last seen to move, by the monotonic one
        self._stands = False  # whether it has shown the same for too long
        self._ticks = Ticks(gate.command_period_s)
        self._last_pose: tuple[NDArray[np.float64], float] | None = None  # and when it was measured
        self._last_sight_s = float("-inf")
        self._instruction_s = float("-inf")
        self._hold_since_s = float("-inf")

    @property
    def active(self) -> bool:
        """Whether inference runs and instructions are taken."""
        return self._active

    @property
    def instruction(self) -> str | None:
        """The instruction that is followed, cleaned; None if there is none."""
        return self._buffer.instruction

    @property
    def state(self) -> RobotState:
        """The robot's state as it arrived."""
        return self.observer.state

    @property
    def plan_overdue(self) -> bool:
        """Whether the arm waits for its first plan for longer than a picture stays fresh."""
        if self.hold is None or self.hold.reason is not Reason.PLANNING:
            return False
        return self._steady() - self._hold_since_s > self._gate.timeouts.image_s

    @property
    def needs_pose(self) -> bool:
        """Whether the end-effector pose must be fed: for policy, workspace or commands."""
        return self.state.needs_pose or self._commands_need_pose

    @property
    def _commands_need_pose(self) -> bool:
        return self._pose_needed or self._gate.limits.needs_position

    @property
    def wants_gripper(self) -> bool:
        """Whether the gripper's opening should be fed: for the policy, or to limit its rate."""
        return self.state.needs_gripper or self._gate.limits.motion.gripper_per_s is not None

    def fresh_pose(self) -> NDArray[np.float64] | None:
        """The end effector's pose (6,) in m and rad; None if it is older than the state may be.

        A clock that jumps makes every stamp useless, and the arm must be stopped where it is: what
        was fresh at the last tick counts for as long by the monotonic clock.
        """
        fresh = self._fresh(self.state.pose)
        if fresh is not None or self._last_pose is None:
            return fresh
        pose, measured_s = self._last_pose
        return pose if self._steady() - measured_s <= self._gate.timeouts.state_s else None

    def _note_pose(self, now_s: float, steady_s: float) -> None:
        pose = self._fresh(self.state.pose)
        if pose is not None:
            self._last_pose = pose, steady_s - self.state.pose.lag_s(now_s, steady_s)

    def _fresh(self, source: Source[T]) -> T | None:
        age_s = source.age_s(self._clock(), self._steady())
        stale = age_s is None or abs(age_s) > self._gate.timeouts.state_s
        return None if stale else source.value

    def ages_s(self) -> dict[str, float | None]:
        """Ages of the inputs in seconds by name, None where nothing arrived."""
        return self.observer.ages_s(with_pose=self.needs_pose)

    def activate(self) -> None:
        """Start with nothing planned; ConfigurationError while an old inference still hangs."""
        self._forget()
        begun_s = self._steady()
        self._ticks.begin(begun_s)
        self._stands = False
        self._permitted = self.interlock.check(begun_s) is None
        self._planner.start()
        self._active = True

    def deactivate(self) -> bool:
        """Stop inference and forget everything planned; False if inference does not return."""
        self._active = False
        self._forget()
        self._note_hold(Hold(Reason.INACTIVE))
        return self._planner.stop()

    @property
    def infers(self) -> bool:
        """Whether its thread is there: once inactive, that an inference has not returned yet."""
        return self._planner.alive

    def set_instruction(self, text: str) -> bool:
        """Follow another instruction from the next frame on; True if it changed.

        A blank text withdraws the instruction. So does one that the contract refuses, and its
        ContractError is raised: the arm must not go on with words that were meant to be replaced.
        """
        if not self._active:
            return False
        try:
            instruction = clean_instruction(text) if text.strip() else None
        except ContractError:
            self._change_instruction(None)
            raise
        self._instruction_s = self._steady()
        return self._change_instruction(instruction)

    def take_image(self, load: Load, stamp_s: float, camera: str | None = None) -> None:
        """Take a frame of a camera that `load` turns into (H, W, 3) uint8 RGB, when it is used.

        `camera` may be left out where the policy has one. The inference thread loads.
        """
        sight = self.observer.take_image(camera, load, stamp_s)
        instruction = self.instruction
        if sight is not None:
            since_s, self._last_sight_s = sight.stamp_s - self._last_sight_s, sight.stamp_s
        if sight is not None and self._active and self.sight is not None:
            self.sight.offer(sight, instruction)
        if sight is None or not self._active or instruction is None:
            return
        now_s, timeouts = self._clock(), self._gate.timeouts
        age_s = self.state.age_s(now_s, self._steady())
        if age_s is None or abs(age_s) > timeouts.state_s:
            return
        if abs(now_s - sight.stamp_s) > timeouts.image_s:
            return
        if self._due(sight.stamp_s):
            patience_s = PATIENCE * max(since_s, 0.0)
            self._planner.submit(Frame(sight, instruction, patience_s, self._buffer.turn))

    def take_pose(self, pose: NDArray[np.float64], stamp_s: float) -> None:
        """Take an end-effector pose (6,): x, y, z in m, roll, pitch, yaw in rad, command frame."""
        self.state.pose.put(pose, stamp_s=stamp_s, steady_s=self._steady())

    def take_gripper(self, fraction_open: float, stamp_s: float) -> None:
        """Take the gripper's opening, 0 closed .. 1 open."""
        self.state.gripper.put(fraction_open, stamp_s=stamp_s, steady_s=self._steady())

    def tick(self) -> Step:
        """Decide what the arm is sent now; call it at the command rate while active.

        When a person forbids motion, and when it is permitted again, what was planned is dropped;
        so it is when the clock stands still, by which no plan would ever end, and when it goes on.
        """
        now_s, steady_s = self._clock(), self._steady()
        tick = self._ticks.take(steady_s)
        back_s = self._last_now_s - now_s
        jumped = back_s > CLOCK_JUMP_S
        if back_s != 0.0:
            self._moved_s = steady_s
        if jumped:
            self._forget(keep_instruction=True)
            self.metrics.count("clock_jumps_back")
        self._last_now_s = now_s
        self._note_pose(now_s, steady_s)
        self._note_clock(steady_s)
        forbidden = self.interlock.check(steady_s, tick.read_s)
        if self._permitted != (forbidden is None):
            self._permitted = forbidden is None
            self._drop_plans()
        decision = self._gate.check(self._situation(now_s, steady_s, tick, forbidden))
        if isinstance(decision, Hold):
            if jumped:
                told = f"the clock went back by {back_s:.2f} s; {decision.detail}"
                decision = replace(decision, detail=told)
            return Step(hold=decision, stop=self._note_hold(decision))
        self.hold = None
        self.stops.note_motion()
        self.metrics.tick("command", steady_s)
        self.metrics.count("commands_sent")
        if decision.clamped:
            self.metrics.count("commands_clamped")
        if decision.action.plan != self._last_plan:
            self._last_plan = decision.action.plan
            self.metrics.observe_ms("total", 1e3 * (now_s - decision.action.observation_stamp_s))
        return Step(command=decision)

    def _note_clock(self, steady_s: float) -> None:
        stands = steady_s - self._moved_s > self._gate.timeouts.image_s
        if stands != self._stands:
            self._stands = stands
            self._drop_plans()

    def _situation(
        self, now_s: float, steady_s: float, tick: Tick, forbidden: Hold | None
    ) -> Situation:
        with_pose = self._commands_need_pose
        pose = self.state.pose
        action = self._buffer.action_at(now_s)
        image, image_age_s = self.observer.oldest_image(now_s, steady_s)
        return Situation(
            instruction=self.instruction,
            image_age_s=image_age_s,
            image=image,
            disorder=self.observer.explain_disorder(steady_s, self._gate.timeouts.image_s),
            strange=None if self.sight is None else self.sight.explain_strange(),
            action=action,
            plans=self._buffer.accepted - self._plans_before,
            ahead_s=self._buffer.ahead_s,
            state_age_s=self.state.age_s(now_s, steady_s, with_pose=with_pose),
            state_needed=bool(self.state.names) or self._pose_needed,
            position_m=None if pose.value is None else pose.value[:3],
            position_age_s=pose.lag_s(now_s, steady_s),
            gripper=self._fresh(self.state.gripper),
            fault=self._planner.fault,
            forbidden=forbidden,
            active=self._active,
            instruction_age_s=steady_s - self._instruction_s,
            action_age_s=0.0 if action is None else now_s - action.observation_stamp_s,
            since_tick_s=tick.since_s,
            overrun_s=tick.overrun_s,
            clock_still_s=steady_s - self._moved_s,
        )

    def _note_hold(self, hold: Hold) -> bool:
        stop = self.stops.note_hold(hold, self._clock())
        if stop:
            self.metrics.pause("command")
            self.metrics.count(f"stops_{hold.reason}")
        if self.hold is None or self.hold.reason is not hold.reason:
            self._hold_since_s = self._steady()
        self.hold = hold
        return stop

    def _change_instruction(self, instruction: str | None) -> bool:
        changed = self._buffer.set_instruction(instruction)
        if changed:
            self.metrics.count("instructions_taken")
            self._plan_anew()
        return changed

    def _drop_plans(self) -> None:
        """Forget all plans, and those that are being made from what was seen until now."""
        self._buffer.clear(self._clock())
        self._plan_anew()

    def _plan_anew(self) -> None:
        self._plans_before = self._buffer.accepted
        self._planner.drop()

    def _forget(self, *, keep_instruction: bool = False) -> None:
        self._buffer.clear()
        if not keep_instruction:
            self._buffer.set_instruction(None)
        self._plan_anew()
        self._gate.rest()
        self._last_now_s = float("-inf")
        self.observer.clear()
        if self.sight is not None:
            self.sight.clear()

    def _due(self, stamp_s: float) -> bool:
        """Whether a frame of this stamp is to be planned on, by the re-planning period."""
        turn, begun_s = self._planner.begun or (-1, 0.0)
        if turn != self._buffer.turn or self._planner.fault is not None:
            return True
        since_s = stamp_s - begun_s
        return since_s < 0 or since_s >= self._replan_period_s - 1e-3
