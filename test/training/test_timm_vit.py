"""The vision transformer in timm's key layout: sums as DINOv2's own, files read, errors named."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

import transformers
from safetensors.torch import save_file

from training.model import VisionConfig
from training.model.timm_vit import TimmVit, TimmVitConfig, TimmVitTower
from training.model.vision import build_tower
from vla_align_ros.errors import ConfigurationError

WIDTH, DEPTH, HEADS = 24, 3, 2
BACKBONE = {
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_hidden": 4 * WIDTH,
    "embed_class": True,
    "layer_scale": True,
}


def timm_config(**overrides) -> VisionConfig:
    values = {"source": "timm_vit", "image_size": 42, "backbone": BACKBONE, **overrides}
    return VisionConfig(**values)


def build_dinov2() -> torch.nn.Module:
    config = transformers.Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=42,
        patch_size=14,
        use_mask_token=False,
        layerscale_value=0.3,
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def to_timm(dinov2: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Meta's DINOv2 as transformers names it, renamed and packed as timm does."""
    theirs = dinov2.state_dict()
    state = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    for index in range(DEPTH):
        old, new = f"encoder.layer.{index}.", f"blocks.{index}."
        for kind in ("weight", "bias"):
            parts = [theirs[f"{old}attention.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{new}attn.qkv.{kind}"] = torch.cat(parts)
            state[f"{new}attn.proj.{kind}"] = theirs[f"{old}attention.o_proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{new}{name}.{kind}"] = theirs[f"{old}{name}.{kind}"]
        for number in (1, 2):
            state[f"{new}ls{number}.gamma"] = theirs[f"{old}layer_scale{number}.lambda1"]
    return state


@torch.no_grad()
def test_dinov2_gives_the_same_states_as_transformers(tmp_path):
    dinov2 = build_dinov2()
    save_file(to_timm(dinov2), tmp_path / "weights.safetensors")
    pretrained = str(tmp_path / "weights.safetensors")
    tower = build_tower(timm_config(pretrained=pretrained, select_layers=(0, 2, -1)), "sdpa")
    pixels = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    expected = dinov2(pixels, output_hidden_states=True).hidden_states
    states = tower.hidden_states(pixels)
    for index in (0, 2, 3):
        torch.testing.assert_close(states[index], expected[index][:, 1:], atol=1e-5, rtol=1e-5)
    normed = build_tower(timm_config(pretrained=pretrained, final_norm=True), "sdpa")
    expected = dinov2(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(normed(pixels), expected, atol=1e-5, rtol=1e-5)


def test_weights_of_a_larger_picture_are_fitted_to_a_smaller_one(tmp_path):
    stored = TimmVit(TimmVitConfig(**BACKBONE), 5, DEPTH, final_norm=True).state_dict()
    save_file(stored, tmp_path / "weights.safetensors")
    tower = TimmVitTower(timm_config(pretrained=str(tmp_path / "weights.safetensors"), layers=2))
    table = tower.backbone.pos_embed
    assert table.shape == (1, 1 + 9, WIDTH)
    assert torch.equal(table[:, :1], stored["pos_embed"][:, :1])
    means = (table[:, 1:].mean(), stored["pos_embed"][:, 1:].mean())
    torch.testing.assert_close(*means, atol=3e-3, rtol=0)
    assert torch.equal(tower.backbone.blocks[1].mlp.fc1.bias, stored["blocks.1.mlp.fc1.bias"])


def test_every_kept_parameter_gets_a_gradient():
    tower = build_tower(timm_config(layers=2), "sdpa")
    tower(torch.randn(1, 3, 42, 42)).square().sum().backward()
    silent = [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_pixels_follow_the_weights_dtype():
    tower = build_tower(timm_config(), "sdpa").to(torch.bfloat16)
    assert tower(torch.randn(1, 3, 42, 42)).dtype == torch.bfloat16


def test_missing_weights_are_named(tmp_path):
    stored = TimmVit(TimmVitConfig(**BACKBONE), 3, DEPTH).state_dict()
    del stored["blocks.1.attn.qkv.weight"]
    save_file(stored, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigurationError, match=r"blocks\.1\.attn\.qkv\.weight"):
        build_tower(timm_config(pretrained=str(tmp_path / "weights.safetensors")), "sdpa")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"backbone": {**BACKBONE, "activation": "relu"}}, "relu"),
        ({"backbone": {**BACKBONE, "num_heads": 5}}, "5 heads"),
        ({"backbone": {"embed_dim": 8}}, "embed_dim"),
        ({"image_size": 40}, "40 px"),
        ({"layers": 4}, "4 blocks"),
        ({"pretrained": "/nowhere.safetensors"}, "nowhere"),
    ],
)
def test_wrong_descriptions_are_refused(overrides, named):
    with pytest.raises(ConfigurationError, match=named):
        build_tower(timm_config(**overrides), "sdpa")
