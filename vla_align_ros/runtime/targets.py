"""Turns velocities into target poses for controllers that follow a pose, on a leash to the arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.actions import (
    Pose,
    compose,
    delta_from_twist,
    matrix_from_rotvec,
    rotvec_from_matrix,
)
from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.boxes import Box, confine


class TargetIntegrator:
    """Moves a target by each commanded twist, from where the arm was measured when motion began.

    The target never leads the measured pose by more than `leash_m` and `leash_rad`: an arm that is
    held back, or whose controller stopped listening, finds its target near when it is free again.
    Nor does it leave `workspace_m`, or lie in or behind a box of `keep_out_m` as seen from the arm:
    the controller goes to it however the arm lags. An arm that is out of place is led no further
    out, and one that is deep in a box only out of it.
    Frame and units are the command frame's, metres and radians. Raises SafetyError on a leash that
    is no finite number above 0.
    """

    def __init__(
        self,
        leash_m: float,
        leash_rad: float,
        *,
        workspace_m: Box | None = None,
        keep_out_m: Sequence[Box] = (),
    ) -> None:
        for name, value in (("leash_m", leash_m), ("leash_rad", leash_rad)):
            if not (math.isfinite(value) and value > 0):
                raise SafetyError(
                    f"the robot's limit {name} cannot be used",
                    got=repr(value),
                    expected="a finite number above 0",
                    fix="correct it in the robot's file (config/robots)",
                )
        self._leash_m = leash_m
        self._leash_rad = leash_rad
        self._workspace_m = workspace_m
        self._keep_out_m = tuple(keep_out_m)
        self._target: Pose | None = None

    def advance(self, measured: Pose, twist: NDArray[np.float64], dt_s: float) -> Pose:
        """The target after a twist (6,) in m/s and rad/s was commanded for `dt_s` seconds."""
        start = measured if self._target is None else self._target
        delta = delta_from_twist(twist, dt_s, measured.gripper)
        moved = compose(start.position, start.rotation, delta)
        self._target = self._pull(measured, moved)
        return self._target

    def rest(self) -> None:
        """Motion ended: the next one begins at the measured pose."""
        self._target = None

    def _pull(self, measured: Pose, target: Pose) -> Pose:
        lead = _shorten(target.position - measured.position, self._leash_m)
        # As a velocity over one second: the way to the target is what must stay within.
        lead = confine(lead, [measured.position], 1.0, self._workspace_m, self._keep_out_m)
        turn = _shorten(rotvec_from_matrix(target.rotation @ measured.rotation.T), self._leash_rad)
        rotation = matrix_from_rotvec(turn) @ measured.rotation
        return Pose(measured.position + lead, rotation, target.gripper)


def _shorten(vector: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    size = float(np.linalg.norm(vector))
    return vector if size <= length else vector * (length / size)
