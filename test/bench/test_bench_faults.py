"""When a fault is injected: only into an arm that moves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vla_align_ros.bench.faults import TRIES, wait_for_steady_motion
from vla_align_ros.errors import SimulationError


class Recorder:
    """A scene whose arm moves, or not, at the moments of injection; it counts its askings."""

    def __init__(self, *moves: bool) -> None:
        self.stage: Any = self
        self.status = {"hold_reason": "stale_image"}
        self.spun: list[float] = []
        self.asked = 0
        self._moves = moves

    def wait_until_moving(self) -> None:
        """It always moves for a while."""

    def spin(self, seconds: float) -> None:
        self.spun.append(seconds)

    def moves_at(self, time_s: float) -> bool:
        self.asked += 1
        return self._moves[self.asked - 1]


def wait(scene: Any) -> None:
    wait_for_steady_motion(scene, random.Random(0))


def test_an_arm_that_is_held_at_the_moment_of_the_fault_is_waited_for_again() -> None:
    scene = Recorder(False, False, True)
    wait(scene)
    assert scene.asked == 3
    # Every attempt comes at another moment between two commands.
    assert len(set(scene.spun[1::2])) == 3


def test_a_moving_arm_is_not_kept_waiting() -> None:
    scene = Recorder(True)
    wait(scene)
    assert scene.asked == 1


def test_an_arm_that_never_moves_steadily_is_an_error_with_the_reason_of_the_hold() -> None:
    scene = Recorder(*[False] * TRIES)
    with pytest.raises(SimulationError, match="stale_image"):
        wait(scene)
