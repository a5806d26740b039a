"""A process of its own that sends the stop when the policy node, while it moves an arm, does not.

It shares nothing with the policy but the topics: no lock, no interpreter, no model, and no memory
unless its environment wants it so (`ros.transports`).
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, Empty, String
from std_srvs.srv import Trigger

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.declarations import Declaration
from vla_align_ros.ros.messages import make_diagnostics, make_twist
from vla_align_ros.ros.params import declare_parameters, find_misspelt
from vla_align_ros.ros.running import run_node
from vla_align_ros.ros.transports import UDP_PROFILE, shares_memory
from vla_align_ros.runtime.watchdog import Trip, Watchdog
from vla_align_ros.share import PROFILE_VARIABLES, tell_path

NODE_NAME = "watchdog_node"
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
DIAGNOSTICS_PERIOD_S = 1.0
TELL_PERIOD_S = 0.1
THROTTLE_S = 5.0
ODD_THROTTLE_S = 30.0
OWN_DELAY_S = 0.005  # later than this the watchdog itself was starved: it reads its mail first
NEVER_S = 3600.0
# How long the stop is sent with the heartbeats of a policy that comes back: they may be heard
# before the stop is, and a dead one's subscription stays on the graph for a while.
STOP_AGAIN_S = 1.0
SHARES_MEMORY = (
    "a policy that is frozen in the act of publishing may delay this node's zero by "
    "seconds: it shares memory through Fast DDS, as its environment wants it "
    f"({', '.join(PROFILE_VARIABLES)}, FASTDDS_BUILTIN_TRANSPORTS, or ROS_STATIC_PEERS beside "
    f"LOCALHOST). Start watchdog_node without, or with a profile like {tell_path(UDP_PROFILE)}"
)

WATCHDOG_DECLARATIONS = (
    Declaration(
        "command_rate_hz", 20.0, "rate of the policy's command timer", 5.0, 200.0, read_only=True
    ),
    Declaration(
        "tolerance_s",
        0.02,
        "what is added to two command periods before silence is a fault",
        0.0,
        1.0,
        read_only=True,
    ),
    Declaration(
        "stop_policy",
        False,
        "whether the watchdog also latches the policy's own stop, should the policy come back",
        read_only=True,
    ),
    Declaration(
        "arm.command_frame",
        Parameter.Type.STRING,
        "frame of the zero twist, as in the robot's file; mandatory",
        read_only=True,
    ),
    Declaration(
        "arm.interface",
        "twist",
        "a zero is sent to twist arms alone; the others only report it",
        read_only=True,
    ),
)


class WatchdogNode(Node):
    """Node `watchdog_node`.

    Subscribes to the policy's `~/delta_twist_cmds` (TwistStamped) and `~/heartbeat` (Bool, whether
    the arm moves), and answers heartbeats on `~/watched` (Empty, every 0.1 s at most) while its own
    zero would be heard and it can hear the commands: a policy that asks for a watchdog moves
    nothing without. When both were about motion and then cease for two command periods and
    `tolerance_s`, it publishes one zero on `~/delta_twist_cmds` and, if `stop_policy`, an Empty on
    `~/emergency_stop`, and again when heartbeats come back, unless it was reset: a policy that died
    heard nothing. Commands beside a policy that says that it stands are a person's and left alone.
    `~/status` (String, latched, JSON: tripped, reason, silence_s, last_reason, trips, limit_s) and
    `/diagnostics` keep the first reason until `~/reset` (Trigger).
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        declare_parameters(self, WATCHDOG_DECLARATIONS)
        for told in find_misspelt(self, WATCHDOG_DECLARATIONS):
            self.get_logger().warning(told)
        self._frame = self._read_frame()
        self._sends_zero = self.get_parameter("arm.interface").value == "twist"
        self._rate_hz = self.get_parameter("command_rate_hz").value
        self._watchdog = Watchdog(self._rate_hz, self.get_parameter("tolerance_s").value)
        self._twist: Any = None
        if self._sends_zero:
            self._twist = self.create_publisher(TwistStamped, "~/delta_twist_cmds", RELIABLE)
        self._stop: Any = None
        if self.get_parameter("stop_policy").value:
            self._stop = self.create_publisher(Empty, "~/emergency_stop", RELIABLE)
        self._stop_until_s = -math.inf  # infinite between a trip and the next heartbeat
        self._watched = self.create_publisher(Empty, "~/watched", RELIABLE)
        self._told_s = -math.inf
        self._status = self.create_publisher(String, "~/status", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_subscription(TwistStamped, "~/delta_twist_cmds", self._on_twist, RELIABLE)
        self._beats = self.create_subscription(Bool, "~/heartbeat", self._on_heartbeat, RELIABLE)
        self.create_service(Trigger, "~/reset", self._on_reset)
        # Not ROS time: the arm must be stopped whatever a simulated clock does.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._alarm = self.create_timer(NEVER_S, self._on_alarm, clock=steady)
        self._alarm.cancel()
        self._shares_memory = shares_memory()
        if self._shares_memory:
            self.get_logger().warning(SHARES_MEMORY)
        self._late = False  # whether an alarm was already put off because this process was late
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._diagnose, clock=steady)
        self._report()

    def _read_frame(self) -> str:
        frame = self.get_parameter_or("arm.command_frame", Parameter("arm.command_frame")).value
        if not frame:
            raise ConfigurationError(
                "parameter arm.command_frame is not set",
                got="no value",
                expected="the frame that the arm's controller takes twists in",
                fix="give the watchdog the robot's file, as policy_node",
            )
        return str(frame)

    def _on_twist(self, message: TwistStamped) -> None:
        v, w = message.twist.linear, message.twist.angular
        # NaN is not zero: it counts as motion.
        moving = any(value != 0.0 for value in (v.x, v.y, v.z, w.x, w.y, w.z))
        self._watchdog.take_command(moving=moving, now_s=time.monotonic())
        self._set_alarm()

    def _on_heartbeat(self, message: Bool) -> None:
        now_s = time.monotonic()
        if self._stop_until_s == math.inf:
            self._stop_until_s = now_s + STOP_AGAIN_S
        if now_s < self._stop_until_s:
            self._stop.publish(Empty())
        self._watchdog.take_heartbeat(moving=message.data, now_s=now_s)
        self._set_alarm()
        if now_s - self._told_s < TELL_PERIOD_S:
            return
        if self._twist is None or (self._reaches_arm() and self._hears_commands()):
            self._told_s = now_s
            self._watched.publish(Empty())

    def _reaches_arm(self) -> bool:
        """Whether somebody else than this node would hear its zero."""
        if self._twist.get_subscription_count() > 1:
            return True
        self.get_logger().warning(
            f"not watching: nobody else subscribes to {self._twist.topic_name}, a zero would stop "
            "nothing; start the arm's controller, or remap ~/delta_twist_cmds to its topic (one "
            "that asks for transient local is sent nothing either)",
            throttle_duration_sec=THROTTLE_S,
        )
        return False

    def _hears_commands(self) -> bool:
        """Whether the commands of the node with the heartbeats come to a reliable subscription."""
        policies = {
            _end_of(info) for info in self.get_publishers_info_by_topic(self._beats.topic_name)
        }
        topic = self._twist.topic_name
        if not any(
            info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
            for info in self.get_publishers_info_by_topic(topic)
            if _end_of(info) in policies
        ):
            return True
        self.get_logger().warning(
            f"not watching: the policy publishes {topic} as best effort, which is not heard here; "
            "take the qos_override of its reliability away",
            throttle_duration_sec=THROTTLE_S,
        )
        return False

    def _set_alarm(self, least_s: float = 0.0) -> None:
        """Wake at the deadline, and not at all while the arm stands."""
        deadline_s = self._watchdog.deadline_s()
        if deadline_s is None:
            self._alarm.cancel()
            return
        wait_s = max(deadline_s - time.monotonic(), least_s, 1e-4)
        self._alarm.timer_period_ns = int(1e9 * wait_s)
        self._alarm.reset()

    def _on_alarm(self) -> None:
        now_s = time.monotonic()
        deadline_s = self._watchdog.deadline_s()
        if deadline_s is None or now_s < deadline_s:
            self._late = False
            self._set_alarm()
            return
        if now_s - deadline_s > OWN_DELAY_S and not self._late:
            self._late = True  # what waits in the queue is read before the next alarm
            self._set_alarm(least_s=1e-3)
            return
        self._late = False
        trip = self._watchdog.check(now_s)
        self._alarm.cancel()
        if trip is not None:
            self._stop_arm(trip)

    def _stop_arm(self, trip: Trip) -> None:
        if self._twist is not None:
            stamp = self.get_clock().now().to_msg()
            self._twist.publish(make_twist(np.zeros(6), stamp, self._frame))
        if self._stop is not None:
            self._stop.publish(Empty())
            self._stop_until_s = math.inf
        what = "sent zero" if self._sends_zero else "cannot send a zero to this arm"
        self.get_logger().error(
            f"{trip.reason}: nothing for {1e3 * trip.silence_s:.0f} ms while the arm moved, "
            f"{1e3 * self._watchdog.limit_s:.0f} ms at most at {self._rate_hz:g} Hz; {what}"
        )
        self._report()
        self._diagnose()

    def _on_reset(self, request: Any, response: Any) -> Any:
        response.success = self._watchdog.first is not None
        response.message = "reset" if response.success else "nothing to reset"
        self._watchdog.reset()
        self._stop_until_s = -math.inf
        self._report()
        return response

    def _summary(self) -> dict[str, Any]:
        first, last = self._watchdog.first, self._watchdog.last
        return {
            "tripped": first is not None,
            "reason": None if first is None else first.reason,
            "silence_s": None if first is None else round(first.silence_s, 4),
            "last_reason": None if last is None else last.reason,
            "trips": self._watchdog.trips,
            "limit_s": round(self._watchdog.limit_s, 4),
        }

    def _report(self) -> None:
        self._status.publish(String(data=json.dumps(self._summary())))

    def _explain_rate(self) -> str | None:
        """What another rate of the policy means; None where it is the one given here."""
        rate_hz = self._watchdog.odd_rate_hz()
        if rate_hz is None:
            return None
        told = (
            f"the policy's heartbeats come at {rate_hz:.1f} Hz and command_rate_hz is "
            f"{self._rate_hz:g} here, so "
        )
        same = "give both nodes the same parameter file"
        if rate_hz < self._rate_hz:
            return f"{told}it stops what is in time: {same}"
        return f"{told}its zero would come late: {same}, unless command_on_plan sends so often"

    def _diagnose(self) -> None:
        first = self._watchdog.first
        level, text = DiagnosticStatus.OK, "watching"
        if first is not None:
            level, text = DiagnosticStatus.ERROR, f"stopped the arm: {first.reason}"
        elif self._shares_memory:
            level, text = DiagnosticStatus.WARN, "watching, and may have to wait for a frozen node"
        odd = self._explain_rate()
        if odd is not None:
            self.get_logger().warning(odd, throttle_duration_sec=ODD_THROTTLE_S)
            level, text = max(level, DiagnosticStatus.WARN), f"{text}; {odd}"
        name = f"{self.get_fully_qualified_name().lstrip('/')}: watchdog"
        values = {
            **self._summary(),
            "moving": self._watchdog.moving,
            "shares_memory": self._shares_memory,
        }
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(make_diagnostics(name, "", level, text, values, stamp))


def _end_of(info: Any) -> tuple[str, str]:
    return info.node_namespace, info.node_name


def main(arguments: list[str] | None = None) -> None:
    """Run the node until it is told to stop."""
    run_node(WatchdogNode, arguments=arguments, shared_memory=False)


if __name__ == "__main__":
    main()
