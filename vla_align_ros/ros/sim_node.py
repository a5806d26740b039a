"""The simulated WidowX as a robot driver: real-time physics behind the topics a real arm has."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String

from vla_align_ros.errors import SimulationError, VlaAlignError
from vla_align_ros.ros.messages import stamp_to_s
from vla_align_ros.ros.running import run_node
from vla_align_ros.ros.servo import ServoInput
from vla_align_ros.ros.sim_messages import image_message, joint_message, pose_message
from vla_align_ros.ros.sim_params import read_sim_parameters
from vla_align_ros.sim.arm import GRIPPER_OPEN_M
from vla_align_ros.sim.tabletop import TICK_S, TabletopEnv

MAX_CATCH_UP_TICKS = 5  # after a longer stall simulated time falls behind real time, and says so
LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
RESET_QUEUE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


class SimNode(Node):
    """One arm on a table. It moves only as the commands on its topics tell it; it has no will.

    Subscribes to ~/delta_twist_cmds (TwistStamped, m/s and rad/s in `frame_id`),
    ~/gripper_commands (Float64MultiArray, one value, 0 closed .. 1 open) and ~/reset_episode
    (String, JSON {"id": any text, "seed": int, "shift": name}). Publishes ~/image, ~/ee_pose,
    ~/joint_states and ~/score (String, JSON). A reset is acknowledged in ~/score by its "id", with
    an "error" where it failed: the wheels of ROS 2 cannot build a service type of our own.
    """

    def __init__(self) -> None:
        super().__init__("sim_node")
        self._settings = read_sim_parameters(self)
        self._env = TabletopEnv(render_size=self._settings.image_size_px, render=True)
        self._servo = ServoInput(frame=self._settings.frame, timeout_s=self._settings.timeout_s)
        self._gripper_open = 1.0
        self._gripper_refused = 0
        self._episode: dict[str, Any] = {"id": ""}
        self._error: str | None = None
        self._frames_sent_total = 0
        self._image = self.create_publisher(Image, "~/image", LATEST)
        self._pose = self.create_publisher(PoseStamped, "~/ee_pose", LATEST)
        self._joints = self.create_publisher(JointState, "~/joint_states", LATEST)
        self._score = self.create_publisher(String, "~/score", RELIABLE)
        self.create_subscription(TwistStamped, "~/delta_twist_cmds", self._on_twist, RELIABLE)
        self.create_subscription(
            Float64MultiArray, "~/gripper_commands", self._on_gripper, RELIABLE
        )
        self.create_subscription(String, "~/reset_episode", self._on_reset, RESET_QUEUE)
        self._timer = self.create_timer(
            TICK_S, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._start_episode(self._settings.first_seed, self._settings.first_shift)
        self.get_logger().info(
            f"table-top ready: seed {self._settings.first_seed}, {1 / TICK_S:.0f} Hz"
        )

    # -- commands -------------------------------------------------------------------------------

    def _on_twist(self, message: TwistStamped) -> None:
        v, w = message.twist.linear, message.twist.angular
        reason = self._servo.accept(
            (v.x, v.y, v.z, w.x, w.y, w.z),
            frame=message.header.frame_id,
            stamp_s=stamp_to_s(message.header.stamp),
            now_s=self._now_s(),
        )
        if reason is not None:
            self.get_logger().warning(
                f"twist refused: {reason} (frame {message.header.frame_id!r}, "
                f"expected {self._settings.frame!r})",
                throttle_duration_sec=2.0,
            )

    def _on_gripper(self, message: Float64MultiArray) -> None:
        if len(message.data) != 1 or not math.isfinite(message.data[0]):
            self._gripper_refused += 1
            self.get_logger().warning(
                f"gripper command refused: got {list(message.data)}, expected one finite value",
                throttle_duration_sec=2.0,
            )
            return
        self._gripper_open = min(max(message.data[0], 0.0), 1.0)

    def _on_reset(self, message: String) -> None:
        try:
            request = json.loads(message.data)
            identity, seed = str(request["id"]), int(request["seed"])
            shift = str(request.get("shift", "none"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.get_logger().error(
                f"reset refused: {error!r} in {message.data!r}; "
                'expected {"id": text, "seed": int, "shift": name}'
            )
            return
        if identity == self._episode["id"]:
            return  # a repeated request: the acknowledgement is already on its way
        self._episode = {"id": identity, "seed": seed, "shift": shift}
        try:
            if not 0 <= seed < 2**63:
                raise SimulationError("Bad seed", got=seed, expected="0 or more", fix="change it")
            self._start_episode(seed, shift)
        except VlaAlignError as error:
            self._error = str(error)
            self.get_logger().error(f"reset failed: {error}")
            self._publish_score()

    def _start_episode(self, seed: int, shift: str) -> None:
        self._error = None
        observation = self._env.reset(seed, shift=shift)
        self._episode.update(seed=seed, shift=shift)
        self._original = self._env.task
        self._gripper_open = 1.0
        self._gripper_refused = 0
        self._frames_sent = 0
        self._ticks = 0
        self._skipped_ticks = 0
        self._lateness_ms: list[float] = []
        self._render_ms: list[float] = []
        self._servo.forget(self._now_s())
        self._publish_image(observation.image, self.get_clock().now().to_msg())
        self._publish_state()
        self._publish_score()
        self._timer.reset()
        self._started_s = time.monotonic()
        self._origin_s = self._started_s - TICK_S / 2  # ticks are due well before the timer

    # -- time -----------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        """Run the physics ticks that are due; a late timer catches up instead of losing time."""
        now_s = time.monotonic()
        due = int((now_s - self._origin_s) / TICK_S) - self._ticks
        if due <= 0:
            return
        scheduled_s = self._origin_s + (self._ticks + 1.5) * TICK_S
        self._lateness_ms.append(1e3 * max(0.0, now_s - scheduled_s))
        if due > MAX_CATCH_UP_TICKS:
            self._skipped_ticks += due - MAX_CATCH_UP_TICKS
            self._origin_s += (due - MAX_CATCH_UP_TICKS) * TICK_S
            due = MAX_CATCH_UP_TICKS
        before = self._ticks
        for _ in range(due):
            self._env.tick(self._servo.twist_at(self._now_s()), self._gripper_open)
            self._ticks += 1
        if self._crossed(before, self._settings.image_every):
            self._take_picture()
        if self._crossed(before, self._settings.state_every):
            self._publish_state()
        if self._crossed(before, self._settings.score_every):
            self._publish_score()

    def _crossed(self, before: int, every: int) -> bool:
        return before // every != self._ticks // every

    def _now_s(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    # -- what the robot shows ---------------------------------------------------------------------

    def _take_picture(self) -> None:
        stamp = self.get_clock().now().to_msg()
        started_s = time.perf_counter()
        image = self._env.render()
        self._render_ms.append(1e3 * (time.perf_counter() - started_s))
        self._publish_image(image, stamp)

    def _publish_image(self, image: Any, stamp: Time) -> None:
        self._image.publish(image_message(image, self._settings.camera_frame, stamp))
        self._image_stamp = stamp
        self._frames_sent += 1
        self._frames_sent_total += 1

    def _publish_state(self) -> None:
        stamp = self.get_clock().now().to_msg()
        state = self._env.state()
        finger_m = float(state[6]) * GRIPPER_OPEN_M
        self._pose.publish(pose_message(state[:6], self._settings.frame, stamp))
        self._joints.publish(joint_message(self._settings.finger, finger_m, stamp))

    def _publish_score(self) -> None:
        self._score.publish(String(data=json.dumps(self.score())))

    def score(self) -> dict[str, Any]:
        """What a referee with a view of the simulator knows: every task's success, and counts."""
        if self._error is not None:
            return {**self._episode, "error": self._error}
        tasks = [
            {
                "object": task.object,
                "receptacle": task.receptacle,
                "instruction": task.instruction,
                "succeeded": bool(self._env.succeeded(task)),
            }
            for task in self._env.tasks
        ]
        elapsed_s = time.monotonic() - self._started_s if self._ticks else 0.0
        return {
            **self._episode,
            "error": None,
            "instruction": self._original.instruction,
            "succeeded": bool(self._env.succeeded(self._original)),
            "tasks": tasks,
            "time_s": round(self._ticks * TICK_S, 3),
            "real_time_factor": round(self._ticks * TICK_S / elapsed_s, 4) if elapsed_s else 1.0,
            "skipped_ticks": self._skipped_ticks,
            "image_stamp": [self._image_stamp.sec, self._image_stamp.nanosec],
            "frames_sent": self._frames_sent,
            "frames_sent_total": self._frames_sent_total,
            "commands": self._servo.statistics(),
            "gripper_refused": self._gripper_refused,
            "tick_late_ms": summarise(self._lateness_ms),
            "render_ms": summarise(self._render_ms),
        }


def summarise(samples_ms: list[float]) -> dict[str, float]:
    """p50, p99 and maximum of samples in ms; empty where there are none yet."""
    if not samples_ms:
        return {}
    p50, p99 = np.quantile(samples_ms, (0.5, 0.99))
    return {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(max(samples_ms), 2)}


def main(arguments: list[str] | None = None) -> None:
    """Run the node until it is told to stop."""
    run_node(SimNode, arguments=arguments)


if __name__ == "__main__":
    main()
