"""Every pair of maps between poses, actions, twists and gripper commands is an exact inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_align_ros.contract import actions
from vla_align_ros.contract.actions import GRIPPER_CONVENTIONS, GripperConvention, Pose
from vla_align_ros.errors import ContractError

metres = st.floats(-2.0, 2.0)
positions = st.tuples(metres, metres, metres).map(np.array)
units = (
    st.tuples(*[st.floats(-1.0, 1.0)] * 3)
    .map(np.array)
    .filter(lambda axis: np.linalg.norm(axis) > 1e-3)
    .map(lambda axis: axis / np.linalg.norm(axis))
)
angles = st.floats(0.0, math.pi - 1e-6) | st.floats(0.0, 1e-5) | st.just(0.0)
rotvecs = st.builds(lambda axis, angle: axis * angle, units, angles)
fractions = st.floats(0.0, 1.0)
deltas = st.builds(lambda p, r, g: np.array([*p, *r, g]), positions, rotvecs, fractions)
rotations = rotvecs.map(actions.matrix_from_rotvec)
periods = st.floats(1e-3, 10.0)
conventions = st.sampled_from(sorted(GRIPPER_CONVENTIONS)) | st.builds(
    GripperConvention, st.floats(-10.0, -1.0), st.floats(1.0, 10.0)
)


@given(positions, rotations, fractions, deltas)
def test_difference_undoes_compose_within_1e_9(position, rotation, gripper, delta):
    start = Pose(position, rotation, gripper)
    end = actions.compose(position, rotation, delta)
    # Near half a turn the sign of the axis is decided by rounding: compare what the arm would do.
    found = actions.difference(start, end)
    np.testing.assert_allclose(found[:3], delta[:3], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[3:6], delta[3:6], rtol=0, atol=1e-8)
    assert found[6] == delta[6]


@given(positions, rotations, positions, rotations, fractions)
def test_compose_undoes_difference_within_1e_9(position, rotation, other, turned, gripper):
    end = Pose(other, turned, gripper)
    delta = actions.difference(Pose(position, rotation, 0.0), end)
    reached = actions.compose(position, rotation, delta)
    np.testing.assert_allclose(reached.position, end.position, rtol=0, atol=1e-9)
    np.testing.assert_allclose(reached.rotation, end.rotation, rtol=0, atol=1e-9)
    assert reached.gripper == gripper


def test_rotation_is_applied_on_the_left_in_the_axes_of_the_frame():
    upright = actions.matrix_from_rpy([math.pi / 2, 0.0, 0.0])
    delta = [0.0, 0.0, 0.0, 0.0, 0.0, math.pi / 2, 0.0]
    turned = actions.compose([0.0, 0.0, 0.0], upright, delta).rotation
    np.testing.assert_allclose(
        turned, actions.matrix_from_rpy([math.pi / 2, 0, math.pi / 2]), atol=1e-12
    )


@given(deltas, periods)
def test_twist_and_delta_are_inverses_within_1e_12(delta, period_s):
    twist = actions.twist_from_delta(delta, period_s)
    back = actions.delta_from_twist(twist, period_s, delta[6])
    np.testing.assert_allclose(back, delta, rtol=1e-12, atol=1e-12)


@given(deltas, st.integers(1, 20))
def test_twist_held_for_a_period_performs_the_delta(delta, ticks):
    twist = actions.twist_from_delta(delta, 0.2)
    pose = Pose(np.zeros(3), np.eye(3), 0.0)
    tick = actions.delta_from_twist(twist, 0.2 / ticks, delta[6])
    for _ in range(ticks):
        pose = actions.compose(pose.position, pose.rotation, tick)
    np.testing.assert_allclose(pose.position, delta[:3], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        pose.rotation, actions.matrix_from_rotvec(delta[3:6]), rtol=0, atol=1e-9
    )


@given(rotvecs)
@example(np.array([0.006, -0.004, 0.003]))  # a typical step, small and yet no infinitesimal one
def test_rotation_vectors_agree_with_scipy_and_come_back(rotvec):
    matrix = actions.matrix_from_rotvec(rotvec)
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(rotvec).as_matrix(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(actions.rotvec_from_matrix(matrix), rotvec, rtol=0, atol=1e-8)


def test_half_a_turn_keeps_its_angle():
    for axis in np.eye(3):
        found = actions.rotvec_from_matrix(actions.matrix_from_rotvec(axis * math.pi))
        np.testing.assert_allclose(np.abs(found), axis * math.pi, rtol=0, atol=1e-9)


@given(st.tuples(st.floats(-3.14, 3.14), st.floats(-1.57, 1.57), st.floats(-3.14, 3.14)))
def test_roll_pitch_yaw_agree_with_scipy_and_come_back_as_the_same_rotation(rpy):
    matrix = actions.matrix_from_rpy(rpy)
    np.testing.assert_allclose(
        matrix, Rotation.from_euler("xyz", rpy).as_matrix(), rtol=0, atol=1e-12
    )
    back = actions.rpy_from_matrix(matrix)
    np.testing.assert_allclose(actions.matrix_from_rpy(back), matrix, rtol=0, atol=1e-9)
    if abs(rpy[1]) < 1.5:
        np.testing.assert_allclose(back, rpy, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pitch", [math.pi / 2, -math.pi / 2])
def test_roll_pitch_yaw_survive_the_gimbal(pitch):
    matrix = actions.matrix_from_rpy([0.3, pitch, 0.8])
    back = actions.matrix_from_rpy(actions.rpy_from_matrix(matrix))
    np.testing.assert_allclose(back, matrix, rtol=0, atol=1e-9)


@given(fractions, conventions)
def test_gripper_conventions_are_inverses_within_1e_12(fraction, convention):
    value = actions.gripper_from_fraction(fraction, convention)
    np.testing.assert_allclose(
        actions.gripper_to_fraction(value, convention), fraction, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "closed", "opened"),
    [
        ("fraction_open", 0, 1),
        ("fraction_closed", 1, 0),
        ("signed_open", -1, 1),
        ("signed_closed", 1, -1),
        ("percent_open", 0, 100),
        ("percent_closed", 100, 0),
    ],
)
def test_gripper_conventions_say_what_their_names_say(name, closed, opened):
    np.testing.assert_array_equal(actions.gripper_from_fraction([0.0, 1.0], name), [closed, opened])


@pytest.mark.parametrize(
    "call",
    [
        lambda: actions.compose([0, 0, 0], np.eye(3), [0] * 6),
        lambda: actions.compose([0, 0, 0], np.eye(3), [math.nan] * 7),
        lambda: actions.compose([0, 0, 0], np.eye(3), [0] * 6 + [math.inf]),
        lambda: actions.compose([0, 0], np.eye(3), [0] * 7),
        lambda: actions.compose([0, 0, 0], np.eye(4), [0] * 7),
        lambda: actions.twist_from_delta([0] * 7, 0.0),
        lambda: actions.twist_from_delta([0] * 7, math.inf),
        lambda: actions.delta_from_twist([0] * 7, 0.2, 1.0),
        lambda: actions.rotvec_from_matrix(2 * np.eye(3)),
        lambda: actions.rotvec_from_matrix(1.0001 * np.eye(3)),
        lambda: actions.rotvec_from_matrix(-np.eye(3)),
        lambda: actions.rpy_from_matrix(np.ones((3, 3))),
        lambda: actions.gripper_to_fraction(0.0, "upside_down"),
        lambda: GripperConvention(1.0, 1.0),
        lambda: GripperConvention(math.nan, 1.0),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(ContractError, match="expected"):
        call()
