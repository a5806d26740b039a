"""What diagnostics make of a hold: some are in order, and none of them for ever."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
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


def test_every_stop_has_its_line_and_a_hold_that_only_changes_is_not_repeated(
    ros: None, capfd: pytest.CaptureFixture[str]
) -> None:
    node = LifecycleNode("policy_node")
    try:
        reporter = Reporter(node, Interlock(InterlockConfig()))
        late, words = Hold(Reason.STALE_IMAGE, "no image yet"), Hold(Reason.NO_INSTRUCTION)
        for hold in (None, late, None, late, None, late, words, late, words, late):
            runner = SimpleNamespace(hold=hold, stops=None, instruction="go")
            reporter.runner = runner  # type: ignore[assignment]
            reporter.report()
    finally:
        node.destroy_node()
    told = capfd.readouterr().err
    assert told.count("hold: stale_image (no image yet)") == 3
    assert told.count("hold: no_instruction") == 1


def test_a_second_master_of_the_arm_is_logged_when_it_comes(
    ros: None, capfd: pytest.CaptureFixture[str]
) -> None:
    node = LifecycleNode("policy_node")
    try:
        reporter = Reporter(node, Interlock(InterlockConfig()))
        for rivals in ([], ["/cmd"], ["/cmd"], [], ["/cmd"]):
            reporter.diagnose({"rival_publishers": rivals})
    finally:
        node.destroy_node()
    told = capfd.readouterr().err
    assert told.count("another node publishes commands too, on /cmd") == 2
