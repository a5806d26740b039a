"""Keeps planned actions on the time axis, so that the clock alone tells the action for now."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.errors import ConfigurationError, ContractError
from vla_align_ros.runtime.strategies import Newest, Plan, Strategy, count_periods, read_ahead

KEPT_PLANS = 64


@dataclass(frozen=True, slots=True)
class ScheduledAction:
    """One action of a chunk, with the instruction and the observation that it came from.

    `action` (7,) is a delta over `period_s` (metres, radians, gripper fraction open), read-only;
    `index` counts from 0 in its chunk; `plan` counts the chunks that the buffer accepted. Where a
    strategy mixes several plans, all but the action itself is of the newest of them.
    """

    action: NDArray[np.float64]
    period_s: float
    instruction: str
    observation_stamp_s: float
    index: int
    plan: int


class ChunkBuffer:
    """Chunks of the current instruction, read by time. Safe between two threads.

    Action k of a chunk belongs to [stamp + k period, stamp + (k + 1) period), where the stamp is
    the observation's: the delay of inference is thus measured and skipped, not guessed. Where
    chunks overlap the `strategy` decides; by default a newer one takes over as soon as it is
    added. All times are seconds on one clock that the caller owns; nothing here reads a clock.

    Raises ConfigurationError on a period or horizon that cannot hold an action.
    """

    def __init__(self, period_s: float, horizon: int, strategy: Strategy | None = None) -> None:
        if not (math.isfinite(period_s) and period_s > 0 and horizon >= 1):
            raise ConfigurationError(
                "a chunk buffer cannot hold an action",
                got=f"period {period_s} s, horizon {horizon}",
                expected="period > 0 s and horizon >= 1",
                fix="use the period and horizon of the bundle's ActionSpec",
            )
        self.period_s = period_s
        self.horizon = horizon
        self.strategy: Strategy = Newest() if strategy is None else strategy
        self._lock = threading.Lock()
        self._instruction: str | None = None
        self._plans: deque[Plan] = deque(maxlen=KEPT_PLANS)
        self._accepted = 0
        self._turn = 0
        self._since_s = -math.inf
        self._ahead_s: float | None = None

    @property
    def instruction(self) -> str | None:
        """The instruction that chunks must carry to be accepted; None accepts none."""
        return self._instruction

    @property
    def accepted(self) -> int:
        """How many chunks were accepted since construction."""
        return self._accepted

    @property
    def turn(self) -> int:
        """Counts new starts (`clear`, another instruction); see `add`."""
        return self._turn

    @property
    def ahead_s(self) -> float | None:
        """How far ahead the last plan of this turn was stamped, if it was refused for that."""
        return self._ahead_s

    def set_instruction(self, instruction: str | None) -> bool:
        """Accept only this instruction from now on; True if it changed: a new turn, no plans."""
        with self._lock:
            if instruction == self._instruction:
                return False
            self._instruction = instruction
            self._turn += 1
            self._forget()
            return True

    def clear(self, since_s: float = -math.inf) -> None:
        """Begin a new turn with nothing planned; the instruction stays.

        Refused from now on: what was begun in an earlier turn, whatever its stamp (the clock may
        have been set since), and what answers an observation before `since_s`.
        """
        with self._lock:
            self._since_s = since_s
            self._turn += 1
            self._forget()

    def drop(self) -> None:
        """Forget every planned action; what is still on its way may come."""
        with self._lock:
            self._forget()

    def add(
        self,
        chunk: ActionChunk,
        arrived_s: float | None = None,
        *,
        turn: int | None = None,
        told: int = 0,
    ) -> bool:
        """Plan a chunk; False if it is refused.

        That is a chunk for another instruction, one of an older observation or of an earlier
        `turn` (the one in which it was begun; the present one, if not given), or one that is
        stamped more than a period ahead: from a clock that was set back, or that runs ahead.
        `arrived_s` is now on the caller's clock (its stamp, if not given); `told` is how many
        actions of `commit` the chunk goes on from. Raises ContractError when its shape or period
        is not the buffer's.
        """
        self._check(chunk)
        arrived_s = chunk.stamp_s if arrived_s is None else arrived_s
        with self._lock:
            if self._instruction is None or chunk.instruction != self._instruction:
                return False
            if turn not in (None, self._turn):
                return False
            if chunk.stamp_s < self._since_s:
                return False
            ahead = self._is_ahead(chunk, arrived_s)
            self._ahead_s = chunk.stamp_s - arrived_s if ahead else None
            if ahead:
                return False
            while self._plans and self._is_ahead(self._plans[-1].chunk, arrived_s):
                self._plans.pop()  # the clock went back a little: it must not rule until then
            if self._plans and chunk.stamp_s < self._plans[-1].chunk.stamp_s:
                return False
            self._accepted += 1
            while self._plans and self._end_s(self._plans[0]) <= arrived_s:
                self._plans.popleft()
            self._plans.append(Plan(chunk, self._accepted, arrived_s, told))
            return True

    def action_at(self, now_s: float) -> ScheduledAction | None:
        """The action for `now_s`, or None where nothing is planned: no chunk, or past its end."""
        with self._lock:
            choice = self.strategy.choose(tuple(self._plans), now_s)
        if choice is None:
            return None
        chunk = choice.plan.chunk
        return ScheduledAction(
            choice.action,
            self.period_s,
            chunk.instruction,
            chunk.stamp_s,
            choice.index,
            choice.plan.number,
        )

    def commit(self, from_s: float, count: int) -> NDArray[np.float64] | None:
        """The actions (K, 7) that will be executed in `count` periods from `from_s` on.

        For an observation of that stamp (see `Observation.committed`). None where the strategy
        does not commit, or nothing is planned; K is less than `count` where the plan ends sooner.
        """
        if not self.strategy.commits:
            return None
        with self._lock:
            plans = tuple(self._plans)
        return read_ahead(self.strategy, plans, from_s, count) if plans else None

    def end_s(self) -> float | None:
        """When the last planned action ends, on the caller's clock; None without a plan."""
        with self._lock:
            return self._end_s(self._plans[-1]) if self._plans else None

    def _is_ahead(self, chunk: ActionChunk, now_s: float) -> bool:
        """Whether none of its actions is for now or before."""
        return count_periods(chunk.stamp_s, self.period_s, now_s) < -1

    def _end_s(self, plan: Plan) -> float:
        return plan.chunk.stamp_s + self.horizon * self.period_s

    def _forget(self) -> None:
        self._ahead_s = None
        self._plans.clear()
        self.strategy.reset()

    def _check(self, chunk: ActionChunk) -> None:
        if chunk.actions.ndim != 2 or len(chunk.actions) != self.horizon:
            raise ContractError(
                "a chunk has the wrong length",
                got=f"actions of shape {chunk.actions.shape}",
                expected=f"({self.horizon}, action dimension)",
                fix="build the buffer from the ActionSpec of the policy that makes the chunks",
            )
        if not math.isclose(chunk.period_s, self.period_s, rel_tol=1e-9):
            raise ContractError(
                "a chunk runs at another rate than its buffer",
                got=f"{chunk.period_s} s a step",
                expected=f"{self.period_s} s a step",
                fix="build the buffer from the ActionSpec of the policy that makes the chunks",
            )
