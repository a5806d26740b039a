"""Reads a robot's file as policy_node does, for `vla-align doctor`; prints why that refuses it."""

from __future__ import annotations

import sys

import rclpy

from vla_align_ros.errors import VlaAlignError
from vla_align_ros.ros.params import declare_parameters, read_parameters, refuse_unknown_arm
from vla_align_ros.ros.running import readable_arguments


def explain_refusal(path: str) -> str:
    """Why policy_node would not take this file; "" if it does."""
    words = ["--ros-args", "--params-file", path, "-p", "bundle:=any"]
    with readable_arguments():
        rclpy.init(args=words)
    node = rclpy.create_node("robot_file")
    try:
        declare_parameters(node)
        refuse_unknown_arm(node)
        read_parameters(node)
    except VlaAlignError as error:
        return str(error)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return ""


def main() -> None:
    """Print why the file that is named is refused, and nothing where it is not."""
    print(explain_refusal(sys.argv[1]), end="", flush=True)


if __name__ == "__main__":
    main()
