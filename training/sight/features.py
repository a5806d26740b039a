"""Reads the student's visual tokens at chosen places: after the encoder and at LLM layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.model import VlaOutput
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import TrainingError

ENCODER = "encoder"
MAX_ROWS = 1024  # tokens that are compared; more cost memory and tell nothing new


def name_places(layers: Sequence[int]) -> tuple[str, ...]:
    """Places: "encoder" (the towers' output, before the projector), then "layer_<k>" of the LLM."""
    return (ENCODER, *(f"layer_{layer}" for layer in layers))


def pick_features(output: VlaOutput, places: Sequence[str]) -> dict[str, Tensor]:
    """{place: (B, N, width)} of the visual tokens."""
    if output.hidden_states is None:
        raise TrainingError(
            "The model gave no hidden states",
            got="an output without hidden_states",
            expected="output_hidden_states=True",
            fix="ask the model for its hidden states while watching",
        )
    hidden = output.hidden_states
    return {
        place: output.vision_features
        if place == ENCODER
        else hidden[int(place.removeprefix("layer_"))][:, output.visual]
        for place in places
    }


def stack_inputs(
    processor: Processor, observations: Sequence[Observation], device: torch.device
) -> dict[str, Tensor]:
    """`Processor.prepare`'s inputs of several observations as one batch on `device`."""
    prepared = [processor.prepare(observation) for observation in observations]
    joined = {key: np.concatenate([one[key] for one in prepared]) for key in prepared[0]}
    return {key: torch.from_numpy(value).to(device) for key, value in joined.items()}


def run_batches(
    model: Any,
    processor: Processor,
    observations: Sequence[Observation],
    size: int,
    device: torch.device,
) -> Iterator[tuple[dict[str, Tensor], VlaOutput]]:
    """Run the network on `size` observations at a time; yields its inputs and its output."""
    for start in range(0, len(observations), size):
        inputs = stack_inputs(processor, observations[start : start + size], device)
        yield inputs, model(**inputs)


def pool_tokens(output: VlaOutput, places: Sequence[str]) -> dict[str, Tensor]:
    """{place: (B, width)} float32 on the CPU: the visual tokens of each picture, averaged."""
    found = pick_features(output, places)
    return {place: value.float().mean(1).cpu() for place, value in found.items()}


def show_pictures(
    images: NDArray[np.uint8], instruction: str, like: Observation
) -> list[Observation]:
    """Observations of pictures (n, H, W, 3): each in every camera that `like` has, its state."""
    return [
        Observation(
            images=dict.fromkeys(like.images, image),
            state=like.state,
            instruction=instruction,
            stamp_s=0.0,
        )
        for image in images
    ]


def pick_rows(tokens: Tensor) -> Tensor:
    """Up to 1024 rows (n, width) of (B, N, width), spread evenly, float32 on the CPU."""
    rows = tokens.detach().flatten(0, 1)
    chosen = np.linspace(0, len(rows) - 1, min(MAX_ROWS, len(rows))).round().astype(np.int64)
    return rows[torch.from_numpy(chosen).to(rows.device)].float().cpu()


@contextmanager
def undisturbed(
    modules: Sequence[nn.Module], device: torch.device, autocast: torch.dtype | None
) -> Iterator[None]:
    """Look without touching: eval mode, no gradient, `autocast`; each module's mode comes back."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None),
        ):
            yield
    finally:
        for part, training in modes:
            part.training = training
