"""Delta actions and their inverses: the only code that knows rotations and gripper signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.spec import ACTION_DIM
from vla_align_ros.errors import ContractError

FloatArray = npt.NDArray[np.float64]


class Pose(NamedTuple):
    """An end effector in the action frame, with its gripper.

    ``position`` (3,) in metres; ``rotation`` (3, 3) matrix; ``gripper`` 0 closed to 1 open.
    """

    position: FloatArray
    rotation: FloatArray
    gripper: float


@dataclass(frozen=True, slots=True)
class GripperConvention:
    """A linear scale for a gripper's opening: the values that mean closed and open."""

    closed: float
    open: float

    def __post_init__(self) -> None:
        if (
            not (math.isfinite(self.closed) and math.isfinite(self.open))
            or self.closed == self.open
        ):
            raise ContractError(
                "gripper convention has no range",
                got=(self.closed, self.open),
                expected="two different finite numbers, closed and open",
                fix="correct the gripper's values for closed and open (in the robot's file)",
            )


GRIPPER_CONVENTIONS = {
    "fraction_open": GripperConvention(closed=0.0, open=1.0),
    "fraction_closed": GripperConvention(closed=1.0, open=0.0),
    "signed_open": GripperConvention(closed=-1.0, open=1.0),
    "signed_closed": GripperConvention(closed=1.0, open=-1.0),
    "percent_open": GripperConvention(closed=0.0, open=100.0),
    "percent_closed": GripperConvention(closed=100.0, open=0.0),
}
"""By name; the package's own is ``fraction_open``. LIBERO and robosuite use ``signed_closed``."""


def compose(position: npt.ArrayLike, rotation: npt.ArrayLike, delta: npt.ArrayLike) -> Pose:
    """Apply an action to a pose.

    Args:
        position: (3,) metres. rotation: (3, 3). delta: (7,) as ``ActionSpec`` orders it.

    Returns:
        The pose reached: position + d, exp(dr) R, and the gripper that the action asks for.

    Raises:
        ContractError: on a wrong shape or a value that is not finite.
    """
    step = _read(delta, (ACTION_DIM,), "delta")
    return Pose(
        _read(position, (3,), "position") + step[:3],
        matrix_from_rotvec(step[3:6]) @ _read(rotation, (3, 3), "rotation"),
        float(step[6]),
    )


def difference(start: Pose, end: Pose) -> FloatArray:
    """Return the (7,) action that leads from ``start`` to ``end``: the inverse of ``compose``.

    Exact within float rounding for rotations below half a turn (beyond it, the shorter way round).
    """
    rotation = _read(end.rotation, (3, 3), "rotation") @ _read(start.rotation, (3, 3), "rotation").T
    translation = _read(end.position, (3,), "position") - _read(start.position, (3,), "position")
    return np.concatenate([translation, rotvec_from_matrix(rotation), [float(end.gripper)]])


def twist_from_delta(delta: npt.ArrayLike, period_s: float) -> FloatArray:
    """Return the constant (6,) twist, m/s and rad/s, that performs ``delta`` (7,) in a period."""
    return _read(delta, (ACTION_DIM,), "delta")[:6] / _read_period(period_s)


def delta_from_twist(twist: npt.ArrayLike, period_s: float, gripper: float) -> FloatArray:
    """Return the (7,) action that a constant (6,) twist performs in a period; gripper 0 to 1."""
    velocity = _read(twist, (6,), "twist")
    return np.append(velocity * _read_period(period_s), float(gripper))


def gripper_to_fraction(value: npt.ArrayLike, convention: str | GripperConvention) -> FloatArray:
    """Convert a gripper command of some convention to the fraction open (0 closed, 1 open)."""
    scale = _find_convention(convention)
    return (np.asarray(value, dtype=np.float64) - scale.closed) / (scale.open - scale.closed)


def gripper_from_fraction(
    fraction: npt.ArrayLike, convention: str | GripperConvention
) -> FloatArray:
    """Convert the fraction open to a convention: the inverse of ``gripper_to_fraction``."""
    scale = _find_convention(convention)
    return scale.closed + np.asarray(fraction, dtype=np.float64) * (scale.open - scale.closed)


def matrix_from_rotvec(rotvec: npt.ArrayLike) -> FloatArray:
    """Return the (3, 3) rotation exp(r) of a (3,) rotation vector in radians (Rodrigues)."""
    vector = _read(rotvec, (3,), "rotation vector")
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-6:
        first, second = 1.0 - angle**2 / 6.0, 0.5
    else:
        first, second = math.sin(angle) / angle, 2.0 * (math.sin(angle / 2.0) / angle) ** 2
    rotation: FloatArray = np.eye(3) + first * skew + second * (skew @ skew)
    return rotation


def rotvec_from_matrix(matrix: npt.ArrayLike) -> FloatArray:
    """Return the (3,) rotation vector, in radians and at most half a turn, of a (3, 3) rotation.

    Raises:
        ContractError: if the matrix is no rotation within 1e-6.
    """
    rotation = _read_rotation(matrix)
    scalar, vector = _quaternion(rotation)
    length = float(np.linalg.norm(vector))
    if length < 1e-8:
        return 2.0 * vector
    return vector * (2.0 * math.atan2(length, scalar) / length)


def matrix_from_rpy(rpy: npt.ArrayLike) -> FloatArray:
    """Return Rz(yaw) Ry(pitch) Rx(roll), (3, 3), of (3,) roll, pitch, yaw in radians (REP 103)."""
    roll, pitch, yaw = _read(rpy, (3,), "roll, pitch, yaw")
    turns = ([0.0, 0.0, yaw], [0.0, pitch, 0.0], [roll, 0.0, 0.0])
    about_z, about_y, about_x = (matrix_from_rotvec(turn) for turn in turns)
    rotation: FloatArray = about_z @ about_y @ about_x
    return rotation


def rpy_from_matrix(matrix: npt.ArrayLike) -> FloatArray:
    """Return (3,) roll, pitch, yaw in radians; pitch in [-pi/2, pi/2]; at its ends, roll is 0."""
    rotation = _read_rotation(matrix)
    cosine = math.hypot(rotation[0, 0], rotation[1, 0])
    pitch = math.atan2(-rotation[2, 0], cosine)
    if cosine < 1e-9:
        return np.array([0.0, pitch, math.atan2(-rotation[0, 1], rotation[1, 1])])
    roll = math.atan2(rotation[2, 1], rotation[2, 2])
    return np.array([roll, pitch, math.atan2(rotation[1, 0], rotation[0, 0])])


def _quaternion(rotation: FloatArray) -> tuple[float, FloatArray]:
    """Scalar (not negative) and vector part, by the largest component (Shepperd)."""
    trace = float(np.trace(rotation))
    diagonal = np.append(np.diag(rotation), trace)
    largest = int(np.argmax(diagonal))
    if largest == 3:
        scalar = 1.0 + trace
        vector = np.array(
            [
                rotation[2, 1] - rotation[1, 2],
                rotation[0, 2] - rotation[2, 0],
                rotation[1, 0] - rotation[0, 1],
            ]
        )
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        vector = np.empty(3)
        vector[i] = 1.0 - trace + 2.0 * rotation[i, i]
        vector[j] = rotation[j, i] + rotation[i, j]
        vector[k] = rotation[k, i] + rotation[i, k]
        scalar = float(rotation[k, j] - rotation[j, k])
    scale = math.copysign(1.0, scalar) / math.sqrt(scalar**2 + float(vector @ vector))
    return scalar * scale, vector * scale


def _read(value: npt.ArrayLike, shape: tuple[int, ...], what: str) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ContractError(
            f"{what} is wrong",
            got=np.array2string(array, threshold=16),
            expected=f"finite numbers of shape {shape}",
        )
    return array


def _read_rotation(matrix: npt.ArrayLike) -> FloatArray:
    rotation = _read(matrix, (3, 3), "rotation")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-6 or np.linalg.det(rotation) < 0.0:
        raise ContractError(
            "matrix is no rotation",
            got=rotation.tolist(),
            expected="orthonormal rows and determinant 1",
        )
    return rotation


def _read_period(period_s: float) -> float:
    if not 0.0 < period_s < math.inf:
        raise ContractError(
            "period is not positive", got=repr(period_s), expected="seconds above 0"
        )
    return float(period_s)


def _find_convention(convention: str | GripperConvention) -> GripperConvention:
    if isinstance(convention, GripperConvention):
        return convention
    if convention not in GRIPPER_CONVENTIONS:
        raise ContractError(
            "gripper convention is unknown",
            got=repr(convention),
            expected=" or ".join(GRIPPER_CONVENTIONS),
        )
    return GRIPPER_CONVENTIONS[convention]
