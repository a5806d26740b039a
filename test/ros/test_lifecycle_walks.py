"""Lifecycle transitions in every order, legal or not, a thousand walks long; and without a leak."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros_graph import WIDOWX
from std_msgs.msg import String
from tiny_policy import CARROT

from vla_align_ros.ros.policy_node import PolicyNode

pytestmark = pytest.mark.slow
WALKS, STEPS = 1000, 6
WALKS_A_NODE = 50  # each of these walks ends in a shutdown
CYCLES, WARM_CYCLES = 100, 30
GROWTH_MIB = 4.0
IDS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "nonsense": 77,
}
SHUTDOWN = {
    "unconfigured": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    "inactive": Transition.TRANSITION_INACTIVE_SHUTDOWN,
    "active": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}
LEGAL = {
    ("unconfigured", "configure"): "inactive",
    ("inactive", "cleanup"): "unconfigured",
    ("inactive", "activate"): "active",
    ("active", "deactivate"): "inactive",
}


class Walker:
    """A node, the state that it must be in, and all that a graph may do to it meanwhile."""

    def __init__(self, bundle: Path) -> None:
        words = ["--ros-args", "-p", f"bundle:={bundle}", "--params-file", str(WIDOWX)]
        words += ["-p", "start_armed:=true", "-p", "watchdog_timeout_s:=0.0"]
        self.node = PolicyNode(cli_args=words)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.state = "unconfigured"
        self._bundle = str(bundle)
        self._broken = False

    def request(self, transition: int) -> bool:
        """Ask as a lifecycle manager does, through the service's callback."""
        request = ChangeState.Request(transition=Transition(id=transition))
        callback = self.node._service_change_state.callback
        return bool(callback(request, ChangeState.Response()).success)

    def step(self, name: str) -> None:
        """Ask for a transition, and hold the answer and the state against the state machine."""
        wanted = LEGAL.get((self.state, name))
        if wanted == "inactive" and name == "configure" and self._broken:
            wanted = None
        assert self.request(IDS[name]) == (wanted is not None), (self.state, name)
        self.state = wanted or self.state
        self.check()

    def shut_down(self) -> None:
        assert self.request(SHUTDOWN[self.state])
        self.state = "finalized"
        self.check()

    def check(self) -> None:
        node = self.node
        assert node._state_machine.current_state[1] == node.reporter.state == self.state
        assert (node._command_timer is not None) == (self.state == "active")
        assert (node._runner is not None) == (self.state in ("inactive", "active"))
        assert node._runner is None or node._runner.active == (self.state == "active")

    def break_bundle(self, broken: bool) -> None:
        """Another bundle is named, which counts only while nothing is configured."""
        path = "/nowhere" if broken else self._bundle
        answer = self.node.set_parameters([Parameter("bundle", value=path)])[0]
        assert answer.successful == (self.state == "unconfigured")
        if answer.successful:
            self._broken = broken

    def disturb(self, chance: random.Random) -> None:
        """Messages come in every state."""
        inputs = self.node._inputs
        if inputs is not None:
            inputs._on_instruction(String(data=chance.choice([CARROT, "", "x" * 600])))
        for _ in range(chance.randrange(3)):
            self._executor.spin_once(timeout_sec=0.0)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()


@pytest.fixture
def walker(ros: None, tiny_bundle: Path) -> Iterator[Walker]:
    walker = Walker(tiny_bundle)
    yield walker
    walker.close()


def test_a_thousand_random_walks_end_where_the_state_machine_says(
    ros: None, tiny_bundle: Path
) -> None:
    chance = random.Random(5)
    walks = 0
    while walks < WALKS:
        walker = Walker(tiny_bundle)
        try:
            for _ in range(WALKS_A_NODE):
                for _ in range(STEPS):
                    if chance.random() < 0.1:
                        walker.break_bundle(chance.random() < 0.3)
                    walker.step(chance.choice(list(IDS)))
                    walker.disturb(chance)
                walks += 1
            walker.shut_down()
            assert not walker.request(IDS["configure"]), "a finalized node came back"
        finally:
            walker.close()
    inference = [thread for thread in threading.enumerate() if thread.name == "inference"]
    assert not inference, "inference threads were left behind"


def read_rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_cycle(walker: Walker) -> None:
    walker.step("configure")
    walker.step("activate")
    inputs: Any = walker.node._inputs
    inputs._on_instruction(String(data=CARROT))
    walker.node._runner.take_image(  # type: ignore[union-attr]
        lambda: np.full((48, 64, 3), 128, np.uint8), walker.node._now_s()
    )
    for _ in range(5):
        walker._executor.spin_once(timeout_sec=0.005)
    walker.step("deactivate")
    walker.step("cleanup")


def test_a_hundred_lives_leave_no_memory_behind(walker: Walker) -> None:
    def live(cycles: int) -> float:
        for _ in range(cycles):
            run_cycle(walker)
        gc.collect()
        return read_rss_mib()

    warm_mib = live(WARM_CYCLES)
    assert live(CYCLES) - warm_mib < GROWTH_MIB
    assert walker.node._policy is None
