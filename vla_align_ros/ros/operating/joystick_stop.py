"""A joystick as the operator's hand: a button that stops, a button to be held, loss as a stop."""

from __future__ import annotations

import time
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Empty

from vla_align_ros.ros.declarations import Declaration
from vla_align_ros.ros.params import declare_parameters, find_misspelt
from vla_align_ros.ros.running import run_node
from vla_align_ros.runtime.joystick import Hand, Joystick

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
CHECK_PERIOD_S = 0.05
LOOK_PERIOD_S = 2.0  # at the graph
THROTTLE_S = 10.0

JOYSTICK_DECLARATIONS = (
    Declaration("stop_button", 1, "button that latches the stop, counted from 0", 0, 63, True),
    Declaration(
        "dead_man_button",
        -1,
        "button that must be held for motion, with dead_man_s on the policy; -1 for none",
        -1,
        63,
        True,
    ),
    Declaration(
        "loss_s",
        0.5,
        "a joystick that was heard and then is silent for longer stops the arm; 0 never does. "
        "Its driver must repeat (joy_node: autorepeat_rate, 20 Hz by default)",
        0.0,
        10.0,
        True,
    ),
)


class JoystickStop(Node):
    """Node `joystick_stop`.

    Subscribes to `joy` (Joy, reliable or best effort). Publishes `policy_node/emergency_stop`
    (Empty) with every message while the stop button is down and when the joystick falls silent, and
    `policy_node/dead_man` (Bool) with every message while a dead-man button is set. Relative names:
    a namespace finds its own policy, and its own `joy`. It logs where nothing publishes the one or
    hears the other.
    """

    def __init__(self) -> None:
        super().__init__("joystick_stop")
        declare_parameters(self, JOYSTICK_DECLARATIONS)
        for told in find_misspelt(self, JOYSTICK_DECLARATIONS):
            self.get_logger().warning(told)
        dead_man = int(self.get_parameter("dead_man_button").value)
        self._joystick = Joystick(
            stop_button=int(self.get_parameter("stop_button").value),
            dead_man_button=dead_man if dead_man >= 0 else None,
            loss_s=float(self.get_parameter("loss_s").value),
        )
        self._stop = self.create_publisher(Empty, "policy_node/emergency_stop", RELIABLE)
        self._dead_man = self.create_publisher(Bool, "policy_node/dead_man", RELIABLE)
        # Twice, as the policy does for its stop: a reliable subscription hears no best-effort
        # joystick (micro-ROS), a best-effort one is sent nothing again.
        for qos, logs in ((RELIABLE, False), (BEST_EFFORT, True)):
            self._joy = self.create_subscription(
                Joy,
                "joy",
                self._on_joy,
                qos,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=logs),
            )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(CHECK_PERIOD_S, self._on_timer, clock=steady)
        self.create_timer(LOOK_PERIOD_S, self._look, clock=steady)

    def _on_joy(self, message: Joy) -> None:
        self._act(self._joystick.take(list(message.buttons), time.monotonic()))

    def _on_timer(self) -> None:
        self._act(self._joystick.check(time.monotonic()))

    def _look(self) -> None:
        """Say what is missing before somebody relies on the button."""
        if not self.count_publishers(self._joy.topic_name):
            self.get_logger().warning(
                f"nothing publishes {self._joy.topic_name}: no button stops; start joy_node, or "
                "give its topic (policy.launch.py joy:=/joy, or -r joy:=/joy)",
                throttle_duration_sec=THROTTLE_S,
            )
        if not self._is_heard():
            self.get_logger().warning(
                f"nobody hears {self._stop.topic_name}: no button stops; start the policy, or this "
                "node in the policy's namespace",
                throttle_duration_sec=THROTTLE_S,
            )

    def _is_heard(self) -> bool:
        return bool(self._stop.get_subscription_count() > 0)

    def _act(self, hand: Hand) -> None:
        if hand.stop is not None:
            self._stop.publish(Empty())
            if not hand.again:
                self._tell_stop(hand.stop)
        if hand.dead_man is not None:
            self._dead_man.publish(Bool(data=hand.dead_man))

    def _tell_stop(self, cause: str) -> None:
        if self._is_heard():
            self.get_logger().warning(f"stop: {cause}")
        else:
            self.get_logger().error(
                f"stop: {cause}, and nobody hears {self._stop.topic_name}: use the hardware's stop"
            )


def main(arguments: Any = None) -> None:
    """Run the node until it is told to stop."""
    run_node(JoystickStop, arguments=arguments, shared_memory=False)


if __name__ == "__main__":
    main()
