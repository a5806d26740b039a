"""The gripper's convention and the two command topics."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from rclpy.lifecycle import LifecycleNode
from ros_graph import Probe, values_of
from sensor_msgs.msg import JointState

from vla_align_ros.contract.actions import GripperConvention
from vla_align_ros.ros.arms import ArmConfig, TwistArm
from vla_align_ros.runtime.chunks import ScheduledAction
from vla_align_ros.runtime.safety import Command

ARM = ArmConfig(
    name="test",
    command_frame="base_link",
    gripper_joint="finger",
    gripper_position_m=GripperConvention(closed=0.01, open=0.05),
    gripper_command=GripperConvention(closed=1.0, open=-1.0),
)


@pytest.mark.parametrize(
    ("position_m", "fraction"), [(0.01, 0.0), (0.05, 1.0), (0.03, 0.5), (0.0, 0.0), (0.2, 1.0)]
)
def test_finger_travel_becomes_a_fraction(position_m: float, fraction: float) -> None:
    message = JointState(name=["elbow", "finger"], position=[9.0, position_m])
    assert ARM.fraction_open(message) == pytest.approx(fraction)


@pytest.mark.parametrize(
    "message",
    [
        JointState(name=["elbow"], position=[0.02]),
        JointState(name=["elbow", "finger"], position=[0.02]),
        JointState(name=["finger"], position=[math.nan]),
    ],
    ids=["another joint", "no position", "nan"],
)
def test_a_message_that_does_not_tell_is_no_reading(message: JointState) -> None:
    assert ARM.fraction_open(message) is None


def test_commands_and_one_zero_reach_the_controller(ros: None) -> None:
    node = LifecycleNode("policy_node")
    probe = Probe()
    arm = TwistArm(node, ARM)
    scheduled = ScheduledAction(np.zeros(7), 0.2, "go", 0.0, 0, 1)
    command = Command(np.arange(6.0), 0.25, scheduled)
    stamp = node.get_clock().now().to_msg()
    try:
        arm.send(command, stamp)  # inactive: must not leave
        assert node.trigger_configure().name == "SUCCESS"
        assert node.trigger_activate().name == "SUCCESS"
        time.sleep(0.2)
        assert probe.wait_for(lambda: node.count_subscribers("/policy_node/delta_twist_cmds") == 1)
        arm.send(command, stamp)
        arm.stop(stamp)
        assert arm.flush(2.0)
        assert probe.wait_for(lambda: bool(probe.twists and probe.grippers), 2.0)
        assert probe.twists[0][1].header.frame_id == "base_link"
        assert values_of(probe.twists[0][1]) in ([0, 1, 2, 3, 4, 5], [0] * 6)
        probe.wait_for(lambda: len(probe.twists) > 1, 0.3)
        assert values_of(probe.twists[-1][1]) == [0] * 6
        assert list(probe.grippers[0].data) == [0.5]
        assert len(probe.grippers) == 1

        assert arm.rivals() == []
        rival = probe.node.create_publisher(type(probe.twists[0][1]), arm._twist.topic_name, 1)
        assert probe.wait_for(lambda: arm.rivals() == [arm._twist.topic_name])
        probe.node.destroy_publisher(rival)
    finally:
        arm.destroy()
        node.destroy_node()
        probe.close()
