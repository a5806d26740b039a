"""Why an arm must not move, by public names, and the record of the times it was stopped."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


class Reason(str, Enum):
    """Why the arm must not move. The names are public: logs, status and diagnostics carry them."""

    INACTIVE = "inactive"
    STOPPED = "stopped"
    DISARMED = "disarmed"
    TAKEOVER = "takeover"
    DEAD_MAN = "dead_man"
    UNWATCHED = "unwatched"
    NO_INSTRUCTION = "no_instruction"
    OVERRUN = "overrun"
    STALE_INSTRUCTION = "stale_instruction"
    STALE_IMAGE = "stale_image"
    STALE_STATE = "stale_state"
    UNSYNCHRONISED = "unsynchronised"
    UNFAMILIAR_SCENE = "unfamiliar_scene"
    INFERENCE_ERROR = "inference_error"
    NON_FINITE = "non_finite"
    OUT_OF_LIMITS = "out_of_limits"
    PLANNING = "planning"
    STALE_ACTION = "stale_action"
    CHUNK_EXHAUSTED = "chunk_exhausted"

    def __str__(self) -> str:
        return self.value


DECIDED = frozenset({Reason.STOPPED, Reason.DISARMED, Reason.TAKEOVER, Reason.DEAD_MAN})
"""Those that a person decided: they end what a gripper is doing too; other holds leave it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Stand still: the arm gets zero once and then silence. `detail` is for a person to read."""

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else str(self.reason)


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
