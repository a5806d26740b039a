"""How the scenes of the training look to a run's policy: what a robot compares its own with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import ActionChunkDataset
from training.data.sources import open_sources
from training.files import replace_atomically
from training.model import PrismaticVLA
from training.model.checkpoint import is_consolidated
from training.run_folder import Run
from training.run_weights import RunWeights
from training.sight.config import NEUTRAL_INSTRUCTION
from training.sight.features import ENCODER, pick_features
from vla_align_ros.contract.sight import SIGHT_NAME, SightStatistics, pack_sight
from vla_align_ros.errors import ConfigurationError, DataError

SCENES = 2048
QUANTILE = 0.99
BATCH = 16
LEAST_SCENES = 4
UNFINISHED = "a checkpoint"  # in place of a digest: no export is of these weights
LEAST_SHRINKAGE = 1e-4  # of the mean variance: what no scene varied in still has a scale

Means = NDArray[np.float64]


def fit_familiarity(
    run: Path,
    roots: Sequence[str | Path],
    *,
    place: str = ENCODER,
    scenes: int = SCENES,
    quantile: float = QUANTILE,
    cache: Path | None = None,
    progress: bool = True,
) -> SightStatistics:
    """Fit on training frames, calibrate on held-out ones, and keep both as sight.npz in the run.

    Mean and covariance (Ledoit and Wolf's shrinkage) are of the mean visual token of up to `scenes`
    frames of the training episodes; the threshold is the `quantile` of the distances of up to as
    many frames of the held-out episodes. place: "encoder" (the towers' output, by default: it knows
    neither words nor state) or "layer_<k>" of the language model.

    Raises:
        ConfigurationError: on a place that the network does not have, or numbers that make no
        sense. DataError: if the data has too few frames. TrainingError and others as opening a run
        and its data do.
    """
    if scenes < LEAST_SCENES or not 0.0 < quantile <= 1.0:
        raise ConfigurationError(
            "Familiar scenes cannot be fitted so",
            got=f"{scenes} scenes, quantile {quantile:g}",
            expected=f"{LEAST_SCENES} scenes or more, a quantile above 0 and at most 1",
            fix="correct --scenes or --quantile",
        )
    found = Run.open(run)
    weights = RunWeights.find(run).digest() if is_consolidated(run) else UNFINISHED
    model = found.load_after()
    check_place(model, place)
    data = ActionChunkDataset(
        open_sources(roots, found.config.data),
        found.processor,
        found.config.data,
        cache_dir=cache,
        progress=progress,
    )
    rng = np.random.default_rng(0)
    chosen = [np.sort(rng.permutation(data.indices(split))[:scenes]) for split in ("train", "val")]
    if min(map(len, chosen)) < LEAST_SCENES:
        raise DataError(
            "Too few frames to know the scenes by",
            got=f"{len(chosen[0])} of training, {len(chosen[1])} held out",
            expected=f"at least {LEAST_SCENES} of each; some thousands tell more",
            fix="collect more episodes, or raise data.validation",
        )
    means, held_out = (mean_tokens(model, data, indices, place) for indices in chosen)
    mean, covariance = fit_gaussian(means)
    facts: dict[str, Any] = {
        "mean": mean,
        "covariance": covariance,
        "quantile": quantile,
        "neutral": NEUTRAL_INSTRUCTION,
        "place": place,
        "fitted": len(means),
        "calibrated": len(held_out),
        "weights": weights,
    }
    distances = SightStatistics(threshold=1.0, **facts).distances(held_out)
    statistics = SightStatistics(threshold=float(np.quantile(distances, quantile)), **facts)
    with replace_atomically(run / SIGHT_NAME) as temporary:
        Path(temporary).write_bytes(pack_sight(statistics))
    return statistics


def check_place(model: PrismaticVLA, place: str) -> None:
    """ConfigurationError, naming the places there are, on one that the network does not have."""
    depth = int(model.llm.config.num_hidden_layers)
    names = [ENCODER, *(f"layer_{layer}" for layer in range(depth + 1))]
    if place not in names:
        raise ConfigurationError(
            "The network has no such place",
            got=place,
            expected=f"{ENCODER}, or layer_0 to layer_{depth}",
            fix="correct --place",
        )


@torch.no_grad()
def mean_tokens(
    model: PrismaticVLA, data: ActionChunkDataset, indices: NDArray[np.int64], place: str
) -> Means:
    """Mean visual token (n, D) of frames, asked with the neutral instruction."""
    ids, mask = data.processor.tokenizer.encode(NEUTRAL_INSTRUCTION)
    found = []
    for part in _batches(indices):
        batch = data.batch(part)
        output = model(
            batch["pixel_values"],
            torch.from_numpy(np.tile(ids, (len(part), 1))),
            torch.from_numpy(np.tile(mask, (len(part), 1))),
            batch.get("state"),
        )
        found.append(pick_features(output, [place])[place].double().mean(1).numpy())
    return np.concatenate(found)


def fit_gaussian(samples: Means) -> tuple[Means, Means]:
    """Mean (D,) and covariance (D, D) of samples (n, D), shrunk as Ledoit and Wolf (2004) do.

    The shrinkage goes to a multiple of the identity, so that the result is positive definite with
    fewer samples than dimensions, too.
    """
    count, width = samples.shape
    mean = samples.mean(0)
    centred = samples - mean
    covariance = centred.T @ centred / count
    scale = float(np.trace(covariance)) / width
    target = scale * np.eye(width)
    spread = float(((covariance - target) ** 2).sum())
    norms = (centred**2).sum(1)
    noise = float((norms**2).sum() / count - (covariance**2).sum()) / count
    share = min(1.0, max(LEAST_SHRINKAGE, noise / spread if spread > 0 else 1.0))
    return mean, (1.0 - share) * covariance + share * target + 1e-12 * np.eye(width)


def _batches(indices: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(indices), BATCH):
        yield indices[start : start + BATCH]
