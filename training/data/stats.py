"""Per-episode and whole-dataset statistics as LeRobot's metadata wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_MAX_STAT_FRAMES = 16
_PIXEL_STRIDE = 2

Stats = dict[str, np.ndarray]


def column_stats(values: np.ndarray) -> Stats:
    """min, max, mean, std, count and quantiles over time of (T, ...) values, shape (...) each.

    A scalar column (T,) gives shape (1,) as LeRobot keeps it.
    """
    wide = values.reshape(len(values), -1).astype(np.float64)
    shape = values.shape[1:] or (1,)
    stats = {
        "min": wide.min(0),
        "max": wide.max(0),
        "mean": wide.mean(0),
        "std": wide.std(0),
        **dict(zip(QUANTILES, np.quantile(wide, list(QUANTILES.values()), axis=0), strict=True)),
    }
    return {
        **{name: value.reshape(shape) for name, value in stats.items()},
        "count": np.array([len(values)]),
    }


def image_stats(images: np.ndarray) -> Stats:
    """Per-channel statistics in 0..1 of (T, H, W, 3) uint8 images, shape (3, 1, 1) each.

    Up to 16 frames and every second pixel are counted; exact over those, through a histogram.
    """
    picked = np.unique(np.linspace(0, len(images) - 1, _MAX_STAT_FRAMES).round().astype(int))
    sample = images[picked, ::_PIXEL_STRIDE, ::_PIXEL_STRIDE]
    levels = np.arange(256) / 255.0
    per_channel = []
    for channel in range(3):
        histogram = np.bincount(sample[..., channel].reshape(-1), minlength=256)
        total = histogram.sum()
        mean = float(histogram @ levels / total)
        cumulative = np.cumsum(histogram) / total
        seen = np.nonzero(histogram)[0]
        per_channel.append(
            {
                "min": levels[seen[0]],
                "max": levels[seen[-1]],
                "mean": mean,
                "std": float(np.sqrt(histogram @ (levels - mean) ** 2 / total)),
                **{
                    name: levels[int(np.searchsorted(cumulative, q))]
                    for name, q in QUANTILES.items()
                },
            }
        )
    return {
        **{
            name: np.array([c[name] for c in per_channel]).reshape(3, 1, 1)
            for name in per_channel[0]
        },
        "count": np.array([len(picked)]),
    }


def merge_image_stats(parts: Sequence[Stats]) -> Stats:
    """Whole-dataset image statistics from those of its episodes.

    Mean and std are exact (parallel algorithm); quantiles are averaged with the frame counts.
    """
    weight = np.concatenate([part["count"] for part in parts]).astype(np.float64)
    stacked = {k: np.stack([part[k] for part in parts]) for k in parts[0] if k != "count"}
    share = (weight / weight.sum()).reshape(-1, 1, 1, 1)
    mean = (share * stacked["mean"]).sum(0)
    variance = (share * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
    return {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: (share * stacked[name]).sum(0) for name in QUANTILES},
        "count": np.array([int(weight.sum())]),
    }


def flatten_stats(stats: Mapping[str, Stats]) -> dict[str, Any]:
    """Columns `stats/<feature>/<statistic>` of an episode's row, as nested lists."""
    return {
        f"stats/{feature}/{name}": value.tolist()
        for feature, values in stats.items()
        for name, value in values.items()
    }


def json_stats(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """The content of meta/stats.json."""
    return {
        feature: {name: value.tolist() for name, value in values.items()}
        for feature, values in stats.items()
    }
