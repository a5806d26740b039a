"""Draws where the words of fixed scenes look, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.sight.attention import LAST, find_word, measure_attention, relative_maps
from training.sight.config import NEUTRAL_INSTRUCTION
from training.sight.draw import arrange, fit, overlay
from training.sight.features import stack_inputs
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor

Picture = NDArray[np.uint8]


def look_at_attention(
    model: Any,
    processor: Processor,
    scenes: Sequence[Observation],
    blocks: Sequence[int],
    words: Sequence[str],
    device: torch.device,
) -> tuple[dict[str, Picture], dict[str, float]]:
    """A figure a scene, and the part of the last prompt token's attention that pictures get.

    Each row of a figure is a camera and a query: the last prompt token, then each of `words` that
    the instruction has; columns are the picture and the relative map of each block. Scalars:
    sight/attention_visual_share_block_<k>, mean over the scenes.
    """
    figures: dict[str, Picture] = {}
    shares = []
    for number, scene in enumerate(scenes):
        found = {word: find_word(processor.tokenizer, scene.instruction, word) for word in words}
        asked = {word: index for word, index in found.items() if index is not None}
        queries = torch.tensor([[LAST, *asked.values()], [LAST] * (1 + len(asked))])
        inputs = stack_inputs(processor, [scene, _ask_neutrally(scene)], device)
        maps = measure_attention(model, inputs, blocks, queries)
        relative = relative_maps(maps.weights[:, 0], maps.weights[:, 1])  # (L, Q, N)
        shares.append(maps.share[:, 0, 0])
        names = [scene.instruction, *(f"the word {word!r}" for word in asked)]
        figures[f"attention_{number}"] = _draw(processor, scene, names, blocks, relative)
    mean = torch.stack(shares).mean(0)
    return figures, {
        f"sight/attention_visual_share_block_{block}": float(share)
        for block, share in zip(blocks, mean, strict=True)
    }


def _ask_neutrally(scene: Observation) -> Observation:
    return Observation(scene.images, scene.state, NEUTRAL_INSTRUCTION, scene.stamp_s)


def _draw(
    processor: Processor,
    scene: Observation,
    names: Sequence[str],
    blocks: Sequence[int],
    relative: Tensor,
) -> Picture:
    cameras = [camera.name for camera in processor.spec.cameras]
    grid = round((relative.shape[-1] / len(cameras)) ** 0.5)
    shape = (*relative.shape[:2], len(cameras), grid, grid)  # (L, Q, cameras, g, g)
    square = relative.reshape(shape).numpy()
    rows = []
    for query, name in enumerate(names):
        for number, camera in enumerate(cameras):
            picture = processor.image_transform.resize(scene.images[camera])
            tiles = [(name if number == 0 else camera, fit(picture))]
            for level, block in enumerate(blocks):
                tiles.append((f"block {block}", overlay(picture, square[level, query, number])))
            rows.append(tiles)
    return arrange(rows)
