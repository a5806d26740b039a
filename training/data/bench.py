"""Measures how many samples a second the loader gives, decoding and augmentation included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.config import DataConfig
from training.data.dataset import ActionChunkDataset
from training.data.loader import BatchLoader
from training.data.sampler import Draws, SampleSampler
from training.data.sources import open_sources, policy_spec
from training.data.statistics import dataset_statistics
from training.data.tokenizer import BOS, PAD, build_word_tokenizer
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer

_ROUNDS = 3


def bench_loader(
    roots: Sequence[str | Path],
    config: DataConfig,
    *,
    workers: Sequence[int] = (0, 1, 2),
    batch_size: int = 16,
    batches: int = 12,
    horizon: int = 8,
    cache_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Samples a second (median of three rounds, the workers' counts taken in turns) by count.

    Nothing is kept of a decoded picture from one round to the next, as with a data set that is
    larger than memory; where `config` decodes once, the rounds read what was decoded before.
    """
    config = replace(config, decode_cache_gb=0.0)
    sources = open_sources(roots, config)
    processor = _make_processor(sources, config, horizon, cache_dir)
    data = ActionChunkDataset(sources, processor, config, cache_dir=cache_dir, progress=True)

    def make(draws: Draws) -> dict[str, Any]:
        return data.batch(draws.indices, passes=draws.passes)

    samples = np.concatenate([data.indices("train"), data.indices("val")])
    speeds: dict[int, list[float]] = {count: [] for count in workers}
    for round_number in range(_ROUNDS):
        for count in workers:
            sampler = SampleSampler(samples, batch_size, seed=round_number)
            with BatchLoader(make, sampler, workers=count) as loader:
                loader.next()  # opens files, starts threads
                started_s = time.perf_counter()
                for _ in range(batches):
                    loader.next()
                seconds = time.perf_counter() - started_s
            speeds[count].append(batches * batch_size / seconds)
    return {
        "samples_per_s": {str(n): statistics.median(values) for n, values in speeds.items()},
        "batch_size": batch_size,
        "batches": batches,
        "image_size": config.image_size,
        "decode": config.decode,
        "augment": config.augment.enabled,
        "camera_px": [sources[0].selection.height, sources[0].selection.width],
    }


def _make_processor(
    sources: Any, config: DataConfig, horizon: int, cache_dir: str | Path | None
) -> Processor:
    with_state = sources[0].selection.state_key is not None
    spec = policy_spec(sources, config, horizon=horizon, with_state=with_state)
    found = dataset_statistics(sources, config, cache_dir=cache_dir)
    words = build_word_tokenizer(task for source in sources for task in source.reader.tasks)
    return Processor(
        spec,
        ImageTransform(size=config.image_size, crop=config.crop),
        {key: Normalizer("quantile", value) for key, value in found.items()},
        PromptTokenizer(words, max_length=64, bos_token=BOS, pad_token=PAD),
    )
