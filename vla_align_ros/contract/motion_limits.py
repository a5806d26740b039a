"""Limits of motion that a policy asks for itself; a robot's own are never loosened by them."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from vla_align_ros.errors import ContractError

MOTION_LIMITS = (
    "max_linear_m_s",
    "max_angular_rad_s",
    "max_linear_m_s2",
    "max_angular_rad_s2",
    "max_linear_m_s3",
    "max_angular_rad_s3",
    "gripper_max_per_s",
)
"""Speed, acceleration and jerk of the end effector; fractions of the gripper's range a second."""


def check_motion_limits(limits: object) -> dict[str, float]:
    """Return a policy's limits, a mapping of some of ``MOTION_LIMITS`` to finite numbers above 0.

    Raises:
        ContractError: on another name or value, or on a jerk without its acceleration.
    """
    if not isinstance(limits, Mapping) or not set(limits) <= set(MOTION_LIMITS):
        raise ContractError(
            "policy's limits have the wrong form",
            got=sorted(map(str, limits)) if isinstance(limits, Mapping) else type(limits).__name__,
            expected="an object with names among " + ", ".join(MOTION_LIMITS),
        )
    for name, value in limits.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 < value <= sys.float_info.max):
            raise ContractError(
                f"policy's limit {name} is none",
                got=repr(value),
                expected="a finite number above 0",
            )
        if name.endswith("s3") and f"{name[:-1]}2" not in limits:
            raise ContractError(
                f"policy's limit {name} stands alone",
                got=sorted(limits),
                expected=f"{name[:-1]}2 beside it",
            )
    return {name: float(value) for name, value in limits.items()}
