"""Visual representation alignment: student tokens kept near a frozen teacher's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.alignment.loss import cosine_alignment_loss
from training.alignment.projector import FrozenMlpProjector
from training.alignment.teacher import Teacher
from training.model.prismatic import VlaOutput
from vla_align_ros.errors import ConfigurationError

LAMBDA = 0.2
MIDDLE_LAYER_OF = 2


@dataclass(frozen=True, slots=True)
class AlignmentConfig:
    """The method's settings; the defaults are the paper's.

    weight: lambda, constant; 0 switches everything off, the teacher included. layers: LLM hidden
    states (0 is the embedding output); empty means the middle one (16 of 32 in the paper). hidden:
    the projector's width. seed: of the random projector(s), one a layer.
    """

    weight: float = LAMBDA
    layers: tuple[int, ...] = ()
    hidden: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the weight."""
        if not self.weight >= 0:
            raise ConfigurationError(
                got=f"alignment weight {self.weight}",
                expected="0 or more",
                fix="set lambda to 0.2 (the paper's) or 0 (off)",
            )


class Aligner(nn.Module):
    """L = L_action + lambda * L_align, with L_align summed over the layers.

    Its state dict holds the frozen projectors and not the teacher: save it with the checkpoint,
    drop it at export.
    """

    def __init__(
        self, config: AlignmentConfig, teacher: Teacher, student_width: int, student_layers: int
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = config.layers or (student_layers // MIDDLE_LAYER_OF,)
        if not all(0 <= layer <= student_layers for layer in self.layers):
            raise ConfigurationError(
                got=f"alignment layers {self.layers}",
                expected=f"0 to {student_layers}",
                fix="correct AlignmentConfig.layers",
            )
        self._teacher = [
            teacher
        ]  # a list, so that a teacher that is an nn.Module is not registered
        self.projectors = nn.ModuleList(
            FrozenMlpProjector(
                student_width, teacher.width, hidden=config.hidden, seed=config.seed + i
            )
            for i in range(len(self.layers))
        )

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._teacher[0]

    @torch.no_grad()
    def targets(self, images: NDArray[np.uint8], grid: int) -> Tensor:
        """Teacher features (B, grid * grid, width) of raw, augmented RGB (B, H, W, 3) uint8.

        Of several cameras, (B, cameras, H, W, 3), features follow each other as the student's
        visual tokens do.
        """
        cameras = images.shape[1] if images.ndim == 5 else 1
        flat = images.reshape(-1, *images.shape[-3:])
        features = self.teacher.features(self.teacher.preprocess(flat, grid))
        return features.unflatten(0, (-1, cameras)).flatten(1, 2)

    def losses(self, output: VlaOutput, target: Tensor) -> list[Tensor]:
        """Return L_align of each layer; minus one of these is that layer's mean cosine."""
        if output.hidden_states is None:
            raise ConfigurationError(
                got="an output without hidden states",
                expected="output_hidden_states=True",
                fix="ask the model for its hidden states while aligning",
            )
        return [
            cosine_alignment_loss(projector(output.hidden_states[layer][:, output.visual]), target)
            for layer, projector in zip(self.layers, self.projectors, strict=True)
        ]

    def total(
        self, action_loss: Tensor, output: VlaOutput, target: Callable[[], Tensor] | Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return (L_action + lambda * L_align, scalars to log: align/cosine_layer_<i>).

        target: teacher features, or a function that computes them. With lambda 0 it returns
        `action_loss` itself and calls nothing, so that such a run is the default run bit for bit.
        """
        if self.config.weight == 0:
            return action_loss, {}
        features = target() if callable(target) else target
        if features is None:
            raise ConfigurationError(
                got="no teacher features", expected="features, or lambda 0", fix="pass targets"
            )
        per_layer = self.losses(output, features)
        scalars = {
            f"align/cosine_layer_{k}": -float(v.detach())
            for k, v in zip(self.layers, per_layer, strict=True)
        }
        return action_loss + self.config.weight * _total(per_layer), scalars


def _total(losses: Sequence[Tensor]) -> Tensor:
    result = losses[0]
    for loss in losses[1:]:
        result = result + loss
    return result
