"""Draws are even, and those of a sample are its own."""

from __future__ import annotations

import numpy as np

from training.data.draws import draw_counts, hash_to_unit


def test_the_split_takes_about_the_fraction_it_is_given() -> None:
    share = (hash_to_unit(np.arange(20_000)) < 0.05).mean()
    assert 0.045 < share < 0.055


def test_counts_are_even_and_do_not_depend_on_their_company() -> None:
    frames, passes = np.arange(4000) % 500, np.arange(4000) // 500
    counts = draw_counts(3, passes, frames, 3)
    assert np.bincount(counts, minlength=4).min() > 0.22 * len(counts), "0 to 3, a quarter each"
    order = np.random.default_rng(0).permutation(4000)[:50]
    np.testing.assert_array_equal(draw_counts(3, passes[order], frames[order], 3), counts[order])
    assert np.mean(draw_counts(4, passes, frames, 3) == counts) < 0.35, "another run, others"
    again = counts.reshape(8, 500)
    assert np.mean(again[0] == again[1]) < 0.35, "another pass, others"
