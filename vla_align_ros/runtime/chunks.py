"""Keeps planned actions on the time axis, so that the clock alone tells the action for now."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.errors import ConfigurationError, ContractError


@dataclass(frozen=True, slots=True)
class ScheduledAction:
    """One action of a chunk, with the instruction and the observation that it came from.

    `action` (7,) is a delta over `period_s` (metres, radians, gripper fraction open), read-only;
    `index` counts from 0 in its chunk; `plan` counts the chunks that the buffer accepted.
    """

    action: NDArray[np.float64]
    period_s: float
    instruction: str
    observation_stamp_s: float
    index: int
    plan: int


class ChunkBuffer:
    """The latest chunk of the current instruction, read by time. Safe between two threads.

    Action k of a chunk belongs to [stamp + k period, stamp + (k + 1) period), where the stamp is
    the observation's: the delay of inference is thus measured and skipped, not guessed. A newer
    chunk takes over as soon as it is added. All times are seconds on one clock that the caller
    owns; nothing here reads a clock.

    Raises ConfigurationError on a period or horizon that cannot hold an action.
    """

    def __init__(self, period_s: float, horizon: int) -> None:
        if not (math.isfinite(period_s) and period_s > 0 and horizon >= 1):
            raise ConfigurationError(
                "a chunk buffer cannot hold an action",
                got=f"period {period_s} s, horizon {horizon}",
                expected="period > 0 s and horizon >= 1",
                fix="use the period and horizon of the bundle's ActionSpec",
            )
        self.period_s = period_s
        self.horizon = horizon
        self._lock = threading.Lock()
        self._instruction: str | None = None
        self._chunk: ActionChunk | None = None
        self._accepted = 0

    @property
    def instruction(self) -> str | None:
        """The instruction that chunks must carry to be accepted; None accepts none."""
        return self._instruction

    @property
    def accepted(self) -> int:
        """How many chunks were accepted since construction."""
        return self._accepted

    def set_instruction(self, instruction: str | None) -> bool:
        """Accept only this instruction from now on; True if it changed: older plans are gone."""
        with self._lock:
            if instruction == self._instruction:
                return False
            self._instruction = instruction
            self._chunk = None
            return True

    def clear(self) -> None:
        """Forget every planned action; the instruction stays."""
        with self._lock:
            self._chunk = None

    def add(self, chunk: ActionChunk) -> bool:
        """Let a chunk take over; False if it answers another instruction or an older observation.

        Raises ContractError when its shape or period is not the buffer's.
        """
        self._check(chunk)
        with self._lock:
            if self._instruction is None or chunk.instruction != self._instruction:
                return False
            if self._chunk is not None and chunk.stamp_s < self._chunk.stamp_s:
                return False
            self._chunk = chunk
            self._accepted += 1
            return True

    def action_at(self, now_s: float) -> ScheduledAction | None:
        """The action for `now_s`, or None where nothing is planned: no chunk, or past its end.

        An observation stamped ahead of `now_s` by less than a period counts as taken now (two
        processes read the clock at different instants); one further ahead is not executed.
        """
        with self._lock:
            chunk, plan = self._chunk, self._accepted
        if chunk is None:
            return None
        index = math.floor((now_s - chunk.stamp_s) / self.period_s)
        if index == -1:
            index = 0
        if not 0 <= index < self.horizon:
            return None
        return ScheduledAction(
            chunk.actions[index], self.period_s, chunk.instruction, chunk.stamp_s, index, plan
        )

    def end_s(self) -> float | None:
        """When the last planned action ends, on the caller's clock; None without a plan."""
        with self._lock:
            chunk = self._chunk
        return None if chunk is None else chunk.stamp_s + self.horizon * self.period_s

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
