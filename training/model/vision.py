"""Vision towers behind one face: pixels in, patch features of the selected layers out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from training.model import embedded
from training.model.config import VisionConfig
from training.model.hf_tower import TransformersTower, build_transformers_tower
from training.model.timm_vit import TimmVitTower
from training.model.tower import VisionTower, absolute_layer, patches_a_side
from vla_align_ros.errors import ConfigurationError


class TimmTower(VisionTower):
    """A timm vision transformer (OpenVLA's own towers are timm's)."""

    def __init__(self, config: VisionConfig, model: Any) -> None:
        grid = round(model.patch_embed.num_patches**0.5)
        super().__init__(config, grid, int(model.embed_dim), len(model.blocks))
        if 0 in self.select:
            raise ConfigurationError(
                got="hidden state 0 of a timm tower",
                expected="a block's output, 1 or more",
                fix="correct VisionConfig.select_layers",
            )
        self.backbone = model
        self.final_norm = config.final_norm

    def hidden_states(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return the selected blocks' outputs without prefix tokens."""
        order = sorted(set(self.select))
        backbone: Any = self.backbone
        outputs = backbone.forward_intermediates(
            pixels,
            indices=[index - 1 for index in order],
            norm=self.final_norm,
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,
        )
        return dict(zip(order, outputs, strict=True))


def build_tower(
    config: VisionConfig, attention_backend: str, *, pretrained: bool = True
) -> VisionTower:
    """Build a tower; without `pretrained` only its shape (the weights are about to be loaded)."""
    if config.source == "embedded":
        return _build_embedded(config, attention_backend, pretrained)
    if config.source == "transformers":
        return build_transformers_tower(config, attention_backend, pretrained=pretrained)
    if config.source == "timm_vit":
        return TimmVitTower(config, pretrained=pretrained)
    return TimmTower(config, build_timm(config, pretrained=pretrained))


def _build_embedded(
    config: VisionConfig, attention_backend: str, pretrained: bool
) -> TransformersTower:
    from transformers import Dinov2Model

    patches_a_side(config.image_size, embedded.PATCH_PX)
    blocks = config.layers or embedded.BLOCKS
    if not 1 <= blocks <= embedded.BLOCKS:
        raise ConfigurationError(
            got=f"{blocks} blocks of the embedded tower",
            expected=f"1 to {embedded.BLOCKS}",
            fix="correct VisionConfig.layers",
        )
    used = max(1, *(absolute_layer(index, blocks) for index in config.select_layers))
    if pretrained:
        model = embedded.load_embedded(config.image_size, used, attention_backend)
    else:
        model = Dinov2Model(embedded.embedded_config(config.image_size, used, attention_backend))
    return TransformersTower(config, model, blocks)


def import_timm(source: str) -> Any:
    """The module timm, for a tower of `source`; ConfigurationError if it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            got=f"vision source {source!r} but timm cannot be imported ({error})",
            expected="timm and a torchvision built for this torch",
            fix="install timm, or take the tower from transformers",
        ) from error
    return timm


def build_timm(config: VisionConfig, *, pretrained: bool) -> Any:
    """Build timm's own model of that name; ConfigurationError if timm has or knows none."""
    try:
        model = import_timm(config.source).create_model(
            config.source.removeprefix("timm:"),
            pretrained=pretrained,
            num_classes=0,
            img_size=config.image_size,
        )
    except (RuntimeError, TypeError, OSError) as error:
        raise ConfigurationError(
            "timm cannot build the tower",
            got=f"{config.source}: {str(error).splitlines()[0]}",
            expected=f"a vision transformer that takes {config.image_size} px",
            fix="`timm.list_models('vit*', pretrained=True)` names them",
        ) from error
    if config.layers is not None:
        model.blocks = model.blocks[: config.layers]
    return model
