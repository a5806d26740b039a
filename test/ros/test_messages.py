"""Messages become what the contract knows, and back, without a silent guess."""

from __future__ import annotations

import array
import json
import math

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from vla_align_ros.contract.actions import matrix_from_rpy, rpy_from_matrix
from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.errors import ContractError
from vla_align_ros.ros.messages import (
    compressed_to_rgb,
    image_to_rgb,
    make_chunk,
    make_diagnostics,
    make_twist,
    pose_to_vector,
    stamp_to_s,
)

ENCODINGS = {
    "rgb8": lambda rgb: rgb,
    "bgr8": lambda rgb: rgb[..., ::-1],
    "rgba8": lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)]),
    "bgra8": lambda rgb: np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 7, np.uint8)]),
    "mono8": lambda rgb: rgb[..., :1],
}


def make_image(rgb: np.ndarray, encoding: str, padding: int) -> Image:
    pixels = np.ascontiguousarray(ENCODINGS[encoding](rgb))
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + padding), 255, np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    return message


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_same_picture(encoding: str, padding: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    if encoding == "mono8":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    np.testing.assert_array_equal(image_to_rgb(make_image(rgb, encoding, padding)), rgb)


def test_a_raw_picture_is_viewed_not_copied() -> None:
    message = make_image(np.zeros((4, 4, 3), np.uint8), "rgb8", 0)
    view = image_to_rgb(message)
    message.data[0] = 9
    assert view[0, 0, 0] == 9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoding": "yuv422"}, "yuv422"),
        ({"step": 5}, "step 5"),
        ({"height": 40}, "wrong length"),
        ({"width": 0}, "size"),
    ],
)
def test_a_garbled_image_is_refused(change: dict[str, object], says: str) -> None:
    message = make_image(np.zeros((4, 4, 3), np.uint8), "rgb8", 0)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ContractError, match=says):
        image_to_rgb(message)


def test_compressed_images_are_decoded_to_rgb() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200  # red
    png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    message = CompressedImage(format="png", data=array.array("B", png))
    np.testing.assert_array_equal(compressed_to_rgb(message), picture)
    with pytest.raises(ContractError):
        compressed_to_rgb(CompressedImage(format="jpeg", data=array.array("B", png[:40])))


def make_pose(quaternion: tuple[float, float, float, float], x: float = 0.3) -> PoseStamped:
    pose = PoseStamped()
    pose.pose.position.x = x
    turn = pose.pose.orientation
    turn.x, turn.y, turn.z, turn.w = quaternion
    return pose


@given(
    axis=st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda a: math.hypot(*a) > 0.1),
    half_turn=st.floats(-1.5, 1.5),
)
def test_a_pose_keeps_its_rotation(axis: list[float], half_turn: float) -> None:
    unit = np.array(axis) / math.hypot(*axis)
    x, y, z = (math.sin(half_turn) * unit).tolist()
    vector = pose_to_vector(make_pose((x, y, z, math.cos(half_turn))))
    np.testing.assert_allclose(vector[:3], [0.3, 0.0, 0.0])
    expected = cv2.Rodrigues(2 * half_turn * unit)[0]
    np.testing.assert_allclose(matrix_from_rpy(vector[3:]), expected, atol=1e-6)
    assert np.isfinite(rpy_from_matrix(expected)).all()


@pytest.mark.parametrize(
    "pose",
    [make_pose((0.0, 0.0, 0.0, 0.0)), make_pose((0.0, 0.0, 0.0, 1.0), x=math.nan)],
    ids=["unset", "nan"],
)
def test_a_pose_that_is_none_is_refused(pose: PoseStamped) -> None:
    with pytest.raises(ContractError, match="no pose"):
        pose_to_vector(pose)


@pytest.mark.parametrize("unit", [1000.0, 100.0], ids=["millimetres", "centimetres"])
def test_a_pose_that_is_not_in_metres_is_refused(unit: float) -> None:
    with pytest.raises(ContractError, match="expected metres"):
        pose_to_vector(make_pose((0.0, 0.0, 0.0, 1.0), x=0.3 * unit))


def test_a_twist_carries_stamp_and_frame() -> None:
    message = make_twist(np.arange(6.0), Time(sec=3, nanosec=500_000_000), "base_link")
    assert stamp_to_s(message.header.stamp) == 3.5
    assert message.header.frame_id == "base_link"
    assert (message.twist.linear.z, message.twist.angular.x) == (2.0, 3.0)


def test_a_chunk_is_laid_out_as_step_by_dim() -> None:
    actions = np.arange(21.0).reshape(3, 7)
    message = make_chunk(ActionChunk(actions, 0.2, 0.0, "go"))
    sizes = [(dim.label, dim.size, dim.stride) for dim in message.layout.dim]
    assert sizes == [("step", 3, 21), ("dim", 7, 7)]
    np.testing.assert_array_equal(np.reshape(message.data, (3, 7)), actions)


def test_diagnostics_can_be_read_back() -> None:
    values = {"text": "a b", "rate": 20.0, "count": 3, "none": None, "list": [{"a": 1}], "on": True}
    message = make_diagnostics("n", "h", b"\x01", "t", values, Time())
    found = {item.key: item.value for item in message.status[0].values}
    assert found["text"] == "a b"
    assert float(found["rate"]) == 20.0
    assert {k: json.loads(found[k]) for k in ("count", "none", "list", "on")} == {
        k: values[k] for k in ("count", "none", "list", "on")
    }
