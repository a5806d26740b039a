"""The operator's hand on the arm: arming, stopping, taking over, the dead-man switch, as topics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.interlock import Interlock
from vla_align_ros.runtime.stops import Hold, Reason

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
THROTTLE_S = 10.0
NOT_CONFIGURED = "the node is not configured; nothing moves, and nothing can be armed"


class Authority:
    """What outranks the policy, over services and topics that are there in every state.

    Services: `~/arm` (SetBool: arm or disarm), `~/stop` (Trigger: latch a stop), `~/reset_stop`
    (Trigger: release it; the arm stays disarmed). Topics: `~/emergency_stop` (Empty, reliable or
    best effort: the same as `~/stop`), `~/takeover` (Bool: true suspends the policy, false gives
    back), `~/dead_man` (Bool, to be repeated while it is held), `~/watched` (Empty, which a
    watchdog repeats while it hears the policy's heartbeats). All are kept in `interlock`, in every
    state but for arming, which needs a configured node and ends with it. A decision takes effect on
    the next tick of the command timer; `now` is called after each one that stops the arm, so that
    it need not wait.
    """

    def __init__(self, node: Node, interlock: Interlock, now: Callable[[], None]) -> None:
        self._node = node
        self._interlock = interlock
        self._now = now
        self._open = False
        node.create_service(SetBool, "~/arm", self._on_arm)
        node.create_service(Trigger, "~/stop", self._on_stop)
        node.create_service(Trigger, "~/reset_stop", self._on_reset)
        # Twice: a reliable subscription hears no best-effort publisher (micro-ROS), a best-effort
        # one is sent nothing again. What both hear is one stop: the second finds it latched.
        # Of the first, rclpy would log that it hears nothing of a button that the second hears.
        for qos, logs in ((RELIABLE, False), (BEST_EFFORT, True)):
            node.create_subscription(
                Empty,
                "~/emergency_stop",
                self._on_emergency_stop,
                qos,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=logs),
            )
        node.create_subscription(Bool, "~/takeover", self._on_takeover, RELIABLE)
        node.create_subscription(Bool, "~/dead_man", self._on_dead_man, RELIABLE)
        node.create_subscription(Empty, "~/watched", self._on_watched, RELIABLE)

    def open(self) -> None:
        """Let the arm be armed: the node is configured."""
        self._open = True

    def close(self) -> None:
        """Let it be armed no more, and again after the next `open`; stop and takeover stay."""
        self._open = False
        self._interlock.forget_arming()

    def _on_arm(self, request: Any, response: Any) -> Any:
        if not request.data:
            self._interlock.disarm()
            self._now()
            return self._tell(response, "disarmed")
        if not self._open:
            return _answer(response, False, NOT_CONFIGURED)
        try:
            self._interlock.arm()
        except SafetyError as error:
            return _answer(response, False, str(error))
        return self._tell(response, "armed")

    def _on_stop(self, request: Any, response: Any) -> Any:
        self.stop("by ~/stop")
        return _answer(response, True, f"stopped: {self._interlock.stopped}")

    def _on_reset(self, request: Any, response: Any) -> Any:
        if not self._interlock.reset():
            return _answer(response, False, "no stop is latched")
        self._now()
        return self._tell(response, "the stop is released; the arm is disarmed")

    def _on_emergency_stop(self, message: Empty) -> None:
        self.stop("by ~/emergency_stop")

    def stop(self, detail: str) -> None:
        """Latch a stop, send zero now and log it; the first one counts."""
        if self._interlock.stop(Hold(Reason.STOPPED, detail)):
            self._now()
            self._node.get_logger().warning(f"stopped {detail}; ~/reset_stop, then ~/arm")

    def _on_takeover(self, message: Bool) -> None:
        if self._interlock.take_over("by ~/takeover" if message.data else None):
            self._now()
            self._node.get_logger().info(
                "a person drives; the policy is suspended" if message.data else "the policy drives"
            )

    def _on_dead_man(self, message: Bool) -> None:
        if self._interlock.config.dead_man_s == 0:
            self._node.get_logger().error(
                "there is a dead-man switch, and dead_man_s is 0: let go it holds the arm, but "
                "one that falls silent does not; set dead_man_s",
                throttle_duration_sec=THROTTLE_S,
            )
        if self._interlock.press_dead_man(message.data, time.monotonic()):
            self._now()

    def _on_watched(self, message: Empty) -> None:
        self._interlock.note_watched(time.monotonic())

    def _tell(self, response: Any, text: str) -> Any:
        self._node.get_logger().info(text)
        return _answer(response, True, text)


def _answer(response: Any, success: bool, message: str) -> Any:
    response.success, response.message = success, message
    return response
