"""Any Hugging Face vision model as a tower, without the parts that a policy never uses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from torch import Tensor, nn

from training.fingerprint import ORIGIN_KEYS
from training.model import embedded
from training.model.config import VisionConfig
from training.model.quiet import quiet_loading
from training.model.tower import VisionTower, absolute_layer, patches_a_side
from vla_align_ros.errors import ConfigurationError

_NORMS = ("layernorm", "post_layernorm", "norm")
_POOLERS = ("pooler", "head")


class TransformersTower(VisionTower):
    """A transformers vision model up to the last selected block.

    Poolers, mask tokens, blocks behind the last selected state and, unless `final_norm`, the last
    norm are taken out: every parameter that is left gets a gradient. Patches are the last `grid` *
    `grid` tokens; class and register tokens come before them. DINOv2's blocks run one by one, which
    exports to a static graph.
    """

    def __init__(self, config: VisionConfig, model: Any, depth: int) -> None:
        hf: Any = model.config
        grid = patches_a_side(config.image_size, int(hf.patch_size))
        super().__init__(config, grid, int(hf.hidden_size), depth)
        self.depth = depth
        self.is_dinov2 = hf.model_type == "dinov2"
        self.patch = int(hf.patch_size) if hf.model_type == "siglip2_vision_model" else None
        self.norm = _remove_unused(model, keep_norm=config.final_norm)
        self.backbone = model

    def hidden_states(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return the selected states without class and register tokens."""
        states = self._run_dinov2(pixels) if self.is_dinov2 else self._run(pixels)
        norm = getattr(self.backbone, self.norm) if self.norm else nn.Identity()
        return {index: norm(states[index][:, -(self.grid**2) :]) for index in self.select}

    def _run_dinov2(self, pixels: Tensor) -> list[Tensor]:
        backbone: Any = self.backbone
        states = [backbone.embeddings(pixels)]
        for block in backbone.encoder.layer[: max(self.select)]:
            states.append(block(states[-1]))
        return states

    def _run(self, pixels: Tensor) -> tuple[Tensor, ...]:
        inputs: dict[str, Tensor] = {"pixel_values": pixels}
        if self.patch is not None:
            inputs = _cut_patches(pixels, self.patch)
        backbone: Any = self.backbone
        states: tuple[Tensor, ...] = backbone(**inputs, output_hidden_states=True).hidden_states
        return states


def build_transformers_tower(
    config: VisionConfig, attention_backend: str, *, pretrained: bool = True
) -> TransformersTower:
    """Build the tower of `backbone` or `pretrained`; without `pretrained` only its shape.

    Of an image-text checkpoint (SigLIP, CLIP) the vision half is taken.

    Raises:
        ConfigurationError: unreadable or unfitting weights, or an image size that the model was not
            made for.
    """
    from transformers import AutoModel

    hf = _read_config(config)
    depth = config.layers or int(hf.num_hidden_layers)
    if not 1 <= depth <= int(hf.num_hidden_layers):
        raise ConfigurationError(
            got=f"{depth} blocks of a {hf.model_type} with {hf.num_hidden_layers}",
            expected="at most as many as it has",
            fix="correct VisionConfig.layers",
        )
    patches_a_side(config.image_size, int(hf.patch_size))
    hf.num_hidden_layers = max(1, *(absolute_layer(i, depth) for i in config.select_layers))
    if hasattr(hf, "vision_use_head"):
        hf.vision_use_head = False
    if pretrained and config.pretrained is not None:
        model = _load(config.pretrained, hf, attention_backend)
    else:
        make: Any = AutoModel.from_config
        model = make(hf, attn_implementation=attention_backend)
    _fix_positions(model, config.image_size)
    return TransformersTower(config, model, depth)


def describe_tower(config: VisionConfig, tower: VisionTower) -> VisionConfig:
    """Return `config` with the backbone spelt out, so that a saved model needs no hub."""
    if not isinstance(tower, TransformersTower) or config.source != "transformers":
        return config
    if config.backbone is not None:
        return config
    hf: Any = tower.backbone.config
    values: dict[str, Any] = json.loads(hf.to_json_string(use_diff=True))
    for key in ORIGIN_KEYS:
        values.pop(key, None)
    values |= {"model_type": hf.model_type, "num_hidden_layers": tower.depth}
    return dataclasses.replace(config, backbone=values)


def _read_config(config: VisionConfig) -> Any:
    from transformers import AutoConfig

    try:
        if config.backbone is not None:
            backbone = {"image_size": config.image_size, **config.backbone}
            return AutoConfig.for_model(backbone.pop("model_type"), **backbone)
        values = AutoConfig.from_pretrained(str(config.pretrained))
        return getattr(values, "vision_config", values)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(config.pretrained or str(config.backbone), error) from error


def _load(source: str, hf: Any, attention_backend: str) -> Any:
    from transformers import AutoModel

    try:
        with quiet_loading():
            model, info = AutoModel.from_pretrained(
                source,
                config=hf,
                dtype=torch.float32,
                attn_implementation=attention_backend,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ConfigurationError(
            "The weights do not fill the vision tower",
            got=f"{source} without {absent[:3]} ({len(absent)} in all)",
            expected=f"every tensor of a {hf.model_type}",
            fix="correct VisionConfig.pretrained",
        )
    return model


def _unreadable(source: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        "The vision tower cannot be read",
        got=f"{source}: {error}",
        expected="a folder, hub name or configuration of a Hugging Face vision model",
        fix="correct VisionConfig.pretrained or VisionConfig.backbone",
    )


def _fix_positions(model: Any, image_size: int) -> None:
    """Resize a table of positions once, as the model would at every step; check the others."""
    hf, kind = model.config, model.config.model_type
    grid = patches_a_side(image_size, int(hf.patch_size))
    if kind == "dinov2":
        table = embedded.resize_position_table(model.embeddings.position_embeddings.data, grid)
        model.embeddings.position_embeddings = nn.Parameter(table)
    elif kind == "dinov2_with_registers":
        before = model.embeddings.position_embeddings.data
        like = before.new_zeros(1, grid**2 + 1, before.shape[-1])
        table = model.embeddings.interpolate_pos_encoding(like, image_size, image_size)
        model.embeddings.position_embeddings = nn.Parameter(table.detach().clone())
    elif kind == "siglip2_vision_model":
        _resize_siglip2(model, grid)
        return
    elif kind != "dinov3_vit" and hf.image_size != image_size:
        raise ConfigurationError(
            got=f"{image_size} px for a {kind} of {hf.image_size} px",
            expected="the size that the tower was made for",
            fix="correct VisionConfig.image_size",
        )
    hf.image_size = image_size


def _resize_siglip2(model: Any, grid: int) -> None:
    layer = model.embeddings
    side, width = layer.position_embedding_size, layer.embed_dim
    table = layer.resize_positional_embeddings(
        layer.position_embedding.weight.data.reshape(side, side, width),
        torch.tensor([[grid, grid]]),
        max_length=grid**2,
    )
    layer.position_embedding = nn.Embedding(grid**2, width, _weight=table[0].clone())
    layer.num_patches, layer.position_embedding_size = grid**2, grid
    model.config.num_patches = grid**2


def _cut_patches(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """SigLIP 2's input of any aspect: rows of patches, channels last within a patch."""
    batch, side = pixels.shape[0], pixels.shape[-1] // patch
    rows = pixels.reshape(batch, -1, side, patch, side, patch)
    rows = rows.permute(0, 2, 4, 3, 5, 1).reshape(batch, side**2, -1)
    shape = torch.tensor([[side, side]], device=pixels.device).expand(batch, -1)
    valid = torch.ones(batch, side**2, dtype=torch.int32, device=pixels.device)
    return {"pixel_values": rows, "pixel_attention_mask": valid, "spatial_shapes": shape}


def _remove_unused(model: Any, *, keep_norm: bool) -> str | None:
    """Take out what no selected state depends on; return the name of the kept norm."""
    for name in _POOLERS:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    if getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        model.embeddings.mask_token = None
    norms = [name for name in _NORMS if isinstance(getattr(model, name, None), nn.Module)]
    if keep_norm and not norms:
        raise ConfigurationError(
            got=f"final_norm for a {model.config.model_type}, which has none that is known here",
            expected="a DINOv2, DINOv3 or SigLIP tower",
            fix="unset VisionConfig.final_norm",
        )
    if keep_norm:
        return norms[0]
    for name in norms:
        setattr(model, name, nn.Identity())
    return None
