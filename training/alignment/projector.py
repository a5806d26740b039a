"""The frozen random projector: it only compares, so that the student itself has to move."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FrozenMlpProjector(nn.Module):
    """LayerNorm, then Linear-SiLU-Dropout twice, then Linear; frozen at random initialisation.

    Always in eval mode (dropout never acts). It is random, so a checkpoint must keep it: a run
    resumed with another one would chase another target. Initialised from its own generator: the
    global random state is untouched.
    """

    def __init__(
        self, student_width: int, teacher_width: int, *, hidden: int = 2048, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            layers = nn.Sequential(
                nn.LayerNorm(student_width),
                nn.Linear(student_width, hidden),
                nn.SiLU(),
                nn.Dropout(0.1),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Dropout(0.1),
                nn.Linear(hidden, teacher_width),
            )
        self.layers = layers.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear):
                bound = 1.0 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenMlpProjector:
        """Stay in eval mode whatever the parent does."""
        return super().train(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, k, student width) to (B, k, teacher width); gradients pass to the tokens."""
        projected: Tensor = self.layers(tokens)
        return projected
