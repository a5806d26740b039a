"""A linear probe: how much of a picture's label can be read off frozen features by one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vla_align_ros.errors import TrainingError

FOLDS = 5
PENALTY = 3e-4  # best of 1e-5 to 1e-2 for a ViT-S's features of the drawings; flat around it
LBFGS_ITERATIONS = 200
SGD_EPOCHS, SGD_BATCH, SGD_RATE, SGD_MOMENTUM = 40, 128, 0.1, 0.9


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Cross-validated accuracy.

    correct of `total` pictures; chance: the share of the most frequent label; labels: accuracy of
    each label by name.
    """

    correct: int
    total: int
    chance: float
    labels: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Share of the pictures whose label was told."""
        return self.correct / self.total


def cross_validate(
    features: Tensor,
    labels: NDArray[np.int64],
    names: Sequence[str],
    groups: NDArray[np.int64],
    *,
    solver: str = "logistic",
    seed: int = 0,
) -> ProbeResult:
    """Probe features (n, d) for labels (n,) in 5 folds.

    groups (n,): pictures of one group (views of one thing) are always in the same fold, so that
    nothing is told by having been seen. Features are standardised by the training folds. No global
    random state is used; the same input gives the same result.
    """
    check_enough(labels, groups)
    fit: Callable[..., Tensor] = fit_sgd if solver == "sgd" else fit_logistic
    fold = assign_folds(labels, groups, seed)
    x = features.detach().float().cpu()
    y = torch.from_numpy(np.asarray(labels, np.int64))
    told = torch.zeros(len(x), dtype=torch.bool)
    for number in range(FOLDS):
        test = torch.from_numpy(fold == number)
        train = ~test
        scaled = _standardise(x, train)
        weights = fit(scaled[train], y[train], len(names), seed)
        told[test] = _logits(scaled[test].double(), weights.double()).argmax(-1) == y[test]
    right = told.numpy()
    share = {
        n: float(right[labels == i].mean()) for i, n in enumerate(names) if (labels == i).any()
    }
    chance = float(np.bincount(labels).max() / len(labels))
    return ProbeResult(int(right.sum()), len(right), chance, share)


def check_enough(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
    """TrainingError if there are too few pictures for five folds."""
    if len(np.unique(groups)) < FOLDS or len(np.unique(labels)) < 2:
        raise TrainingError(
            "Too few pictures to probe",
            got=f"{len(np.unique(groups))} pictures of {len(np.unique(labels))} labels",
            expected=f"at least {FOLDS} pictures and 2 labels",
            fix="give more pictures in watch.pictures (--pictures), or --set watch.probe=false",
        )


def assign_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Fold (n,) of every picture: groups whole, each label spread over the folds."""
    rng = np.random.default_rng(seed)
    first = {int(group): int(label) for group, label in zip(groups, labels, strict=True)}
    fold_of: dict[int, int] = {}
    turn = 0
    for label in sorted(set(first.values())):
        members = [group for group, own in first.items() if own == label]
        for group in rng.permutation(members):
            fold_of[int(group)] = turn % FOLDS
            turn += 1
    return np.array([fold_of[int(group)] for group in groups], dtype=np.int64)


def fit_logistic(x: Tensor, y: Tensor, classes: int, seed: int) -> Tensor:
    """Multinomial logistic regression, (d + 1, classes) with the bias last, by L-BFGS.

    Minimises the mean cross-entropy plus half `PENALTY` times the squared norm of the weights; the
    problem is convex, so the result does not depend on a start, and `seed` is not used. With more
    columns than rows it is solved in the space of the rows, where its solution lies.
    """
    rows, target, basis = x.double(), y, None
    if rows.shape[1] > rows.shape[0]:
        basis, triangle = torch.linalg.qr(rows.T)  # (d, n), (n, n)
        rows = triangle.T
    weights = torch.zeros(rows.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights], max_iter=LBFGS_ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            loss = functional.cross_entropy(_logits(rows, weights), target)
            loss = loss + 0.5 * PENALTY * weights[:-1].square().sum()
            loss.backward()
        return loss

    solver.step(closure)
    found = weights.detach()
    return found if basis is None else torch.cat([basis @ found[:-1], found[-1:]])


def fit_sgd(x: Tensor, y: Tensor, classes: int, seed: int) -> Tensor:
    """The paper's probe: SGD, momentum 0.9, rate 0.1, 40 epochs, batches of 128."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    solver = torch.optim.SGD([weights], lr=SGD_RATE, momentum=SGD_MOMENTUM)
    for _ in range(SGD_EPOCHS):
        for rows in torch.split(torch.randperm(len(x), generator=generator), SGD_BATCH):
            solver.zero_grad()
            with torch.enable_grad():
                functional.cross_entropy(_logits(x[rows], weights), y[rows]).backward()
            solver.step()
    return weights.detach()


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    logits: Tensor = x @ weights[:-1] + weights[-1]
    return logits


def _standardise(x: Tensor, train: Tensor) -> Tensor:
    """Zero mean and unit variance by the training rows, then rows of length about 1."""
    mean, std = x[train].mean(0), x[train].std(0)
    scaled: Tensor = (x - mean) / (std + 1e-6 * std.max().clamp(min=1e-12)) / x.shape[1] ** 0.5
    return scaled
