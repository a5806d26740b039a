"""Observations and action chunks are checked once and cannot change afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.errors import ContractError, NonFiniteError

IMAGE = np.zeros((4, 6, 3), np.uint8)


def test_a_contiguous_picture_is_viewed_and_nothing_can_be_written():
    image = IMAGE.copy()
    seen = Observation({"front": image}, [1.0, 2.0], "put it", 3)
    assert np.shares_memory(seen.images["front"], image)
    assert image.flags.writeable, "the caller's own array keeps its rights"
    assert seen.state.dtype == np.float32 and seen.stamp_s == 3.0
    for write in (
        lambda: seen.images["front"].__setitem__((0, 0, 0), 1),
        lambda: seen.state.__setitem__(0, 1),
    ):
        with pytest.raises(ValueError, match="read-only"):
            write()
    with pytest.raises(TypeError):
        seen.images["front"] = image
    with pytest.raises(AttributeError):
        seen.stamp_s = 4.0


def test_a_picture_in_another_layout_is_copied():
    seen = Observation({"front": IMAGE[:, ::2, ::-1]}, None, "put it", 0.0)
    assert seen.images["front"].flags.c_contiguous and seen.images["front"].shape == (4, 3, 3)


def test_the_state_is_a_copy():
    state = np.zeros(2, np.float32)
    seen = Observation({"front": IMAGE}, state, "put it", 0.0)
    state[0] = 9.0
    assert seen.state[0] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"images": {}},
        {"images": [IMAGE]},
        {"images": {"front": IMAGE.astype(np.float32)}},
        {"images": {"front": IMAGE[..., :2]}},
        {"images": {"front": IMAGE[..., 0]}},
        {"state": [[1.0]]},
        {"state": [math.nan]},
        {"state": 1.0},
        {"state": ["a"]},
        {"committed": [[0.0] * 7, [0.0]]},
        {"committed": "none"},
        {"instruction": None},
        {"instruction": b"put it"},
        {"stamp_s": math.nan},
        {"stamp_s": "now"},
    ],
)
def test_a_malformed_observation_is_refused(change):
    arguments = {"images": {"front": IMAGE}, "state": [1.0], "instruction": "put", "stamp_s": 0.0}
    with pytest.raises(ContractError, match="expected"):
        Observation(**{**arguments, **change})


def test_a_chunk_is_a_read_only_copy():
    actions = np.zeros((3, 7), np.float32)
    chunk = ActionChunk(actions, 0.2, 1.0, "put it")
    actions[0, 0] = 9.0
    assert chunk.actions.dtype == np.float64 and chunk.actions[0, 0] == 0.0 and chunk.horizon == 3
    with pytest.raises(ValueError, match="read-only"):
        chunk.actions[0, 0] = 1.0


@pytest.mark.parametrize("shape", [(7,), (0, 7), (3, 6), (1, 3, 7)])
def test_a_chunk_of_another_shape_is_refused(shape):
    with pytest.raises(ContractError, match=r"expected \(H, 7\)"):
        ActionChunk(np.zeros(shape), 0.2, 0.0, "put it")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_chunk_that_is_not_finite_is_refused(value):
    actions = np.zeros((3, 7))
    actions[2, 6] = value
    with pytest.raises(NonFiniteError, match="do not execute"):
        ActionChunk(actions, 0.2, 0.0, "put it")


@pytest.mark.parametrize("period_s", [0.0, -1.0, math.nan, math.inf])
def test_a_chunk_without_a_period_is_refused(period_s):
    with pytest.raises(ContractError, match="period"):
        ActionChunk(np.zeros((1, 7)), period_s, 0.0, "put it")


@pytest.mark.parametrize("actions", [[[0.0] * 7, [0.0]], [["up"] * 7], None])
def test_a_chunk_that_is_no_table_of_numbers_is_refused(actions):
    with pytest.raises(ContractError, match=r"action chunk"):
        ActionChunk(actions, 0.2, 0.0, "put it")
