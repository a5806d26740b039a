"""Cuts chunks of actions out of episodes, after leaving out frames in which nothing moves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]


def moves(
    actions: Float32Array, episode: Int64Array, least_m: float, least_rad: float
) -> BoolArray:
    """Which actions (N, 7) move: further than least_m, or turn more than least_rad, or switch.

    (N,) bool. The gripper switches where it differs from the frame before in the same `episode`
    (N,). Source: the public data scripts behind "Don't Blind Your VLA" drop all others, with 0.01 m
    and 0.06 rad a step at 5 Hz; at another rate other limits are sensible.
    """
    far = np.linalg.norm(actions[:, :3], axis=1) > least_m
    turned = np.linalg.norm(actions[:, 3:6], axis=1) > least_rad
    switched = np.zeros(len(actions), dtype=bool)
    switched[1:] = (actions[1:, 6] != actions[:-1, 6]) & (episode[1:] == episode[:-1])
    kept: BoolArray = far | turned | switched
    return kept


class ChunkCutter:
    """Chunks of the kept actions that follow a frame within its episode.

    Frames that are not kept are skipped, as if they had never been recorded. Past the end of the
    episode a chunk holds still: zero motion, the last gripper value, and is_pad True.
    """

    def __init__(self, actions: Float32Array, episode: Int64Array, kept: BoolArray) -> None:
        """`actions` (N, 7), `episode` (N,) and `kept` (N,), rows in order."""
        self._actions = actions[kept]
        # Kept frames before this one: the place of the next kept frame, or its own.
        self._first: Int64Array = np.cumsum(kept, dtype=np.int64) - kept.astype(np.int64)
        numbers, row_number = np.unique(episode, return_inverse=True)
        per_episode = np.bincount(row_number, weights=kept, minlength=len(numbers))
        self._end: Int64Array = np.cumsum(per_episode).astype(np.int64)[row_number]

    def cut(self, rows: Int64Array, horizon: int) -> tuple[Float32Array, BoolArray]:
        """Chunks (B, H, 7) float32 from `rows` (B,) on, and is_pad (B, H) bool."""
        places = self._first[rows, None] + np.arange(horizon)
        is_pad: BoolArray = places >= self._end[rows, None]
        last = np.maximum(self._end[rows, None] - 1, 0)
        chunks = np.array(self._actions[np.minimum(places, last)], dtype=np.float32)
        chunks[..., :6][is_pad] = 0.0
        return chunks, is_pad
