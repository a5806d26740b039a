"""The linear probe: what it can tell, what it must not be able to tell, and its solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from training.sight import cross_validate
from training.sight.probe import FOLDS, PENALTY, assign_folds, fit_logistic
from vla_align_ros.errors import TrainingError


def make(rows: int, width: int, classes: int, gap: float, seed: int = 0) -> tuple:
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = rng.normal(size=(classes, width)) * gap
    return torch.from_numpy(rng.normal(size=(rows, width)) + centres[labels]), labels


@pytest.mark.parametrize("solver", ["logistic", "sgd"])
def test_separable_labels_are_told_and_names_are_kept(solver: str) -> None:
    x, labels = make(150, 12, 3, gap=6.0)
    result = cross_validate(x, labels, "abc", np.arange(150), solver=solver)
    assert result.accuracy > 0.95 and result.total == 150
    assert set(result.labels) == set("abc")
    assert sum(result.labels.values()) / 3 == pytest.approx(result.accuracy)


@pytest.mark.parametrize("solver", ["logistic", "sgd"])
def test_unrelated_labels_are_guessed(solver: str) -> None:
    x, labels = make(400, 8, 4, gap=0.0)
    result = cross_validate(x, labels, "abcd", np.arange(400), solver=solver)
    assert result.chance == 0.25
    assert abs(result.accuracy - 0.25) < 0.1


def test_views_of_one_thing_do_not_give_it_away() -> None:
    """Features name the thing and nothing else: seen once, every other view would be told."""
    rng = np.random.default_rng(0)
    things = np.repeat(np.arange(60), 4)
    labels = rng.integers(0, 3, 60)[things]
    x = torch.eye(60)[torch.from_numpy(things)] + 0.01 * torch.from_numpy(
        rng.normal(size=(240, 60))
    )
    leaking = cross_validate(x, labels, "abc", np.arange(240))
    honest = cross_validate(x, labels, "abc", things)
    assert leaking.accuracy > 0.9
    assert honest.accuracy < 0.6


def test_folds_keep_things_whole_and_spread_labels() -> None:
    things = np.repeat(np.arange(50), 3)
    labels = (np.arange(50) % 5)[things]
    fold = assign_folds(labels, things, seed=3)
    assert all(len(set(fold[things == thing])) == 1 for thing in range(50))
    for number in range(FOLDS):
        assert set(np.bincount(labels[fold == number])) == {6}


@pytest.mark.parametrize("width", [6, 60])  # fewer and more columns than rows
def test_the_solver_finds_the_minimum_that_scipy_finds(width: int) -> None:
    x, labels = make(40, width, 3, gap=0.5)
    x = (x / width**0.5).double()
    rows, classes = x.numpy(), 3

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(width + 1, classes)
        logits = rows @ weights[:-1] + weights[-1]
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        error = np.exp(log_p)
        error[np.arange(40), labels] -= 1
        error /= 40
        gradient = np.vstack([rows.T @ error + PENALTY * weights[:-1], error.sum(0)])
        loss = -log_p[np.arange(40), labels].mean() + 0.5 * PENALTY * (weights[:-1] ** 2).sum()
        return loss, gradient.ravel()

    start = np.zeros((width + 1) * classes)
    known = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    found = fit_logistic(x, torch.from_numpy(labels), classes, 0).numpy()
    assert objective(found.ravel())[0] == pytest.approx(known.fun, abs=1e-6)
    expected = known.x.reshape(width + 1, classes)[:-1]
    assert np.abs(found[:-1] - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("solver", ["logistic", "sgd"])
def test_it_repeats_itself_and_leaves_random_state_alone(solver: str) -> None:
    x, labels = make(60, 5, 3, gap=0.7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.no_grad():  # as in a reading
        first, second = (
            cross_validate(x, labels, "abc", np.arange(60), solver=solver) for _ in range(2)
        )
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_scale_of_the_features_does_not_count() -> None:
    x, labels = make(60, 5, 3, gap=0.7)
    one, two = (
        cross_validate(value, labels, "abc", np.arange(60)) for value in (x, 1e4 * x + 77.0)
    )
    assert one.correct == two.correct


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"got 2 pictures of 2 labels.*watch.pictures"):
        cross_validate(torch.zeros(4, 2), np.array([0, 0, 1, 1]), "ab", np.array([0, 0, 1, 1]))
