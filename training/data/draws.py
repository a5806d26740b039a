"""Draws that depend on what they are for alone, not on order, worker or machine."""

from __future__ import annotations

import numpy as np

_TELLS = 1  # sets these draws apart from the augmentation's of the same three numbers


def draw_counts(seed: int, passes: np.ndarray, indices: np.ndarray, most: int) -> np.ndarray:
    """How many committed actions each sample tells (B,) int64: 0 to `most`, evenly.

    The draw of (seed, pass, frame); passes and indices are (B,) int64.
    """
    draws = zip(passes, indices, strict=True)
    rngs = (np.random.default_rng((seed, number, frame, _TELLS)) for number, frame in draws)
    return np.array([rng.integers(most + 1) for rng in rngs], dtype=np.int64)


def hash_to_unit(values: np.ndarray) -> np.ndarray:
    """Well-spread pseudo-random numbers in [0, 1) of int64 values (splitmix64's finaliser)."""
    mixed = np.asarray(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    units: np.ndarray = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / float(1 << 53)
    return units
