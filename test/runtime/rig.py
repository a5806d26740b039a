"""A runner whose backend and time a test turns by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from sample_policy import HORIZON

from vla_align_ros.inference.fake import FakeBackend
from vla_align_ros.runtime.interlock import Interlock, InterlockConfig
from vla_align_ros.runtime.planner import PolicyLike
from vla_align_ros.runtime.runner import PolicyRunner
from vla_align_ros.runtime.safety import Command, Limits, SafetyGate, Timeouts
from vla_align_ros.runtime.stops import Reason

PICTURE = np.zeros((24, 32, 3), np.uint8)
SAY, OTHER = "put the carrot on the plate", "put the cube on the cloth"
LIMITS, TIMEOUTS = Limits(10.0, 50.0), Timeouts(image_s=0.5, state_s=0.5)
STILL = np.zeros((HORIZON, 7))


class Rig:
    """An active runner of a policy, and time that stands until it is moved.

    Ticks come when the test asks for them: `command_period_s` is long enough for none to be late.
    """

    def __init__(
        self,
        policy: PolicyLike,
        *,
        interlock: InterlockConfig | None = None,
        limits: Limits = LIMITS,
        timeouts: Timeouts = TIMEOUTS,
        command_period_s: float = 10.0,
        **options: object,
    ) -> None:
        self.now_s = self.steady_s = 100.0
        self.planned = threading.Event()
        self.faults: list[Exception] = []
        self.policy = policy
        self.backend: FakeBackend | None = None
        self.runner = PolicyRunner(
            policy,
            SafetyGate(limits, timeouts, command_period_s=command_period_s),
            clock=lambda: self.now_s,
            steady=lambda: self.steady_s,
            interlock=Interlock(interlock or InterlockConfig(start_armed=True)),
            on_chunk=lambda _: self.planned.set(),
            on_fault=lambda _, error: (self.faults.append(error), self.planned.set()),
            **options,  # type: ignore[arg-type]
        )
        self.runner.activate()

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.steady_s += seconds

    def feed(self, *, wait: bool = True) -> None:
        """A frame with fresh state; waits until it is planned on."""
        self.planned.clear()
        self.runner.take_pose(np.array([0.3, 0, 0.2, 0, 0, 0]), self.now_s)
        self.runner.take_gripper(1.0, self.now_s)
        self.runner.take_image(lambda: PICTURE, self.now_s)
        if wait:
            assert self.planned.wait(5.0), "nothing was planned"

    def begin(self, engine: Waiting) -> None:
        """Words and a frame; returns while the engine is being asked about them."""
        self.runner.set_instruction(SAY)
        self.feed(wait=False)
        assert engine.begun.wait(5.0)

    def hold_reason(self) -> Reason | None:
        step = self.runner.tick()
        return None if step.hold is None else step.hold.reason

    def command(self) -> Command:
        """The command of a tick, which must be one."""
        step = self.runner.tick()
        assert step.command is not None, step.hold
        return step.command


class Panic(BaseException):
    """As libraries written in Rust raise it: no Exception."""


class Waiting:
    """An engine that answers once `go` is set; `begun` tells that it was asked."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, inputs: object) -> np.ndarray:
        self.begun.set()
        assert self.go.wait(5.0)
        return STILL


MakeRig = Callable[..., Rig]


def wait_for(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
