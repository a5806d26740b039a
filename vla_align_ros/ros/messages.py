"""Turns messages into the contract's types and back; nothing else knows a message's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64MultiArray, MultiArrayDimension

from vla_align_ros.contract.actions import Pose, rotvec_from_matrix, rpy_from_matrix
from vla_align_ros.contract.images import decode_compressed, to_rgb
from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.errors import ContractError

REACH_M = 10.0  # further from its own foot no arm reaches: that is another unit


def stamp_to_s(stamp: Time) -> float:
    """Seconds of a stamp."""
    return float(stamp.sec + stamp.nanosec * 1e-9)


def s_to_stamp(seconds: float) -> Time:
    """A stamp of seconds."""
    nanoseconds = round(seconds * 1e9)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def image_to_rgb(message: Image) -> NDArray[np.uint8]:
    """View a raw image as (H, W, 3) uint8 RGB, without a copy where its encoding allows it.

    Raises ContractError on an encoding or a size that the contract refuses.
    """
    return to_rgb(
        np.frombuffer(message.data, np.uint8),
        encoding=message.encoding,
        height=message.height,
        width=message.width,
        step=message.step,
        is_bigendian=bool(message.is_bigendian),
    )


def compressed_to_rgb(message: CompressedImage) -> NDArray[np.uint8]:
    """Decode a compressed image to (H, W, 3) uint8 RGB; ContractError if it cannot be."""
    return decode_compressed(bytes(message.data))


def pose_to_vector(message: PoseStamped) -> NDArray[np.float64]:
    """A pose as (6,): x, y, z in m and fixed-axis roll, pitch, yaw in rad (REP-103).

    Raises ContractError when it is not finite, its quaternion has no direction, or it is so far
    off that it cannot be in metres.
    """
    position, turn = message.pose.position, message.pose.orientation
    quaternion = np.array([turn.x, turn.y, turn.z, turn.w])
    place = np.array([position.x, position.y, position.z])
    norm = np.linalg.norm(quaternion)
    if not (np.isfinite(place).all() and 0.5 < norm < 2.0):
        raise ContractError(
            "an end-effector pose is no pose",
            got=f"position {place.tolist()}, quaternion {quaternion.tolist()}",
            expected="finite metres and a unit quaternion",
            fix="correct the publisher of ~/ee_pose",
        )
    if np.linalg.norm(place) > REACH_M:
        raise ContractError(
            "an end-effector pose is out of any arm's reach",
            got=f"position {place.round(3).tolist()}",
            expected=f"metres, {REACH_M:g} at most from the origin of its frame",
            fix="let the publisher of ~/ee_pose give metres (millimetres?), in the arm's own frame",
        )
    return np.concatenate([place, rpy_from_matrix(_matrix(quaternion / norm))])


def make_twist(twist: NDArray[np.float64], stamp: Time, frame: str) -> TwistStamped:
    """A velocity (6,) in m/s and rad/s as a message."""
    message = TwistStamped()
    message.header.stamp = stamp
    message.header.frame_id = frame
    linear, angular = message.twist.linear, message.twist.angular
    linear.x, linear.y, linear.z = (float(value) for value in twist[:3])
    angular.x, angular.y, angular.z = (float(value) for value in twist[3:])
    return message


def make_pose(pose: Pose, stamp: Time, frame: str) -> PoseStamped:
    """A pose in metres and a rotation matrix as a message; its gripper is left out."""
    message = PoseStamped()
    message.header.stamp = stamp
    message.header.frame_id = frame
    place, turn = message.pose.position, message.pose.orientation
    place.x, place.y, place.z = (float(value) for value in pose.position)
    rotvec = rotvec_from_matrix(pose.rotation)
    angle = float(np.linalg.norm(rotvec))
    axis = rotvec / angle if angle > 0.0 else rotvec
    turn.x, turn.y, turn.z = (float(value) for value in axis * np.sin(angle / 2.0))
    turn.w = float(np.cos(angle / 2.0))
    return message


def make_chunk(chunk: ActionChunk) -> Float64MultiArray:
    """A chunk as the policy planned it, for recorders.

    `layout.dim` is step x dim; `data` holds, row by row, the delta of each step (m, rad) and the
    gripper (fraction open). It is what inference returned: neither limited nor yet executed.
    """
    steps, width = chunk.actions.shape
    message = Float64MultiArray()
    message.layout.dim = [
        MultiArrayDimension(label="step", size=steps, stride=steps * width),
        MultiArrayDimension(label="dim", size=width, stride=width),
    ]
    message.data = chunk.actions.ravel().tolist()
    return message


def make_diagnostics(
    name: str, hardware: str, level: bytes, text: str, values: Mapping[str, object], stamp: Time
) -> DiagnosticArray:
    """One diagnostic status; numbers are written plainly, anything else but text as JSON."""
    status = DiagnosticStatus(level=level, name=name, message=text, hardware_id=hardware)
    status.values = [KeyValue(key=key, value=_plain(value)) for key, value in values.items()]
    message = DiagnosticArray(status=[status])
    message.header.stamp = stamp
    return message


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4f}"
    return json.dumps(value)


def _matrix(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix (3, 3) of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
