"""What every vision tower promises, apart from the towers, so that each kind has its own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_align_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from training.model.config import VisionConfig


class VisionTower(nn.Module):
    """One tower for square images of a fixed size.

    `width` is the channel count of a feature (selected layers concatenated), `grid` the patches a
    side.
    """

    width: int
    grid: int

    def __init__(self, config: VisionConfig, grid: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.grid = grid
        self.width = hidden * len(config.select_layers)
        self.select = tuple(absolute_layer(index, depth) for index in config.select_layers)

    def hidden_states(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return {layer index: (B, N, D) patch states} of the selected layers."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) normalised pixels to (B, N, width) features, row-major over the grid."""
        states = self.hidden_states(pixels)
        return torch.cat([states[index] for index in self.select], dim=-1)


def patches_a_side(image_size: int, patch: int) -> int:
    """Return the side of the grid of patches; ConfigurationError unless they fill the image."""
    if image_size % patch != 0:
        raise ConfigurationError(
            got=f"image_size {image_size} px",
            expected=f"a multiple of the patch, {patch} px",
            fix="correct VisionConfig.image_size",
        )
    return image_size // patch


def absolute_layer(index: int, depth: int) -> int:
    """Return a hidden state's index counted from 0, the embedding output."""
    absolute = index + depth + 1 if index < 0 else index
    if not 0 <= absolute <= depth:
        raise ConfigurationError(
            got=f"hidden state {index} of a tower with {depth} blocks",
            expected=f"{-depth - 1} to {depth}",
            fix="correct VisionConfig.select_layers",
        )
    return absolute
