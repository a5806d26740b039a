"""What one would write first: inference in the image's callback, everything in one thread.

The baseline of `vla-align bench runtime`. It has no safety at all; never give it an arm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_align_ros.contract.actions import twist_from_delta
from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.ros.bench.tracing import Trace
from vla_align_ros.ros.declarations import Declaration
from vla_align_ros.ros.messages import image_to_rgb, make_twist, pose_to_vector, stamp_to_s
from vla_align_ros.ros.params import declare_parameters
from vla_align_ros.ros.running import run_node
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.sources import GRIPPER_NAME, POSE_NAMES

NAIVE_DECLARATIONS = (
    Declaration("bundle", "", "bundle of the policy"),
    Declaration("command_rate_hz", 20.0, "rate of the command timer", 5.0, 200.0),
)


class NaiveNode(Node):
    """Node of the same topics as policy_node, with the sensor-data profile that tutorials use."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        declare_parameters(self, NAIVE_DECLARATIONS)
        self._trace = Trace()
        self._policy = Policy.open(str(self.get_parameter("bundle").value))
        self._policy.warm_up()
        self._instruction = ""
        self._state = dict.fromkeys((*POSE_NAMES, GRIPPER_NAME), 0.0)
        self._chunk: ActionChunk | None = None
        self._twist = self.create_publisher(TwistStamped, "~/delta_twist_cmds", 1)
        self.create_subscription(Image, "~/image", self._on_image, qos_profile_sensor_data)
        self.create_subscription(PoseStamped, "~/ee_pose", self._on_pose, qos_profile_sensor_data)
        self.create_subscription(
            JointState, "~/joint_states", self._on_joints, qos_profile_sensor_data
        )
        self.create_subscription(String, "~/instruction", self._on_instruction, 1)
        period_s = 1.0 / float(self.get_parameter("command_rate_hz").value)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(period_s, self._on_timer, clock=steady)

    def destroy_node(self) -> None:
        """Write the trace."""
        self._trace.write()
        super().destroy_node()

    def _on_instruction(self, message: String) -> None:
        self._instruction = message.data

    def _on_pose(self, message: PoseStamped) -> None:
        self._state.update(zip(POSE_NAMES, pose_to_vector(message), strict=True))

    def _on_joints(self, message: JointState) -> None:
        self._state[GRIPPER_NAME] = message.position[0]

    def _on_image(self, message: Image) -> None:
        self._trace.frames += 1
        if not self._instruction:
            return
        spec = self._policy.spec
        state = None
        if spec.state is not None:
            state = np.array([self._state[name] for name in spec.state.names], np.float32)
        stamp_s = stamp_to_s(message.header.stamp)
        images = {spec.cameras[0].name: image_to_rgb(message)}
        self._chunk = self._policy.infer(Observation(images, state, self._instruction, stamp_s))
        self._trace.infer_s[stamp_s] = 1e-3 * self._policy.last_timings_ms["infer"]
        self._trace.first(stamp_s, self._send())

    def _on_timer(self) -> None:
        self._trace.tick()
        if self._chunk is not None:
            self._send()

    def _send(self) -> float:
        """Publish the action for now; returns its stamp in seconds."""
        stamp = self.get_clock().now().to_msg()
        chunk: Any = self._chunk
        step = int((stamp_to_s(stamp) - chunk.stamp_s) / chunk.period_s)
        action = chunk.actions[min(max(step, 0), len(chunk.actions) - 1)]
        twist = twist_from_delta(action, chunk.period_s)
        self._twist.publish(make_twist(twist, stamp, self._policy.spec.action.frame))
        return stamp_to_s(stamp)


def main(arguments: list[str] | None = None) -> None:
    """Run the node until it is told to stop."""
    run_node(NaiveNode, arguments=arguments)


if __name__ == "__main__":
    main()
