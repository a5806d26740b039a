"""Code of a repository runs only where that was asked for; bad teachers get one clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import tiny_teachers as tiny
import torch
from torch import Tensor, nn

from training.alignment.teachers import TeacherConfig, build_teacher, describe_teachers
from training.alignment.teachers.config import FAMILIES
from training.alignment.teachers.registry import _BUILDERS
from vla_align_ros.errors import ConfigurationError

IMAGES = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
GRID = 3


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that remote code leaves behind when any of it runs."""
    path = tmp_path / "trace"
    monkeypatch.setenv("TRACE_OF_REMOTE_CODE", str(path))
    with tiny.remote_modules_in(tmp_path / "modules"):
        yield path


def test_remote_radio_runs_only_when_asked_for(tmp_path: Path, trace: Path) -> None:
    folder = tmp_path / "radio_repository"
    weights = tiny.make_remote(folder, tiny.RADIO_CODE, {"model_type": "tiny_radio_remote"})
    name = f"radio:{folder}"
    with pytest.raises(ConfigurationError, match=r"needs code from its repository.*remote_code"):
        build_teacher(TeacherConfig(name))
    assert not trace.exists() and not (tmp_path / "modules").exists()
    teacher = build_teacher(TeacherConfig(name, remote_code=True))
    assert trace.exists()
    pixels = teacher.preprocess(IMAGES, GRID)
    assert 0.0 <= pixels.min() < pixels.max() <= 1.0
    embed = nn.functional.conv2d(pixels, weights["embed.weight"], weights["embed.bias"], stride=16)
    expected = embed.flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher.features(pixels), expected, atol=1e-5, rtol=1e-5)
    assert teacher.width == 8


def test_adaptors_of_remote_radio_are_not_asked(tmp_path: Path, trace: Path) -> None:
    features = []
    for with_adaptors in (False, True):
        folder = tmp_path / f"repository_{with_adaptors}"
        config = {"model_type": "tiny_radio_remote", "with_adaptors": with_adaptors}
        tiny.make_remote(folder, tiny.RADIO_CODE, config)
        teacher = build_teacher(TeacherConfig(f"radio:{folder}", remote_code=True))
        features.append(teacher.features(teacher.preprocess(IMAGES, GRID)))
    assert torch.equal(*features)


def test_remote_theia_sees_normalised_pixels_of_any_size(tmp_path: Path, trace: Path) -> None:
    folder = tmp_path / "theia_repository"
    config = {"model_type": "tiny_theia_remote", "backbone": "reg-facebook/deit-tiny-patch16-224"}
    tiny.make_remote(folder, tiny.THEIA_CODE, config)
    with pytest.raises(ConfigurationError, match="reg-facebook"):
        build_teacher(TeacherConfig(f"theia:{folder}"))
    assert not trace.exists()
    teacher = build_teacher(TeacherConfig(f"theia:{folder}", remote_code=True))
    pixels = teacher.preprocess(IMAGES, GRID)
    assert pixels.shape == (2, 3, 48, 48) and pixels.min() < 0.0
    assert teacher.features(pixels).shape == (2, GRID * GRID, 16) and teacher.width == 16


def test_other_code_with_the_same_weights_has_another_fingerprint(
    tmp_path: Path, trace: Path
) -> None:
    prints = []
    for number, code in enumerate((tiny.RADIO_CODE, tiny.RADIO_CODE + "\n# changed\n")):
        folder = tmp_path / f"revision_{number}"
        tiny.make_remote(folder, code, {"model_type": "tiny_radio_remote"})
        config = TeacherConfig(f"radio:{folder}", remote_code=True)
        prints.append(build_teacher(config).fingerprint)
    assert prints[0] != prints[1]


def test_what_remote_code_cannot_do_is_refused(tmp_path: Path, trace: Path) -> None:
    folder = tmp_path / "repository"
    tiny.make_remote(folder, tiny.RADIO_CODE, {"model_type": "tiny_radio_remote"})
    with pytest.raises(ConfigurationError, match="layer 1 with remote_code true"):
        build_teacher(TeacherConfig(f"radio:{folder}", layer=1, remote_code=True))
    (folder / "remote_model.py").write_text("import a_library_that_is_not_there\n")
    with pytest.raises(ConfigurationError, match="a_library_that_is_not_there"):
        build_teacher(TeacherConfig(f"radio:{folder}", remote_code=True))
    native = tmp_path / "native"
    tiny.make_radio(native)
    with pytest.raises(ConfigurationError, match="no AutoModel in the auto_map"):
        build_teacher(TeacherConfig(f"radio:{native}", remote_code=True))


def test_published_radio_and_theia_need_no_code(tmp_path: Path, trace: Path) -> None:
    for name, write in (("radio", tiny.make_published_radio), ("theia", tiny.make_theia)):
        folder = tmp_path / name
        write(folder)
        for module in ("hf_model", "modeling_theia", "configuration_theia"):
            (folder / f"{module}.py").write_text(tiny.RADIO_CODE)
        build_teacher(TeacherConfig(f"{name}:{folder}"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "eradio", "model_kwargs": None}, "'eradio' is not a plain vision transformer"),
        ({"model_norm": True}, "its output is normalised"),
        ({"vitdet_window_size": 8}, "vitdet_window_size"),
        ({"feature_normalizer_config": {"embed_dim": 24}}, "feature_normalizer_config"),
    ],
)
def test_a_radio_that_would_give_other_features_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    tiny.make_published_radio(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=reason):
        build_teacher(TeacherConfig(f"radio:{tmp_path}"))


def test_adaptors_of_a_published_radio_are_left_out(tmp_path: Path) -> None:
    tiny.make_published_radio(tmp_path)
    teacher = build_teacher(TeacherConfig(f"radio:{tmp_path}"))
    pixels = teacher.preprocess(IMAGES, GRID)
    before = teacher.features(pixels)

    def add(state: dict[str, Tensor]) -> None:
        state["radio_model.adaptors.clip.head_mlp.fc1.weight"] = torch.ones(4, tiny.WIDTH)
        state["radio_model.inter_feature_normalizer.alphas"] = torch.ones(2)

    tiny.edit_weights(tmp_path, add)
    assert torch.equal(build_teacher(TeacherConfig(teacher.name)).features(pixels), before)


def test_a_radio_with_weights_of_another_architecture_is_refused(tmp_path: Path) -> None:
    tiny.make_published_radio(tmp_path)

    def scale(state: dict[str, Tensor]) -> None:
        state["radio_model.model.blocks.0.ls1.gamma"] = torch.ones(tiny.WIDTH)

    tiny.edit_weights(tmp_path, scale)
    with pytest.raises(ConfigurationError, match=r"blocks\.0\.ls1\.gamma"):
        build_teacher(TeacherConfig(f"radio:{tmp_path}"))


@pytest.mark.parametrize(
    ("family", "write", "weight"),
    [
        ("dinov2", tiny.make_dinov2, "encoder.layer.1.mlp.fc1.weight"),
        ("siglip", tiny.make_siglip, "vision_model.encoder.layers.1.mlp.fc1.weight"),
        ("radio", tiny.make_published_radio, "radio_model.model.blocks.1.mlp.fc1.weight"),
        ("theia", tiny.make_theia, "backbone.model.encoder.layer.1.intermediate.dense.weight"),
    ],
)
def test_a_missing_weight_is_never_made_up(
    tmp_path: Path, family: str, write: Any, weight: str
) -> None:
    write(tmp_path)
    tiny.edit_weights(tmp_path, lambda state: state.__delitem__(weight))
    with pytest.raises(ConfigurationError, match="cannot be used"):
        build_teacher(TeacherConfig(f"{family}:{tmp_path}"))


def test_a_folder_that_is_no_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="which is no folder"):
        build_teacher(TeacherConfig(f"dinov2:{tmp_path / 'nowhere'}"))
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        build_teacher(TeacherConfig(f"dinov2:{tmp_path}"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="no JSON"):
        build_teacher(TeacherConfig(f"dinov2:{tmp_path}"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_convnext"}))
    with pytest.raises(ConfigurationError, match="dinov3_convnext"):
        build_teacher(TeacherConfig(f"dinov3:{tmp_path}"))
    for family, config in (
        ("dinov2", {"model_type": "dinov2"}),
        ("radio", {"args": {"model": "vit_large_patch16_224"}}),
        ("theia", {"backbone": "facebook/deit-tiny-patch16-224"}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigurationError, match="safetensors"):
            build_teacher(TeacherConfig(f"{family}:{tmp_path}"))


def test_a_repository_without_a_network_says_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="hf download nobody/no-such-teacher"):
        build_teacher(TeacherConfig("dinov2:nobody/no-such-teacher", revision="abc"))


@pytest.mark.parametrize("layer", [0, -1])
def test_layers_count_from_one(layer: int) -> None:
    with pytest.raises(ConfigurationError, match="Wrong layer"):
        TeacherConfig("dinov2:a/b", layer)


def test_a_layer_past_the_last_block_is_refused(tmp_path: Path) -> None:
    tiny.make_dinov2(tmp_path)
    with pytest.raises(ConfigurationError, match=r"layer 4.*1 to 3"):
        build_teacher(TeacherConfig(f"dinov2:{tmp_path}", tiny.BLOCKS + 1))


@pytest.mark.parametrize("name", ["", "dino", "dinov2", "dinov2:", "embedded:x", "timm: ", ":a"])
def test_an_unknown_name_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigurationError, match="No such teacher") as caught:
        TeacherConfig(name)
    assert all(family in str(caught.value) for family in FAMILIES)


def test_settings_without_a_meaning_are_refused() -> None:
    for settings in (
        {"name": "dinov2:a/b", "remote_code": True},
        {"name": "embedded", "revision": "main"},
        {"name": "timm:vit_small_patch14_dinov2", "revision": "main"},
    ):
        with pytest.raises(ConfigurationError, match="teacher"):
            TeacherConfig(**settings)


def test_every_family_is_described_by_a_name_that_is_valid() -> None:
    rows = {row["family"]: row for row in describe_teachers()}
    assert list(rows) == list(FAMILIES)
    assert list(_BUILDERS) == list(FAMILIES)
    for entry in _BUILDERS.values():
        module, _, name = entry.partition(":")
        assert callable(getattr(import_module(f"training.alignment.teachers.{module}"), name))
    for family, row in rows.items():
        assert TeacherConfig(row["example"]).family == family
