"""What diagnostics make of a hold: some are in order, and none of them for ever."""

from __future__ import annotations

from types import SimpleNamespace

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode

from vla_align_ros.ros.reporting import Reporter
from vla_align_ros.runtime.interlock import Interlock, InterlockConfig
from vla_align_ros.runtime.stops import Hold, Reason


def test_waiting_for_the_first_plan_is_in_order_until_it_is_overdue(ros: None) -> None:
    node = LifecycleNode("policy_node")
    try:
        reporter = Reporter(node, Interlock(InterlockConfig()))
        hold = Hold(Reason.PLANNING, "the last plan was refused")
        levels = []
        for overdue in (False, True):
            reporter.runner = SimpleNamespace(plan_overdue=overdue)  # type: ignore[assignment]
            level, text = reporter._judge(hold)
            assert hold.detail in text
            levels.append(level)
    finally:
        node.destroy_node()
    assert levels == [DiagnosticStatus.OK, DiagnosticStatus.WARN]
