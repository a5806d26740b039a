"""The person of the demonstration as a node: how it waits until the others are ready."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from ros_graph import RELIABLE, Probe
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.messages import make_diagnostics
from vla_align_ros.ros.operator_node import ARM_AGAIN_S, OperatorNode


class Others:
    """A simulator and an active policy, as far as the operator looks at them."""

    def __init__(self, probe: Probe) -> None:
        self.armed = 0
        self._probe = probe
        node = probe.node
        for name in ("instruction", "reset_episode"):
            node.create_subscription(String, f"/operator_node/{name}", lambda _: None, RELIABLE)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        node.create_timer(0.1, self._report)
        self._deaf = rclpy.create_node("deaf")  # nobody spins it: it is there and never answers
        self._deaf.create_service(SetBool, "/operator_node/arm", self._arm)

    def restart(self) -> None:
        """What was asked until now is lost, as by a node that dies before it answers."""
        self._deaf.destroy_node()
        self._probe.node.create_service(SetBool, "/operator_node/arm", self._arm)

    def close(self) -> None:
        self._deaf.destroy_node()

    def _arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.armed += 1
        response.success = True
        return response

    def _report(self) -> None:
        values = {"bundle_id": "b", "state": "active", "error": None}
        stamp = self._probe.node.get_clock().now().to_msg()
        self._diagnostics.publish(make_diagnostics("policy", "", b"\0", "", values, stamp))


@contextmanager
def operate(folder: Path, ready_s: float) -> Iterator[tuple[Probe, Others, OperatorNode]]:
    """The operator beside the others, all in this process; nothing is spun yet."""
    words = ["-p", f"out_dir:={folder}", "-p", f"ready_timeout_s:={ready_s}"]
    rclpy.init(args=["--ros-args", *words])
    probe = Probe()
    others, operator = Others(probe), OperatorNode()
    probe.executor.add_node(operator)
    try:
        yield probe, others, operator
    finally:
        probe.close()
        others.close()
        operator.destroy_node()
        rclpy.try_shutdown()


def test_asks_again_to_arm_when_no_answer_comes(tmp_path: Path) -> None:
    with operate(tmp_path, 60.0) as (probe, others, operator):
        assert probe.wait_for(lambda: operator._arming is not None)
        others.restart()
        assert probe.wait_for(lambda: operator._phase != "waiting", 10.0 + ARM_AGAIN_S)
        assert others.armed >= 1


def test_gives_up_on_a_policy_that_never_answers(tmp_path: Path) -> None:
    with (
        operate(tmp_path, 1.0) as (probe, _, _),
        pytest.raises(ConfigurationError, match="without an answer of ~/arm"),
    ):
        probe.spin(20.0)
