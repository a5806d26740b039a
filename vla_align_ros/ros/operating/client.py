"""One policy node as a person deals with it: words to it, its status, its services."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rclpy.exceptions import NameValidationException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, Empty, String
from std_srvs.srv import SetBool, Trigger

from vla_align_ros.errors import OperatorError

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
STOP_TYPE, STATUS_TYPE = "std_msgs/msg/Empty", "std_msgs/msg/String"
RESET_TYPE = "std_srvs/srv/Trigger"
JOINED = ("inactive", "active")  # states in which a policy is on its topics
SPIN_S = 0.02
ANSWER_S = 2.0
UNTOLD = {"moving": False, "hold_reason": None, "instruction": None, "error": None}

# What mends a hold that a person can mend.
MENDS = {
    "disarmed": "arm it: say --arm, or ros2 service call <policy>/arm",
    "stopped": "a stop is latched: <policy>/reset_stop, then <policy>/arm",
    "takeover": "a person drives: publish false on <policy>/takeover",
    "dead_man": "hold the dead-man switch",
    "unwatched": "start its watchdog_node, see what that logs; or set watchdog_timeout_s: 0.0",
    "no_instruction": "give an instruction",
    "stale_image": "see that its camera runs, and is remapped: vla-align doctor; troubles in "
    "/diagnostics",
    "stale_state": "see that ~/ee_pose and ~/joint_states come, in its frame and stamped by its "
    "clock: troubles and sources in /diagnostics",
    "overrun": "see what kept policy_node from running (load on its cores, a process that was "
    "killed or frozen while it shared memory); thread_priority helps against load",
}


class PolicyClient:
    """Talks to the policy node called `policy`, a name relative to the node's namespace.

    `status` is the newest `~/status`, {} before the first; what is no policy's is not taken. Every
    topic and service can be remapped as `<policy>/instruction` and so on.

    Raises OperatorError on a name that no node can have.
    """

    def __init__(self, node: Node, policy: str = "policy_node") -> None:
        self.node = node
        self.policy = policy.rstrip("/")
        self.status: dict[str, Any] = {}
        try:
            self._instruction = node.create_publisher(String, self._name("instruction"), RELIABLE)
        except (NameValidationException, ValueError) as error:
            raise OperatorError(
                "no policy has such a name",
                got=repr(policy),
                expected="a node's name, such as left/policy_node: letters, digits, _ and /",
                fix="correct --policy",
            ) from error
        self._stop = node.create_publisher(Empty, self._name("emergency_stop"), RELIABLE)
        self._takeover = node.create_publisher(Bool, self._name("takeover"), RELIABLE)
        node.create_subscription(String, self._name("status"), self._on_status, LATCHED)
        self._halt = node.create_client(Trigger, self._name("stop"))
        self._arm = node.create_client(SetBool, self._name("arm"))
        self._reset = node.create_client(Trigger, self._name("reset_stop"))

    @property
    def full_name(self) -> str:
        """The policy's name with its namespace."""
        return str(self.node.resolve_topic_name(self.policy, only_expand=True))

    def say(self, text: str) -> None:
        """Give an instruction; an empty one withdraws it."""
        self._instruction.publish(String(data=text))

    def stop(self) -> None:
        """Latch a stop: no answer is waited for.

        By topic and by service: the policy's topic may have another name, such as that of one
        button for several arms, and whoever listens to this one be a recorder.
        """
        self._stop.publish(Empty())
        if self._halt.service_is_ready():
            self._halt.call_async(Trigger.Request())

    def take_over(self, taken: bool) -> None:
        """Suspend the policy while a person drives, or give the arm back."""
        self._takeover.publish(Bool(data=taken))

    def arm(self, armed: bool) -> Any:
        """Ask to arm or disarm; returns the future of the answer."""
        return self._arm.call_async(SetBool.Request(data=armed))

    def reset(self) -> Any:
        """Ask to release a latched stop; returns the future of the answer."""
        return self._reset.call_async(Trigger.Request())

    def hears_words(self) -> bool:
        """Whether the policy listens to instructions: it does once it is configured."""
        return bool(self._instruction.get_subscription_count() > 0)

    def explain_deaf(self) -> str:
        """What mends that the policy does not hear words."""
        if self.status.get("state") not in JOINED:
            return "configure and activate it"
        words = self._name("instruction")
        return (
            f"nobody listens to {self._instruction.topic_name}: if the policy's instruction topic "
            f"is remapped, add --ros-args -r {words}:=/its/topic"
        )

    def hears_stop(self) -> bool:
        """Whether the policy listens to the stop."""
        return bool(self._stop.get_subscription_count() > 0 or self._halt.service_is_ready())

    def answers(self) -> bool:
        """Whether the policy's services are there."""
        return bool(self._arm.service_is_ready() and self._reset.service_is_ready())

    def describe(self) -> str:
        """The policy's state in one line, with what a person can do about a hold."""
        if not self.status:
            return f"{self.policy}: nothing heard"
        if self.status.get("error"):
            return f"{self.policy}: {self.status['state']}, {self.status['error']}"
        if self.status.get("moving"):
            return f"{self.policy}: moving, {self.status['instruction']!r}"
        reason = self.status.get("hold_reason")
        text = f"{self.policy}: {self.status['state']}, holds ({reason})"
        mend = MENDS.get(str(reason), "").replace("<policy>", self.policy)
        return f"{text}; {mend}" if mend else text

    def _name(self, what: str) -> str:
        return f"{self.policy}/{what}"

    def _on_status(self, message: String) -> None:
        try:
            status = json.loads(message.data)
        except ValueError:
            return
        if isinstance(status, dict) and isinstance(status.get("state"), str):
            self.status = {**UNTOLD, **status}


class Patience:
    """Spins a node until something happened, or a time is over."""

    def __init__(self, node: Node) -> None:
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)

    def wait(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        """Spin until `happened`; False if it did not within `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > end_s:
                return False
            self._executor.spin_once(timeout_sec=SPIN_S)
        return True

    def ask(self, call: Callable[[], Any], ready: Callable[[], bool], timeout_s: float) -> Any:
        """Call a service until an answer comes back; None if none does within `timeout_s`.

        A server is seen before its answers find the way, so that the first call may be lost.
        """
        end_s = time.monotonic() + timeout_s
        if not self.wait(ready, timeout_s):
            return None
        while True:
            future = call()
            if self.wait(future.done, ANSWER_S):
                return future.result()
            if time.monotonic() > end_s:
                return None

    def close(self) -> None:
        """Stop spinning."""
        self._executor.shutdown()


def find_policies(node: Node) -> list[str]:
    """Full names of all policy nodes on the graph: who has a status and a stop.

    The stop is the topic, or the service that releases it, where the topic has another name.
    """
    topics, services = node.get_topic_names_and_types(), node.get_service_names_and_types()
    kinds = dict(topics)
    names = {
        name.removesuffix(end)
        for known, end, kind in (
            (topics, "/emergency_stop", STOP_TYPE),
            (services, "/reset_stop", RESET_TYPE),
        )
        for name, types in known
        if name.endswith(end) and kind in types
    }
    return sorted(
        name
        for name in names
        if STATUS_TYPE in kinds.get(f"{name}/status", ())
        and node.count_publishers(f"{name}/status")
    )


def refuse(client: PolicyClient, what: str, expected: str) -> OperatorError:
    """The error of a policy that does not do what it was asked, with where to look."""
    others = [name for name in find_policies(client.node) if name != client.full_name]
    fix = f"start it, or name another one; on the graph: {', '.join(others)}"
    if not others:
        fix = "start it; see that ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE are the same here"
    if client.status:
        fix = client.describe()
    return OperatorError(what, got=client.describe(), expected=expected, fix=fix)
