"""OpenVLA's vision towers are timm's; this ViT has timm's keys and sums without torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.model.config import VisionConfig
from training.model.tower import VisionTower, patches_a_side
from vla_align_ros.errors import ConfigurationError

_ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class TimmVitConfig:
    """The shape of one timm vision transformer (what VisionConfig.backbone holds).

    `embed_class`: whether the position table has rows for the prefix tokens, too (DINOv2 without
    registers), or is added to the patches alone. `activation`: "gelu" is exact; timm from 1.0 on
    gives SigLIP So400m "gelu_tanh", the timm that OpenVLA was trained with (0.9.10) "gelu".
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    patch_size: int = 14
    class_token: bool = True
    registers: int = 0
    embed_class: bool = False
    layer_scale: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Check what would only fail deep inside the network."""
        if self.activation not in _ACTIVATIONS:
            raise ConfigurationError(
                "activation of a timm_vit tower is unknown",
                got=repr(self.activation),
                expected=" or ".join(_ACTIVATIONS),
            )
        if self.embed_dim % self.num_heads:
            raise ConfigurationError(
                "heads do not divide the width of a timm_vit tower",
                got=f"width {self.embed_dim}, {self.num_heads} heads",
                expected="a width that is a multiple of the heads",
            )

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.registers

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | None) -> TimmVitConfig:
        """Read VisionConfig.backbone; an unknown or missing key is a ConfigurationError."""
        names = [field.name for field in fields(cls)]
        try:
            return cls(**dict(values or {}))
        except TypeError as error:
            raise ConfigurationError(
                "backbone does not describe a timm_vit tower",
                got=f"{sorted(values or {})} ({error})",
                expected=f"some of {', '.join(names)}, the first four always",
                fix="correct VisionConfig.backbone",
            ) from error


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.proj(pixels)
        return patches.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=_ACTIVATIONS[activation])
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, config: TimmVitConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = _Attention(width, config.num_heads)
        self.ls1 = _LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = _Mlp(width, config.mlp_hidden, config.activation)
        self.ls2 = _LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class TimmVit(nn.Module):
    """A vision transformer in timm's key layout: its first `blocks` blocks, no pooling head."""

    def __init__(
        self, config: TimmVitConfig, grid: int, blocks: int, *, final_norm: bool = False
    ) -> None:
        super().__init__()
        width, prefix = config.embed_dim, config.prefix_tokens
        self.config = config
        self.patch_embed = _PatchEmbed(width, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        )
        rows = grid * grid + (prefix if config.embed_class else 0)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, rows, width))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if final_norm else nn.Identity()

    def embed(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) pixels to (B, prefix + N, D): what the first block reads."""
        x = self.patch_embed(pixels.to(self.patch_embed.proj.weight.dtype))
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        expanded = [token.expand(x.shape[0], -1, -1) for token in prefix]
        if self.config.embed_class:
            return torch.cat([*expanded, x], dim=1) + self.pos_embed
        return torch.cat([*expanded, x + self.pos_embed], dim=1)


class TimmVitTower(VisionTower):
    """TimmVit as a tower: states of the selected blocks without prefix tokens.

    `VisionConfig.pretrained` may name a safetensors file in timm's layout; a position table of
    another size is then resampled as timm does.
    """

    def __init__(self, config: VisionConfig, *, pretrained: bool = True) -> None:
        shape = TimmVitConfig.from_mapping(config.backbone)
        grid = patches_a_side(config.image_size, shape.patch_size)
        blocks = shape.depth if config.layers is None else config.layers
        if not 1 <= blocks <= shape.depth:
            raise ConfigurationError(
                got=f"{blocks} blocks of a tower of {shape.depth}",
                expected=f"1 to {shape.depth}",
                fix="correct VisionConfig.layers",
            )
        super().__init__(config, grid, shape.embed_dim, blocks)
        self.backbone = TimmVit(shape, grid, blocks, final_norm=config.final_norm)
        if pretrained and config.pretrained is not None:
            load_timm_file(self.backbone, Path(config.pretrained))

    def hidden_states(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return the selected states, each (B, N, D); blocks after the last one do not run."""
        x = self.backbone.embed(pixels)
        found = {0: x} if 0 in self.select else {}
        for index, block in enumerate(self.backbone.blocks[: max(self.select)], start=1):
            x = block(x)
            if index in self.select:
                found[index] = x
        skip = self.backbone.config.prefix_tokens
        return {index: self.backbone.norm(state)[:, skip:] for index, state in found.items()}


def load_timm_file(vit: TimmVit, path: Path) -> None:
    """Fill `vit` from a safetensors file in timm's layout; tensors that it lacks are an error."""
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except Exception as error:
        raise ConfigurationError(
            "weights of a timm_vit tower cannot be read",
            got=f"{path}: {error}",
            expected="a safetensors file in timm's layout",
            fix="correct VisionConfig.pretrained",
        ) from error
    stored["pos_embed"] = resample_positions(vit, stored["pos_embed"])
    wanted = vit.state_dict()
    try:
        vit.load_state_dict({name: stored[name] for name in wanted})
    except (KeyError, RuntimeError) as error:
        raise ConfigurationError(
            "weights do not fit the timm_vit tower",
            got=f"{path}: {error}",
            expected=f"the tensors that {vit.config} describes",
            fix="correct VisionConfig.backbone",
        ) from error


def resample_positions(vit: TimmVit, table: Tensor) -> Tensor:
    """Return a position table for the patches of `vit`, bicubic and antialiased as in timm."""
    prefix = vit.config.prefix_tokens if vit.config.embed_class else 0
    side = round((vit.pos_embed.shape[1] - prefix) ** 0.5)
    native = round((table.shape[1] - prefix) ** 0.5)
    if native == side:
        return table
    patches = table[:, prefix:].float().reshape(1, native, native, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, (side, side), mode="bicubic", antialias=True)
    resampled = patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([table[:, :prefix], resampled], dim=1)
