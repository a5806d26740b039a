"""Builds what a robot driver sends: a picture, the tool's pose, the fingers' position."""

from __future__ import annotations

import array
import math

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import Image, JointState


def image_message(image: NDArray[np.uint8], frame: str, stamp: Time) -> Image:
    """An rgb8 Image of a picture (H, W, 3) uint8 RGB.

    The data are an array.array: rclpy copies one in microseconds, an ndarray byte by byte.
    """
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame
    message.height, message.width = image.shape[:2]
    message.encoding = "rgb8"
    message.step = 3 * message.width
    message.data = array.array("B", image.tobytes())
    return message


def pose_message(pose: ArrayLike, frame: str, stamp: Time) -> PoseStamped:
    """A PoseStamped of x, y, z in metres and roll, pitch, yaw in rad (fixed axes, REP-103)."""
    x, y, z, roll, pitch, yaw = (float(value) for value in np.asarray(pose))
    message = PoseStamped()
    message.header.stamp = stamp
    message.header.frame_id = frame
    message.pose.position.x, message.pose.position.y, message.pose.position.z = x, y, z
    turn = message.pose.orientation
    turn.x, turn.y, turn.z, turn.w = quaternion_from_rpy(roll, pitch, yaw)
    return message


def joint_message(name: str, position_m: float, stamp: Time) -> JointState:
    """A JointState of one sliding finger, its position in metres."""
    message = JointState()
    message.header.stamp = stamp
    message.name = [name]
    message.position = [position_m]
    return message


def quaternion_from_rpy(roll: float, pitch: float, yaw: float) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w) of fixed-axis roll, pitch, yaw in rad (REP-103)."""
    cr, sr = math.cos(roll / 2), math.sin(roll / 2)
    cp, sp = math.cos(pitch / 2), math.sin(pitch / 2)
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    return (
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
        cr * cp * cy + sr * sp * sy,
    )
