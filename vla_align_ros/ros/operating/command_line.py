"""Runs a person's command as a short-lived node: ROS's own words apart, errors as one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from vla_align_ros.errors import VlaAlignError
from vla_align_ros.ros.running import readable_arguments, readable_parameters
from vla_align_ros.ros.transports import leave_shared_memory

POLICY_HELP = "name of the policy node, in this node's namespace (default policy_node)"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run_command(
    name: str,
    parser: argparse.ArgumentParser,
    work: Callable[[Node, argparse.Namespace], int],
    arguments: list[str] | None = None,
) -> int:
    """Parse, make the node `name`, and run `work(node, args)`; returns the exit status.

    Ctrl-C is a KeyboardInterrupt in `work`. A VlaAlignError is printed, with status 1.
    """
    words = sys.argv if arguments is None else [parser.prog, *arguments]
    with readable_arguments():
        own = remove_ros_args(words)[1:]
    args = parser.parse_args(own)
    if arguments is None:
        leave_shared_memory(os.environ)  # a person's stop waits for no other process
    with readable_arguments():
        rclpy.init(args=words[1:], signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    node: Node | None = None
    try:
        with readable_parameters():
            node = rclpy.create_node(name)
        return work(node, args)
    except VlaAlignError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Declare which policy is meant."""
    parser.add_argument("--policy", default="policy_node", metavar="NAME", help=POLICY_HELP)


def add_wait(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Declare how long the policy may take."""
    parser.add_argument(
        "--wait", type=float, default=seconds, metavar="S", help=f"seconds to wait ({seconds:g})"
    )
