"""Chunks are cut within episodes, padded at their end, and skip frames that do not move."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.chunks import ChunkCutter, moves


def plain_chunk(
    actions: np.ndarray, episode: np.ndarray, kept: np.ndarray, row: int, horizon: int
) -> tuple[list[list[float]], list[bool]]:
    """A second implementation: walk on from the row, one frame at a time."""
    mine = [k for k in range(len(actions)) if episode[k] == episode[row] and kept[k]]
    following = [k for k in mine if k >= row][:horizon]
    chunk = [actions[k].tolist() for k in following]
    pad = [False] * len(chunk)
    last = float(actions[mine[-1]][6])
    while len(chunk) < horizon:
        chunk.append([0.0] * 6 + [last])
        pad.append(True)
    return chunk, pad


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    horizon=st.integers(1, 12),
    keep=st.floats(0.2, 1.0),
    seed=st.integers(0, 999),
)
def test_chunks_equal_a_plain_walk(
    lengths: list[int], horizon: int, keep: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    actions = rng.normal(size=(len(episode), 7)).astype(np.float32)
    kept = rng.random(len(episode)) < keep
    kept[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = True  # one in every episode
    rows = np.flatnonzero(kept)
    chunks, is_pad = ChunkCutter(actions, episode, kept).cut(rows, horizon)
    assert chunks.dtype == np.float32 and chunks.shape == (len(rows), horizon, 7)
    for place, row in enumerate(rows):
        wanted, pad = plain_chunk(actions, episode, kept, int(row), horizon)
        np.testing.assert_array_equal(chunks[place], np.asarray(wanted, np.float32))
        assert is_pad[place].tolist() == pad


@given(st.integers(0, 9999))
def test_the_filter_equals_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    episode = np.sort(rng.integers(0, 4, 40))
    actions = rng.normal(scale=0.02, size=(40, 7)).astype(np.float32)
    actions[:, 6] = rng.integers(0, 2, 40)
    wanted = []
    for k in range(40):
        far = float(np.linalg.norm(actions[k, :3])) > 0.01
        turned = float(np.linalg.norm(actions[k, 3:6])) > 0.06
        switched = k > 0 and episode[k - 1] == episode[k] and actions[k - 1, 6] != actions[k, 6]
        wanted.append(far or turned or switched)
    assert moves(actions, episode, 0.01, 0.06).tolist() == wanted


def test_the_gripper_alone_is_a_movement_but_not_across_episodes() -> None:
    actions = np.zeros((4, 7), np.float32)
    actions[1:, 6] = [1, 1, 0]
    episode = np.array([0, 0, 0, 1])
    assert moves(actions, episode, 0.01, 0.06).tolist() == [False, True, False, False]
