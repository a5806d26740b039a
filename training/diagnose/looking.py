"""Everything that is read of one network: features by place, name tokens, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.diagnose.tokens import read_name_tokens
from training.model import PrismaticVLA
from training.sight.attention import LAST, measure_attention, relative_maps
from training.sight.config import NEUTRAL_INSTRUCTION, WatchConfig, choose_blocks, choose_layers
from training.sight.features import (
    name_places,
    pick_features,
    pick_rows,
    pool_tokens,
    run_batches,
    show_pictures,
    stack_inputs,
    undisturbed,
)
from training.sight.pictures import LabelledPictures
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor


@dataclass(frozen=True, slots=True, eq=False)
class Things:
    """What every network is shown: scenes, pictures to classify, and those of a few labels."""

    scenes: Sequence[Observation]
    pictures: LabelledPictures | None
    few: LabelledPictures | None
    drawn_scenes: int


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What one network sees.

    scenes: visual tokens (rows, width) by place. pictures: mean visual tokens (n, width) by place.
    few: of the few labels, (n, width) by place. named, unnamed: hidden states (L + 1, n, D) of the
    token that names them, or of "object". attention: relative maps (scenes, N), mean over `blocks`;
    share: part of the last prompt token's attention that the picture gets.
    """

    places: tuple[str, ...]
    scenes: dict[str, Tensor]
    pictures: dict[str, Tensor]
    few: dict[str, Tensor]
    named: Tensor | None
    unnamed: Tensor | None
    blocks: tuple[int, ...]
    attention: NDArray[np.float32]
    share: float


def look(
    model: PrismaticVLA,
    processor: Processor,
    things: Things,
    watch: WatchConfig,
    autocast: torch.dtype | None,
) -> Look:
    """Look through one network at all things; changes nothing of it."""
    device = next(model.parameters()).device
    depth = int(model.llm.config.num_hidden_layers)
    places = name_places(choose_layers(watch, depth))
    blocks = tuple(choose_blocks(watch, depth))
    size, scenes = watch.batch_size, things.scenes
    with undisturbed([model], device, autocast):
        tokens: dict[str, list[Tensor]] = {place: [] for place in places}
        for _, output in run_batches(model, processor, scenes, size, device):
            for place, value in pick_features(output, places).items():
                tokens[place].append(value.float().cpu())
        pooled = _pool(model, processor, things.pictures, places, scenes[0], size, device)
        few = {}
        if things.pictures is not None and things.few is not None:
            where = torch.from_numpy(things.pictures.find(things.few.names))
            few = {place: value[where] for place, value in pooled.items()}
        named, unnamed = (
            None
            if things.few is None
            else read_name_tokens(
                model, processor, things.few, scenes[0], named=named, size=size, device=device
            )
            for named in (True, False)
        )
        maps, share = _look_at_words(
            model, processor, scenes[: things.drawn_scenes], blocks, device
        )
    rows = {place: pick_rows(torch.cat(parts)) for place, parts in tokens.items()}
    return Look(places, rows, pooled, few, named, unnamed, blocks, maps, share)


def _pool(
    model: PrismaticVLA,
    processor: Processor,
    pictures: LabelledPictures | None,
    places: Sequence[str],
    like: Observation,
    size: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Mean visual tokens by place, in the pictures' order, asked with the neutral prompt."""
    if pictures is None:
        return {}
    shown = show_pictures(pictures.images, NEUTRAL_INSTRUCTION, like)
    parts = [
        pool_tokens(output, places)
        for _, output in run_batches(model, processor, shown, size, device)
    ]
    return {place: torch.cat([part[place] for part in parts]) for place in places}


def _look_at_words(
    model: PrismaticVLA,
    processor: Processor,
    scenes: Sequence[Observation],
    blocks: Sequence[int],
    device: torch.device,
) -> tuple[NDArray[np.float32], float]:
    """Relative maps (scenes, N) of the last prompt token, mean over blocks, and its share."""
    maps, shares = [], []
    for scene in scenes:
        neutral = Observation(scene.images, scene.state, NEUTRAL_INSTRUCTION, scene.stamp_s)
        inputs = stack_inputs(processor, [scene, neutral], device)
        queries = torch.full((2, 1), LAST)
        found = measure_attention(model, inputs, blocks, queries)
        maps.append(relative_maps(found.weights[:, 0, 0], found.weights[:, 1, 0]).mean(0).numpy())
        shares.append(float(found.share[:, 0, 0].mean()))
    return np.stack(maps), float(np.mean(shares))
