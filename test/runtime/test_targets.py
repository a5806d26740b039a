"""Target poses follow the twists, and stay on their leash to the arm that is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vla_align_ros.contract.actions import Pose, matrix_from_rotvec, rotvec_from_matrix
from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.boxes import SLIDE_M, Box
from vla_align_ros.runtime.targets import TargetIntegrator

DT_S = 0.05
LEASH_M, LEASH_RAD = 0.05, 0.3


def pose(position: object = (0.3, 0.0, 0.2), rotvec: object = (0.0, 0.0, 0.0)) -> Pose:
    return Pose(np.array(position, float), matrix_from_rotvec(rotvec), 1.0)  # type: ignore[arg-type]


def lead(target: Pose, measured: Pose) -> tuple[float, float]:
    turn = rotvec_from_matrix(target.rotation @ measured.rotation.T)
    return (
        float(np.linalg.norm(target.position - measured.position)),
        float(np.linalg.norm(turn)),
    )


def test_begins_at_the_measured_pose_and_moves_with_the_twist() -> None:
    integrator, arm = TargetIntegrator(LEASH_M, LEASH_RAD), pose()
    twist = np.array([0.1, 0, 0, 0, 0, 0.4])
    for k in (1, 2, 3):
        target = integrator.advance(arm, twist, DT_S)
        np.testing.assert_allclose(target.position, [0.3 + 0.005 * k, 0, 0.2])
        np.testing.assert_allclose(rotvec_from_matrix(target.rotation), [0, 0, 0.02 * k])


def test_an_arm_that_follows_is_led_at_the_commanded_speed() -> None:
    integrator, arm = TargetIntegrator(LEASH_M, LEASH_RAD), pose()
    for _ in range(100):
        arm = integrator.advance(arm, np.array([0.1, 0, 0, 0, 0, 0]), DT_S)
    np.testing.assert_allclose(arm.position, [0.3 + 100 * 0.005, 0, 0.2])


def test_an_arm_that_is_held_back_finds_its_target_near() -> None:
    integrator, arm = TargetIntegrator(LEASH_M, LEASH_RAD), pose()
    for _ in range(1000):
        target = integrator.advance(arm, np.array([0.2, 0.2, 0, 0, 1.0, 0]), DT_S)
    assert lead(target, arm) == pytest.approx((LEASH_M, LEASH_RAD))
    back = integrator.advance(arm, np.array([-0.2, -0.2, 0, 0, -1.0, 0]), DT_S)
    assert lead(back, arm)[0] < LEASH_M, "the way back begins at the leash, not far beyond it"


def test_after_a_rest_the_target_begins_at_the_arm_again() -> None:
    integrator = TargetIntegrator(LEASH_M, LEASH_RAD)
    integrator.advance(pose(), np.array([0.1, 0, 0, 0, 0, 0]), DT_S)
    integrator.rest()
    elsewhere = pose((0.5, 0.1, 0.3), (0.1, 0.2, 0.3))
    target = integrator.advance(elsewhere, np.zeros(6), DT_S)
    np.testing.assert_allclose(target.position, elsewhere.position)
    np.testing.assert_allclose(target.rotation, elsewhere.rotation, atol=1e-12)


numbers = st.floats(-2.0, 2.0)


@given(
    twists=st.lists(st.tuples(*[numbers] * 6), min_size=1, max_size=20),
    moves=st.lists(st.tuples(*[st.floats(-0.5, 0.5)] * 6), min_size=20, max_size=20),
    dt_s=st.floats(1e-3, 0.2),
)
def test_no_twist_and_no_arm_stretches_the_leash(
    twists: list[tuple[float, ...]], moves: list[tuple[float, ...]], dt_s: float
) -> None:
    integrator = TargetIntegrator(LEASH_M, LEASH_RAD)
    for twist, move in zip(twists, moves, strict=False):
        arm = pose(move[:3], move[3:])
        target = integrator.advance(arm, np.array(twist), dt_s)
        far_m, far_rad = lead(target, arm)
        assert far_m <= LEASH_M * (1 + 1e-9)
        assert far_rad <= LEASH_RAD + 1e-6
        assert np.isfinite(target.position).all()
        error: NDArray[np.float64] = target.rotation @ target.rotation.T - np.eye(3)
        assert np.abs(error).max() < 1e-9


WORKSPACE: Box = ((0.28, -0.4, 0.02), (0.7, 0.4, 0.6))
SHELF: Box = ((0.4, -0.1, 0.02), (0.5, 0.1, 0.2))


def is_inside(point: NDArray[np.float64], box: Box, margin: float = 1e-9) -> bool:
    low, high = np.asarray(box)
    return bool(((point > low + margin) & (point < high - margin)).all())


@given(
    start=st.tuples(st.floats(0.2, 0.8), st.floats(-0.5, 0.5), st.floats(-0.1, 0.7)),
    twists=st.lists(st.tuples(*[st.floats(-0.3, 0.3)] * 3), min_size=1, max_size=20),
    lag_s=st.floats(0.05, 1.0),
)
def test_however_the_arm_lags_its_target_stays_within_the_limits(
    start: tuple[float, ...], twists: list[tuple[float, ...]], lag_s: float
) -> None:
    integrator = TargetIntegrator(LEASH_M, LEASH_RAD, workspace_m=WORKSPACE, keep_out_m=[SHELF])
    low, high = np.asarray(WORKSPACE)
    arm = pose(start)
    for twist in twists:
        target = integrator.advance(arm, np.array([*twist, 0.0, 0.0, 0.0]), DT_S).position
        assert (target >= np.minimum(low, arm.position) - 1e-12).all(), "left, or further out"
        assert (target <= np.maximum(high, arm.position) + 1e-12).all()
        if not is_inside(arm.position, SHELF):
            for share in np.linspace(0, 1, 11):
                on_the_way = arm.position + share * (target - arm.position)
                assert not is_inside(on_the_way, SHELF)
        arm = pose(arm.position + DT_S / lag_s * (target - arm.position))


def test_an_arm_that_is_a_little_in_a_box_is_led_along_its_side_and_no_deeper() -> None:
    (low_x, _, _), (_, high_y, _) = SHELF
    arm = pose((low_x + 0.5 * SLIDE_M, high_y - 0.1, 0.1))
    integrator = TargetIntegrator(LEASH_M, LEASH_RAD, keep_out_m=[SHELF])
    target = integrator.advance(arm, np.array([0.1, -0.1, 0, 0, 0, 0]), DT_S)
    assert np.allclose(target.position, arm.position - [0, 0.1 * DT_S, 0])


def test_an_arm_that_lags_is_led_to_the_side_of_its_workspace_and_no_further() -> None:
    integrator = TargetIntegrator(LEASH_M, LEASH_RAD, workspace_m=WORKSPACE)
    arm = pose((0.4, 0.0, 0.1))
    for _ in range(200):
        target = integrator.advance(arm, np.array([0, 0, -0.2, 0, 0, 0]), DT_S)
        arm = pose(arm.position + DT_S / 0.4 * (target.position - arm.position))
    assert target.position[2] == pytest.approx(0.02)


@pytest.mark.parametrize("wrong", [(0.0, 0.3), (np.nan, 0.3), (0.05, -1.0), (0.05, np.inf)])
def test_a_leash_that_is_none_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(SafetyError, match="leash"):
        TargetIntegrator(*wrong)
