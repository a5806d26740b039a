"""Any vision transformer of timm as a teacher, with the preprocessing that timm says it wants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.alignment.teachers.base import ModuleTeacher
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.pixels import PixelRecipe
from training.model.pixels import timm_pixels
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import pip_command

_INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


class TimmTeacher(ModuleTeacher):
    """Patch features of a timm model with `forward_intermediates` and a patch embedding."""

    def __init__(
        self,
        config: TeacherConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        pretrained: bool = True,
    ) -> None:
        """Without `pretrained` the weights are random, for tests without a network."""
        model = _create(config, pretrained)
        depth = len(model.blocks)
        layer = depth if config.layer is None else config.layer
        if layer > depth:
            raise ConfigurationError(
                f"The teacher {config.name} has no such layer",
                got=f"layer {layer}",
                expected=f"1 to {depth}",
                fix="correct teacher.layer",
            )
        self._index, self._norm = layer - 1, config.layer is None
        interpolation = str(model.pretrained_cfg.get("interpolation", "bicubic"))
        recipe = PixelRecipe(
            int(model.patch_embed.patch_size[0]),
            *timm_pixels(model),
            interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        )
        super().__init__(
            config.name,
            model,
            recipe.choose(config.pixels),
            dtype=dtype,
            device=device,
            decides=f"timm {config.source}, layer {config.layer}",
        )

    def _look(self, pixels: Tensor) -> Tensor:
        (states,) = self._model.forward_intermediates(
            pixels.to(self._dtype),
            indices=[self._index],
            norm=self._norm,
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,
        )
        features: Tensor = states
        return features


def _create(config: TeacherConfig, pretrained: bool) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            f"The teacher {config.name} needs timm",
            got=f"timm cannot be imported ({error})",
            expected="timm, and a torchvision built for this torch",
            fix=pip_command("timm"),
        ) from error
    try:
        model = timm.create_model(
            config.source, pretrained=pretrained, num_classes=0, dynamic_img_size=True
        )
    except (RuntimeError, TypeError, OSError) as error:
        raise ConfigurationError(
            f"timm cannot build the teacher {config.name}",
            got=str(error).splitlines()[0],
            expected="a vision transformer that takes any picture size",
            fix="`timm.list_models('vit*', pretrained=True)` names them",
        ) from error
    if not all(hasattr(model, part) for part in ("blocks", "patch_embed", "forward_intermediates")):
        raise ConfigurationError(
            f"The teacher {config.name} has no patches",
            got=type(model).__name__,
            expected="a vision transformer",
            fix="`timm.list_models('vit*', pretrained=True)` names them",
        )
    return model
