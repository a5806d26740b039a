"""Linear CKA: parity with slow formulas, and the invariances that make it a measure of drift."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sight import linear_cka
from vla_align_ros.errors import TrainingError


def random_features(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def hsic_of_distinct_quadruples(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimator by its definition: a mean over all tuples of distinct indices."""
    k, m = (x @ x.T).double(), (y @ y.T).double()
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return float(torch.stack(terms).mean())


def test_the_debiased_value_follows_the_definition() -> None:
    x, y = random_features(7, 3, 0), random_features(7, 4, 1) + 2.0
    x, y = x.double(), y.double()
    y[:, :3] += x
    hsic = hsic_of_distinct_quadruples
    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-9)


def test_the_plain_value_equals_the_feature_space_formula() -> None:
    x, y = random_features(40, 5, 0).double(), random_features(40, 8, 1).double()
    y[:, :5] += x
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert linear_cka(x, y, debiased=False) == pytest.approx(float(expected), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-100, 100),
    debiased=st.booleans(),
)
def test_rotation_scale_and_shift_do_not_count(
    seed: int, scale: float, shift: float, debiased: bool
) -> None:
    x = random_features(24, 6, seed).double()
    rotation = torch.linalg.qr(random_features(6, 6, seed + 1).double()).Q
    moved = scale * (x @ rotation) + shift * scale
    assert linear_cka(x, moved, debiased=debiased) == pytest.approx(1.0, abs=1e-6)
    other = random_features(24, 9, seed + 2).double()
    one, two = (linear_cka(a, other, debiased=debiased) for a in (x, moved))
    assert one == pytest.approx(two, abs=1e-6)
    assert linear_cka(other, x, debiased=debiased) == pytest.approx(one, abs=1e-9)


def test_few_rows_flatter_only_the_plain_value() -> None:
    x, y = random_features(48, 2000, 0), random_features(48, 2000, 1)
    assert linear_cka(x, y, debiased=False) > 0.9
    assert abs(linear_cka(x, y)) < 0.1


def test_it_falls_as_features_drift() -> None:
    x, noise = random_features(200, 16, 0), random_features(200, 16, 1)
    values = [linear_cka(x, x + share * noise) for share in (0.0, 0.3, 1.0, 3.0)]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values, reverse=True) and values[-1] < 0.4


def test_features_that_do_not_vary_have_no_likeness() -> None:
    assert math.isnan(linear_cka(torch.ones(8, 3), random_features(8, 3, 0)))


@pytest.mark.parametrize("other", [torch.zeros(5, 2), torch.zeros(6)])
def test_features_of_other_things_are_refused(other: torch.Tensor) -> None:
    with pytest.raises(TrainingError, match=r"got .*\(6, 2\).* expected .*same n.* fix"):
        linear_cka(torch.zeros(6, 2), other)
