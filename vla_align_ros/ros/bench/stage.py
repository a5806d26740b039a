"""Everything around a policy node that is measured: operator, robot state, and the arm's clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty, String, UInt64
from std_srvs.srv import SetBool, Trigger

from vla_align_ros.ros.messages import stamp_to_s
from vla_align_ros.ros.sim_messages import joint_message, pose_message

RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
STATE_PERIOD_S = 0.02
WAITING = 300  # messages at most that wait to be read
CLOCK_PERIOD_S = 0.01
POLICY, WATCHDOG, CAMERA = "/policy_node", "/watchdog_node", "/camera_node"
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A command as the arm's controller got it: arrival on the monotonic clock, and its stamp.

    It arrives when the middleware of this process has it, where that tells: what this process does
    before it looks is not the policy's delay.
    """

    arrived_s: float
    stamp_s: float
    moving: bool
    age_s: float  # of the stamp when it arrived, by this process's ROS time


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the robot reports: pose (6,) in m and rad, finger in m, and words to be followed."""

    pose: Sequence[float]
    finger_m: float
    finger_joint: str
    frame: str
    instruction: str
    other_instruction: str


class Stage:
    """Plays operator, state publisher and controller for `/policy_node`, in a context of its own.

    While time passes in `spin` or `wait_for` it publishes robot state at 50 Hz (unless `state` is
    "silent", "nan" or "wrong_frame") and, in simulated time, the clock at 100 Hz. `commands`,
    `status`, `watchdog` and `diagnostics` are what came back.
    """

    def __init__(
        self, surroundings: Surroundings, *, domain: int | None = None, sim_time: bool = False
    ) -> None:
        self._context = Context()
        rclpy.init(
            context=self._context,
            domain_id=domain,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node = rclpy.create_node("stage", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.surroundings = surroundings
        self.state = "ok"
        self.commands: list[Sent] = []
        self.status: dict[str, Any] = {}
        self.watchdog: dict[str, Any] = {}
        self.diagnostics: dict[str, str] = {}
        self.frames_sent = 0
        self._sim_s: float | None = 1000.0 - time.monotonic() if sim_time else None
        self._still_s: float | None = None  # what the simulated clock shows where it stands
        self._due_s = self._clock_due_s = 0.0
        make = self.node.create_publisher
        listen: Any = self.node.create_subscription  # its type knows no callback with the info
        self._instruction = make(String, f"{POLICY}/instruction", RELIABLE)
        self._pose = make(PoseStamped, f"{POLICY}/ee_pose", LATEST)
        self._joints = make(JointState, f"{POLICY}/joint_states", LATEST)
        self._emergency = make(Empty, f"{POLICY}/emergency_stop", RELIABLE)
        self._clock = make(ClockMessage, "/clock", RELIABLE) if sim_time else None
        listen(TwistStamped, f"{POLICY}/delta_twist_cmds", self._on_twist, RELIABLE)
        listen(String, f"{POLICY}/status", self._on_status, LATCHED)
        listen(String, f"{WATCHDOG}/status", self._on_watchdog, LATCHED)
        listen(UInt64, f"{CAMERA}/frames_sent", self._on_frames, RELIABLE)
        listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        client = self.node.create_client
        self._arm = client(SetBool, f"{POLICY}/arm")
        self._reset = client(Trigger, f"{POLICY}/reset_stop")
        self._change = client(ChangeState, f"{POLICY}/change_state")
        self._set = client(SetParameters, f"{POLICY}/set_parameters")

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    # -- time -----------------------------------------------------------------------------------

    def now_s(self) -> float:
        """Seconds on the clock of stamps."""
        if self._still_s is not None:
            return self._still_s
        return time.time() if self._sim_s is None else self._sim_s + time.monotonic()

    def hold_clock(self) -> None:
        """The simulated clock shows the same time from now on, to everybody."""
        self._still_s = self.now_s()

    def release_clock(self) -> None:
        """The simulated clock goes on from where it stands."""
        assert self._still_s is not None
        self._sim_s, self._still_s = self._still_s - time.monotonic(), None

    def jump(self, seconds: float) -> None:
        """Set the simulated clock forth or back, and tell everybody."""
        assert self._sim_s is not None
        self._sim_s += seconds
        self._publish_clock()

    def spin(self, seconds: float) -> None:
        """Let time pass."""
        self.wait_for(lambda: False, seconds)

    def catch_up(self) -> None:
        """Read what has come, and send nothing: sending may wait for a process that is frozen."""
        for _ in range(WAITING):
            self._executor.spin_once(timeout_sec=0.0)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        """Let time pass until something happened; False if it did not."""
        end_s = time.monotonic() + timeout_s
        while (now_s := time.monotonic()) < end_s and not happened():
            if self._clock is not None and now_s >= self._clock_due_s:
                self._clock_due_s = now_s + CLOCK_PERIOD_S
                self._publish_clock()
            if now_s >= self._due_s:
                self._due_s = now_s + STATE_PERIOD_S
                self._publish_state()
            self._executor.spin_once(timeout_sec=0.005)
        return happened()

    # -- what a person or a program does ----------------------------------------------------------

    def seen(self) -> bool:
        """Whether somebody listens to the camera."""
        return bool(self.node.count_subscribers(f"{POLICY}/image"))

    def heard(self) -> bool:
        """Whether somebody listens to instructions."""
        return bool(self._instruction.get_subscription_count())

    def say(self, text: str) -> None:
        """Give an instruction."""
        self._instruction.publish(String(data=text))

    def say_bytes(self, text: bytes) -> None:
        """Give an instruction of raw bytes: as CDR, little endian, has a string on the wire."""
        size = (len(text) + 1).to_bytes(4, "little")
        self._instruction.publish(b"\x00\x01\x00\x00" + size + text + b"\x00")

    def flood(self, seconds: float, rate_hz: float) -> int:
        """Give two instructions in turn at a rate; returns how many were sent."""
        start_s, sent = time.monotonic(), 0
        texts = (self.surroundings.instruction, self.surroundings.other_instruction)
        while (elapsed_s := time.monotonic() - start_s) < seconds:
            while sent < elapsed_s * rate_hz:
                self.say(texts[sent % 2])
                sent += 1
            self.spin(0.0005)
        return sent

    def stop(self) -> None:
        """Press the emergency stop."""
        self._emergency.publish(Empty())

    def arm(self) -> bool:
        """Release a latched stop, if there is one, and arm."""
        self._call(self._reset, Trigger.Request())
        return bool(self._call(self._arm, SetBool.Request(data=True)).success)

    def request(self, transition: str) -> bool:
        """Ask for a lifecycle transition by its name."""
        wanted = Transition(id=TRANSITIONS[transition])
        return bool(self._call(self._change, ChangeState.Request(transition=wanted)).success)

    def set_parameter(self, name: str, value: object) -> bool:
        """Ask the node for another value; True if it takes it."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        answer = self._call(self._set, SetParameters.Request(parameters=[parameter]))
        return bool(answer.results[0].successful)

    def _call(self, client: Any, request: Any) -> Any:
        assert self.wait_for(client.service_is_ready), f"{client.srv_name} is not there"
        future = client.call_async(request)
        assert self.wait_for(future.done, 30.0), f"{client.srv_name} does not answer"
        return future.result()

    # -- what is sent and heard by itself --------------------------------------------------------

    def _publish_clock(self) -> None:
        assert self._clock is not None
        self._clock.publish(ClockMessage(clock=self._stamp()))

    def _stamp(self) -> Any:
        now_s = self.now_s()
        stamp = ClockMessage().clock
        stamp.sec, stamp.nanosec = int(now_s), int((now_s % 1.0) * 1e9)
        return stamp

    def _publish_state(self) -> None:
        if self.state == "silent":
            return
        robot, stamp = self.surroundings, self._stamp()
        pose = [float("nan")] * 6 if self.state == "nan" else robot.pose
        frame = "elsewhere" if self.state == "wrong_frame" else robot.frame
        self._pose.publish(pose_message(pose, frame, stamp))
        self._joints.publish(joint_message(robot.finger_joint, robot.finger_m, stamp))

    def _on_twist(self, message: TwistStamped, info: Mapping[str, int]) -> None:
        v, w = message.twist.linear, message.twist.angular
        moving = any(value != 0.0 for value in (v.x, v.y, v.z, w.x, w.y, w.z))
        received_s = 1e-9 * info["received_timestamp"]
        waited_s = time.time() - received_s if received_s else 0.0
        stamp_s = stamp_to_s(message.header.stamp)
        age_s = self.now_s() - waited_s - stamp_s
        self.commands.append(Sent(time.monotonic() - waited_s, stamp_s, moving, age_s))

    def _on_frames(self, message: UInt64) -> None:
        self.frames_sent = message.data

    def _on_status(self, message: String) -> None:
        self.status = json.loads(message.data)

    def _on_watchdog(self, message: String) -> None:
        self.watchdog = json.loads(message.data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if "bundle_id" in values:
                self.diagnostics = values
