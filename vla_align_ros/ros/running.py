"""Runs a node as a process: a signal ends it between two callbacks, never within one."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import rclpy
from rclpy.event_handler import EventHandler
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_align_ros.errors import ConfigurationError, VlaAlignError
from vla_align_ros.ros.transports import leave_shared_memory

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SPIN_S = 0.2  # how long a signal may wait for its turn
# A signal that comes sooner after another is the same wish by another way (a launch file's beside
# the terminal's), and must not keep the arm from its zero.
HANGS_S = 2.0
EVENTS_S = 0.2  # how often a node looks whether a QoS event has happened
# A thread that computes in Python gives way after this (5 ms by default), so that the timer that
# commands the arm does not wait for one that prepares a picture.
SWITCH_S = 1e-4
# glibc's mallopt(3): what is freed stays with the process, up to this, and large pieces come from
# it. Otherwise each picture's copies are mapped anew and every page of them faults once.
KEPT_BYTES = 32 * 2**20  # the most that M_MMAP_THRESHOLD takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

PRIORITY = "thread_priority"

AnyNode = TypeVar("AnyNode", bound=Node)


class PromptExecutor(SingleThreadedExecutor):
    """rclpy's executor, which looks at QoS events (lost, incompatible) every `EVENTS_S` alone.

    A node of nine publishers and nine subscriptions has 37 of them, and each costs as much as a
    topic whenever the node wakes for a picture or a command (docs/benchmarks.md). None is lost:
    the middleware keeps them until they are looked at.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._next_s = 0.0
        self._due = self._looked = True

    def can_execute(self, entity: Any) -> bool:
        """Whether to wait for this one now."""
        if isinstance(entity, EventHandler):
            if not self._due:
                return False
            self._looked = True
        return bool(super().can_execute(entity))

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for one callback and run it."""
        now_s = time.monotonic()
        if self._looked:
            self._looked = False
            self._next_s = now_s + EVENTS_S
        self._due = now_s >= self._next_s
        super().spin_once(timeout_sec)


def keep_memory() -> None:
    """Let freed memory stay with the process, where its C library can do that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 4 * KEPT_BYTES)


def take_priority(priority: int) -> str | None:
    """Give this thread a real-time priority (SCHED_FIFO, 1 to 99); says why not, if so.

    Threads that it starts from now on do not inherit it: inference must not keep the processor
    from everything else. What must be allowed is what ros2_control's documentation tells to allow.
    """
    if sys.platform != "linux":
        return f"{sys.platform} is not Linux"
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError as error:
        return f"{error.strerror}: allow it by LimitRTPRIO of the unit, or rtprio in limits.conf"
    return None


def run_node(
    make: Callable[[], AnyNode],
    *,
    finished: Callable[[AnyNode], bool] = lambda node: False,
    arguments: list[str] | None = None,
    shared_memory: bool = True,
) -> bool:
    """Make a node and run it until it is `finished`; False if a signal came first.

    rclpy's own handlers would pull the context from under a callback that is publishing. SIGHUP, a
    terminal that is gone, ends it like the others, unless who started it ignores that (nohup). A
    node that is still there after `HANGS_S` hangs in a callback: the next signal ends the process
    at once. A VlaAlignError ends the process with its message and status 1. A node with the
    parameter `thread_priority` gets it for the thread that runs its callbacks (0: as it is).
    Without `shared_memory` a process of its own (no `arguments`) waits for no other one to send.
    """
    asked_to_end: list[float] = []  # when, s

    def ask_to_end(received: int, _: object) -> None:
        asked_to_end.append(time.monotonic())
        if asked_to_end[-1] - asked_to_end[0] > HANGS_S:
            signal.signal(received, signal.SIG_DFL)
            signal.raise_signal(received)

    sys.setswitchinterval(SWITCH_S)
    keep_memory()
    if not shared_memory and arguments is None:
        leave_shared_memory(os.environ)
    with readable_arguments():
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, ask_to_end)
    executor = PromptExecutor()
    node: AnyNode | None = None
    try:
        with readable_parameters():
            node = make()
        executor.add_node(node)
        _prioritise(node)
        while not asked_to_end and not finished(node):
            executor.spin_once(timeout_sec=SPIN_S)
        return not asked_to_end
    except VlaAlignError as error:
        raise SystemExit(f"{node.get_name() if node else 'node'}: {error}") from error
    finally:
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


@contextmanager
def readable_arguments() -> Iterator[None]:
    """Start rclpy within; what it does not understand ends the process in one line."""
    try:
        yield
    except Exception as error:  # rclpy raises an RCLError of a private module
        raise SystemExit(
            f"ROS does not start: got {error}; expected arguments and variables that it can read; "
            "fix: correct what follows --ros-args, the parameter file that is named there, or the "
            "variable"
        ) from error


@contextmanager
def readable_parameters() -> Iterator[None]:
    """Make a node within; ConfigurationError on a parameter that rclpy declares by itself."""
    try:
        yield
    except InvalidParameterTypeException as error:
        raise ConfigurationError(
            "a parameter of every ROS node cannot be used",
            got=error,
            expected="its own type: true or false for use_sim_time",
            fix="correct it in the parameter file or on the command line",
        ) from error


def _prioritise(node: Node) -> None:
    if not node.has_parameter(PRIORITY):
        return
    wanted = node.get_parameter(PRIORITY).value
    refusal = take_priority(wanted) if wanted else None
    if refusal is not None:
        node.get_logger().info(f"no real-time priority, so commands may come late: {refusal}")
