"""Grippers behind a forward controller, a trajectory controller or an action of control_msgs."""

from __future__ import annotations

import functools
import importlib
import math
import time
from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException
from rclpy.lifecycle import LifecycleNode
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_align_ros.contract.actions import gripper_from_fraction
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.arms.base import CommandTopic, Gripper
from vla_align_ros.ros.arms.config import ArmConfig

TOPIC = "~/gripper_commands"
TRAJECTORY_PERIODS = 2.0  # of the command timer: the next point comes before this one is reached
THROTTLE_S = 5.0
GOAL_STEP = 0.02  # of the gripper's range: a smaller change is no new goal
CANCEL_PERIOD_S = 1.0  # a goal that goes on in spite of a cancellation is cancelled again
GOAL_PERIOD_S = 0.2  # every goal cancels the one before: a stream of them would never arrive


class TopicGripper:
    """What grippers have in common whose controller is told openings by a topic, and answers none.

    At a stop they are sent nothing: the controller knows openings alone, goes on to the last one,
    and the measured one would let go.
    """

    def __init__(self, node: LifecycleNode, config: ArmConfig, kind: type[Any]) -> None:
        self._config = config
        self._topic = CommandTopic(node, kind, TOPIC)

    def rest(self) -> None:
        """Nothing is kept."""

    def halt(self) -> None:
        """Nothing."""

    def rivals(self) -> list[str]:
        """The topic, if somebody else publishes on it."""
        return [self._topic.name] if self._topic.has_rival() else []

    def trouble(self) -> str | None:
        """None: a topic does not tell."""
        return None

    def destroy(self) -> None:
        """Take the publisher off the graph."""
        self._topic.destroy()

    def _value(self, fraction_open: float) -> float:
        return float(gripper_from_fraction(fraction_open, self._config.gripper_command))


class ForwardGripper(TopicGripper):
    """`~/gripper_commands` of a forward command controller: Float64MultiArray, one value."""

    def __init__(self, node: LifecycleNode, config: ArmConfig) -> None:
        super().__init__(node, config, Float64MultiArray)

    def send(self, fraction_open: float, stamp: Time) -> None:
        """Publish the opening in the controller's convention."""
        self._topic.publish(Float64MultiArray(data=[self._value(fraction_open)]))


class TrajectoryGripper(TopicGripper):
    """`~/gripper_commands` of a joint trajectory controller: one joint, one point ahead."""

    def __init__(self, node: LifecycleNode, config: ArmConfig) -> None:
        _require(config.gripper_joint, "arm.gripper.joint", "a joint of the controller")
        super().__init__(node, config, JointTrajectory)
        self._ahead = Duration(seconds=TRAJECTORY_PERIODS * config.command_period_s).to_msg()

    def send(self, fraction_open: float, stamp: Time) -> None:
        """Publish a trajectory that starts at once (a stamp of zero) and ends two periods ahead."""
        point = JointTrajectoryPoint(
            positions=[self._value(fraction_open)], time_from_start=self._ahead
        )
        self._topic.publish(
            JointTrajectory(joint_names=[self._config.gripper_joint], points=[point])
        )


class GoalFilter:
    """Says when an opening is worth a new goal: changed by a step, and not too soon."""

    def __init__(self, step: float = GOAL_STEP, period_s: float = GOAL_PERIOD_S) -> None:
        self._step = step
        self._period_s = period_s
        self._last: float | None = None
        self._sent_s = -math.inf

    def rest(self) -> None:
        """Forget the last goal: somebody else may move the gripper since."""
        self._last = None

    def wants(self, fraction_open: float, now_s: float) -> bool:
        """Whether to send it now; if so it counts as sent."""
        if self._last is not None:
            end = fraction_open in (0.0, 1.0) and fraction_open != self._last
            if not end and abs(fraction_open - self._last) < self._step:
                return False
        if now_s - self._sent_s < self._period_s:
            return False
        self._last, self._sent_s = fraction_open, now_s
        return True


class ActionGripper:
    """An action server of control_msgs, GripperCommand or ParallelGripperCommand.

    The package is imported here and only now: the robot's core installs without it.
    """

    def __init__(
        self, node: LifecycleNode, config: ArmConfig, action: str, fill: Callable[..., None]
    ) -> None:
        _require(config.gripper_action, "arm.gripper.action", "the action's name")
        _check_action_name(config.gripper_action)
        self._node = node
        self._config = config
        self._fill = fill
        self._kind = import_action(action)
        self._filter = GoalFilter()
        self._client = ActionClient(node, self._kind, config.gripper_action)
        self._goals = 0  # how many were sent: the number of the last one
        self._halted = 0  # the last of those that must not move the gripper any more
        self._accepted: dict[int, Any] = {}  # by number, the handles of those without a result
        self._again_s: dict[int, float] = {}  # when to cancel again what no server yet cancels
        # Of the last goal that was answered, if that was no success.
        self._failure: str | None = None
        self._warned_s = -math.inf
        self._closed = False

    def send(self, fraction_open: float, stamp: Time) -> None:
        """Send a goal where the opening changed, or where the last one never began.

        Without a server nothing is sent, and that is told.
        """
        if not self._client.server_is_ready():
            self._filter.rest()  # a server that went took its goal along
            self._warn(self._describe_absence)
            return
        if self._filter.wants(fraction_open, time.monotonic()):
            goal = self._kind.Goal()
            value = float(gripper_from_fraction(fraction_open, self._config.gripper_command))
            self._fill(goal, value, self._config)
            self._goals += 1
            answer = self._client.send_goal_async(goal)
            answer.add_done_callback(functools.partial(self._on_answer, self._goals))

    def _on_answer(self, number: int, future: Any) -> None:
        if self._closed:
            return
        if future.exception() is not None:
            self._fail(number, str(future.exception()), again=True)
        elif not future.result().accepted:
            self._fail(number, "its server refuses the goal", again=True)
        else:
            handle = self._accepted[number] = future.result()
            result = handle.get_result_async()
            result.add_done_callback(functools.partial(self._on_result, number))
            if number <= self._halted:
                self._cancel(number, handle)

    def _on_result(self, number: int, future: Any) -> None:
        self._accepted.pop(number, None)
        self._again_s.pop(number, None)
        if self._closed or number != self._goals:
            return
        if future.exception() is not None:
            self._fail(number, str(future.exception()), again=True)
            return
        answer = future.result()
        # A controller may abort what stalls, and a gripper that holds something has stalled.
        if answer.status == GoalStatus.STATUS_ABORTED and not answer.result.stalled:
            # Not again: some abort a grasp of what is larger than asked for and say no more, and
            # sent again it would be grasped anew all the time.
            self._fail(
                number,
                "its server aborted the goal (some do when they hold something)",
                again=False,
            )
        elif answer.status in (GoalStatus.STATUS_ABORTED, GoalStatus.STATUS_SUCCEEDED):
            self._failure = None

    def halt(self) -> None:
        """Cancel every goal without a result; one whose acceptance is still to come, as it comes.

        Once, where the server agrees; else again and again, as often as this is called, up to
        once in `CANCEL_PERIOD_S`. A goal that has ended keeps what it holds.
        """
        before, self._halted = self._halted, self._goals
        self._filter.rest()
        now_s = time.monotonic()
        for number, handle in list(self._accepted.items()):
            if number > before or now_s >= self._again_s.get(number, math.inf):
                self._cancel(number, handle)

    def _cancel(self, number: int, handle: Any) -> None:
        self._again_s[number] = time.monotonic() + CANCEL_PERIOD_S
        answer = handle.cancel_goal_async()
        answer.add_done_callback(functools.partial(self._on_cancelled, number))

    def _on_cancelled(self, number: int, future: Any) -> None:
        if self._closed or number not in self._accepted:
            return
        if future.exception() is not None:
            self._tell(f"the gripper may go on: no answer to a cancellation: {future.exception()}")
            return
        answer = future.result()
        ended = answer.return_code in (answer.ERROR_UNKNOWN_GOAL_ID, answer.ERROR_GOAL_TERMINATED)
        if answer.goals_canceling or ended:
            self._again_s.pop(number, None)
        else:
            self._tell("the gripper goes on: its server refuses to cancel the goal at a stop")

    def _fail(self, number: int, why: str, *, again: bool) -> None:
        """Tell it, and with `again` let the same opening be sent anew.

        Unless another was asked for since.
        """
        if number != self._goals:
            return
        if again:
            self._filter.rest()
        self._tell(
            f"the gripper does not follow: {why} ({self._config.gripper_action}); see what the "
            "controller logs, and arm.gripper.command_closed, command_open and max_effort"
        )

    def _tell(self, failure: str) -> None:
        self._failure = failure
        self._warn(lambda: failure)

    def _describe_absence(self) -> str:
        return (
            f"the gripper does not follow: no action server at {self._config.gripper_action}; "
            "start its controller, or correct arm.gripper.action"
        )

    def _warn(self, describe: Callable[[], str]) -> None:
        """Log it, throttled here: rclpy's throttle costs a part of every tick while silent."""
        now_s = time.monotonic()
        if now_s - self._warned_s >= THROTTLE_S:
            self._warned_s = now_s
            self._node.get_logger().warning(describe())

    def trouble(self) -> str | None:
        """That no server is there, or that the last goal failed."""
        return self._failure if self._client.server_is_ready() else self._describe_absence()

    def rest(self) -> None:
        """The next opening is a goal of its own, whatever the last one was."""
        self._filter.rest()

    def rivals(self) -> list[str]:
        """None: an action has no publisher of commands to count."""
        return []

    def destroy(self) -> None:
        """Take the client off the graph; answers that still come are not looked at."""
        self._closed = True
        self._client.destroy()


class NoGripper:
    """An arm without a gripper, or with one that nobody here commands."""

    def send(self, fraction_open: float, stamp: Time) -> None:
        """Do nothing."""

    def rest(self) -> None:
        """Nothing is kept."""

    def halt(self) -> None:
        """Nothing is under way."""

    def rivals(self) -> list[str]:
        """None."""
        return []

    def trouble(self) -> str | None:
        """None."""
        return None

    def destroy(self) -> None:
        """Nothing to leave."""


def fill_gripper_command(goal: Any, value: float, config: ArmConfig) -> None:
    """Fill a goal of control_msgs/GripperCommand: a position, and the effort that may be used."""
    goal.command.position = value
    goal.command.max_effort = config.gripper_max_effort


def fill_parallel_gripper_command(goal: Any, value: float, config: ArmConfig) -> None:
    """Fill a goal of control_msgs/ParallelGripperCommand, whose command is a JointState."""
    effort = [config.gripper_max_effort] if config.gripper_max_effort else []
    goal.command = JointState(name=[config.gripper_joint], position=[value], effort=effort)


ACTIONS: dict[str, tuple[str, Callable[..., None]]] = {
    "gripper_command": ("GripperCommand", fill_gripper_command),
    "parallel_gripper_command": ("ParallelGripperCommand", fill_parallel_gripper_command),
}
TOPICS: dict[str, Callable[[LifecycleNode, ArmConfig], Gripper]] = {
    "forward": ForwardGripper,
    "trajectory": TrajectoryGripper,
    "none": lambda node, config: NoGripper(),
}


def make_gripper(node: LifecycleNode, config: ArmConfig) -> Gripper:
    """Make the gripper that `arm.gripper.interface` names; ConfigurationError if it cannot be."""
    if config.gripper_interface in ACTIONS:
        return ActionGripper(node, config, *ACTIONS[config.gripper_interface])
    if config.gripper_interface not in TOPICS:
        raise ConfigurationError(
            "no such gripper interface",
            got=repr(config.gripper_interface),
            expected=" or ".join((*TOPICS, *ACTIONS)),
            fix="correct arm.gripper.interface in the robot's file (config/robots)",
        )
    return TOPICS[config.gripper_interface](node, config)


def import_action(name: str) -> Any:
    """Import an action type of control_msgs; ConfigurationError where the package lacks it."""
    try:
        return getattr(importlib.import_module("control_msgs.action"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"the gripper's action type control_msgs/{name} is not there",
            got=str(error),
            expected="a ROS 2 with control_msgs (5.3 or later for ParallelGripperCommand)",
            fix="install ros-<distro>-control-msgs and source it, or take another "
            "arm.gripper.interface (" + ", ".join(TOPICS) + ")",
        ) from error


def _check_action_name(name: str) -> None:
    try:
        validate_topic_name(name)
    except NameValidationException as error:
        raise ConfigurationError(
            "the gripper's action cannot have this name",
            got=f"arm.gripper.action {name!r}: {str(error).splitlines()[0].rstrip(':')}",
            expected="a name of letters, digits, _, ~ and /",
            fix="correct it in the robot's file (config/robots)",
        ) from error


def _require(value: str, parameter: str, what: str) -> None:
    if not value:
        raise ConfigurationError(
            "the gripper cannot be commanded",
            got=f"an empty {parameter}",
            expected=what,
            fix="name it in the robot's file (config/robots)",
        )
