"""When an arm came to rest, from the commands that its controller got and its timeout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Arrived(Protocol):
    """A command: when it arrived, whether it is about motion, and how old its stamp was then."""

    @property
    def arrived_s(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def moving(self) -> bool:
        """Whether it is not zero."""
        ...

    @property
    def age_s(self) -> float:
        """Seconds."""
        ...


@dataclass(frozen=True, slots=True)
class MotionEnd:
    """An arm came to rest at `time_s`, by a "zero" or by the controller's "timeout"."""

    time_s: float
    by: str


def find_motion_ends(
    commands: Iterable[Arrived], since_s: float, until_s: float, timeout_s: float
) -> list[MotionEnd]:
    """Every end of motion in (since_s, until_s], in order; a motion that goes on has none.

    A command counts for `timeout_s` after its arrival, and not at all if its stamp was older than
    that by then, as in MoveIt Servo.
    """
    ends = []
    moving_s: float | None = None
    for command in commands:
        if command.arrived_s > until_s:
            break
        if command.age_s > timeout_s:
            continue
        if moving_s is not None and command.arrived_s > moving_s + timeout_s:
            ends.append(MotionEnd(moving_s + timeout_s, "timeout"))
            moving_s = None
        if command.moving:
            moving_s = command.arrived_s
        elif moving_s is not None:
            ends.append(MotionEnd(command.arrived_s, "zero"))
            moving_s = None
    if moving_s is not None and moving_s + timeout_s <= until_s:
        ends.append(MotionEnd(moving_s + timeout_s, "timeout"))
    return [end for end in ends if end.time_s > since_s]


def is_moving(commands: Iterable[Arrived], at_s: float, timeout_s: float) -> bool:
    """Whether the arm moves at a moment."""
    last: Arrived | None = None
    for command in commands:
        if command.arrived_s <= at_s and command.age_s <= timeout_s:
            last = command
    return last is not None and last.moving and at_s <= last.arrived_s + timeout_s
