"""Vision towers behind one face: pixels in, patch features of the selected layers out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.model import embedded
from training.model.config import VisionConfig
from vla_align_ros.errors import ConfigurationError


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
        self.select = tuple(_absolute_layer(index, depth) for index in config.select_layers)

    def hidden_states(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return {layer index: (B, N, D) patch states} of the selected layers."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) normalised pixels to (B, N, width) features, row-major over the grid."""
        states = self.hidden_states(pixels)
        return torch.cat([states[index] for index in self.select], dim=-1)


class TransformersTower(VisionTower):
    """A transformers vision model; DINOv2's blocks run one by one, as far as used."""

    def __init__(self, config: VisionConfig, model: nn.Module) -> None:
        hf: Any = model.config
        grid = _grid(config.image_size, int(hf.patch_size))
        super().__init__(config, grid, int(hf.hidden_size), int(hf.num_hidden_layers))
        self.backbone = model
        self.final_norm = config.final_norm
        self.is_dinov2 = hf.model_type == "dinov2"
        if self.is_dinov2 and not config.final_norm:
            model.layernorm = nn.Identity()
        if config.final_norm and not self.is_dinov2:
            raise ConfigurationError(
                got=f"final_norm for {hf.model_type}",
                expected="a dinov2 tower",
                fix="unset VisionConfig.final_norm",
            )

    def hidden_states(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return the selected states without class and register tokens."""
        backbone: Any = self.backbone
        if not self.is_dinov2:
            states = backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
            return {index: states[index][:, -(self.grid**2) :] for index in self.select}
        x = backbone.embeddings(pixels)
        found = {0: x} if 0 in self.select else {}
        for index, block in enumerate(backbone.encoder.layer[: max(self.select)], start=1):
            x = block(x)
            if index in self.select:
                found[index] = x
        return {index: backbone.layernorm(state)[:, 1:] for index, state in found.items()}


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
        return TransformersTower(config, _build_embedded(config, attention_backend, pretrained))
    if config.source == "transformers":
        return TransformersTower(config, _build_transformers(config, attention_backend, pretrained))
    return TimmTower(config, _build_timm(config, pretrained))


def _build_embedded(config: VisionConfig, attention_backend: str, pretrained: bool) -> nn.Module:
    from transformers import Dinov2Model

    _grid(config.image_size, embedded.PATCH_PX)
    blocks = config.layers or embedded.BLOCKS
    if not 1 <= blocks <= embedded.BLOCKS:
        raise ConfigurationError(
            got=f"{blocks} blocks of the embedded tower",
            expected=f"1 to {embedded.BLOCKS}",
            fix="correct VisionConfig.layers",
        )
    if pretrained:
        return embedded.load_embedded(config.image_size, blocks, attention_backend)
    return Dinov2Model(embedded.embedded_config(config.image_size, blocks, attention_backend))


def _build_transformers(
    config: VisionConfig, attention_backend: str, pretrained: bool
) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    values: Any
    if config.backbone is not None:
        backbone = {"image_size": config.image_size, **config.backbone}
        values = AutoConfig.for_model(backbone.pop("model_type"), **backbone)
    else:
        values = AutoConfig.from_pretrained(config.pretrained)
        values = getattr(values, "vision_config", values)
    if config.layers is not None:
        values.num_hidden_layers = config.layers
    if pretrained and config.pretrained is not None:
        model = AutoModel.from_pretrained(
            config.pretrained,
            config=values,
            dtype=torch.float32,
            attn_implementation=attention_backend,
        )
    else:
        model = AutoModel.from_config(values, attn_implementation=attention_backend)
    if values.model_type == "dinov2":
        _bake_positions(model, config.image_size)
    elif values.image_size != config.image_size:
        raise ConfigurationError(
            got=f"{config.image_size} px for a {values.model_type} of {values.image_size} px",
            expected="the size that the tower was made for",
            fix="correct VisionConfig.image_size",
        )
    return model


def _bake_positions(model: Any, image_size: int) -> None:
    """Fix a DINOv2's position table at one image size, so that the exported graph is static."""
    grid = _grid(image_size, int(model.config.patch_size))
    table = embedded.resize_position_table(model.embeddings.position_embeddings.data, grid)
    model.embeddings.position_embeddings = nn.Parameter(table)
    model.config.image_size = image_size


def _build_timm(config: VisionConfig, pretrained: bool) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            got=f"vision source {config.source!r} but timm cannot be imported ({error})",
            expected="timm and a torchvision built for this torch",
            fix="install timm, or take the tower from transformers",
        ) from error
    model = timm.create_model(
        config.source.removeprefix("timm:"),
        pretrained=pretrained,
        num_classes=0,
        img_size=config.image_size,
    )
    if config.layers is not None:
        model.blocks = model.blocks[: config.layers]
    return model


def _grid(image_size: int, patch: int) -> int:
    if image_size % patch != 0:
        raise ConfigurationError(
            got=f"image_size {image_size} px",
            expected=f"a multiple of the patch, {patch} px",
            fix="correct VisionConfig.image_size",
        )
    return image_size // patch


def _absolute_layer(index: int, depth: int) -> int:
    absolute = index + depth + 1 if index < 0 else index
    if not 0 <= absolute <= depth:
        raise ConfigurationError(
            got=f"hidden state {index} of a tower with {depth} blocks",
            expected=f"{-depth - 1} to {depth}",
            fix="correct VisionConfig.select_layers",
        )
    return absolute
