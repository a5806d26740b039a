"""Every kind of teacher gives the features of its published model, on the student's grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import tiny_teachers as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training.alignment import compute_targets
from training.alignment.teachers import TeacherConfig, build_teacher
from training.alignment.teachers.pixels import NORMALISATIONS, PixelRecipe
from vla_align_ros.errors import ConfigurationError

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
GRID = 5  # neither the size of training nor that of the learned positions
HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def seen(size: int, mean: Any, std: Any, method: Image.Resampling) -> Tensor:
    """A second implementation of the preprocessing, by Pillow and floating point."""
    pictures = [Image.fromarray(image).resize((size, size), method) for image in IMAGES]
    values = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).double() / 255
    normal = (values - torch.tensor(mean).double()) / torch.tensor(std).double()
    return normal.permute(0, 3, 1, 2).float()


def dinov2_states(model: Any, pixels: Tensor, layer: int | None) -> Tensor:
    output = model(pixels, output_hidden_states=True)
    state = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return state[:, -GRID * GRID :]


def siglip_states(model: Any, pixels: Tensor, layer: int | None) -> Tensor:
    output = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    return output.last_hidden_state if layer is None else output.hidden_states[layer]


def siglip2_states(model: Any, pixels: Tensor, layer: int | None) -> Tensor:
    patches = []
    for picture in pixels:  # each patch (16, 16, 3), row by row
        rows = [
            picture[:, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].permute(1, 2, 0).flatten()
            for i in range(GRID)
            for j in range(GRID)
        ]
        patches.append(torch.stack(rows))
    output = model(
        torch.stack(patches),
        torch.ones(len(pixels), GRID * GRID, dtype=torch.long),
        torch.tensor([[GRID, GRID]] * len(pixels)),
        output_hidden_states=True,
    )
    return output.last_hidden_state if layer is None else output.hidden_states[layer]


def radio_states(model: Any, pixels: Tensor, layer: int | None) -> Tensor:
    output = model(pixels, output_hidden_states=True)
    if layer is None:
        return output.features
    return output.hidden_states[layer][:, -GRID * GRID :]


def theia_states(model: Any, pixels: Tensor, layer: int | None) -> Tensor:
    output = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    state = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return state[:, 1:]


CUBIC, LINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
UNIT = ((0.0,) * 3, (1.0,) * 3)
# family, writer, patch, normalisation, interpolation, the published model's own features
KINDS: dict[str, tuple[str, Callable[[Path], Any], int, Any, Any, Callable[..., Tensor]]] = {
    "dinov2": ("dinov2", tiny.make_dinov2, 14, IMAGENET, CUBIC, dinov2_states),
    "dinov2 with registers": (
        "dinov2",
        lambda folder: tiny.make_dinov2(folder, registers=True),
        14,
        IMAGENET,
        CUBIC,
        dinov2_states,
    ),
    "dinov3": ("dinov3", tiny.make_dinov3, 16, IMAGENET, LINEAR, dinov2_states),
    "siglip": ("siglip", tiny.make_siglip, 14, HALF, CUBIC, siglip_states),
    "siglip tower alone": (
        "siglip",
        lambda folder: tiny.make_siglip(folder, whole=False),
        14,
        HALF,
        CUBIC,
        siglip_states,
    ),
    "siglip2 of one size": ("siglip2", tiny.make_siglip, 14, HALF, LINEAR, siglip_states),
    "siglip2 of any size": ("siglip2", tiny.make_siglip2, 16, HALF, LINEAR, siglip2_states),
    "radio": ("radio", tiny.make_radio, 16, UNIT, LINEAR, radio_states),
    "radio as published": ("radio", tiny.make_published_radio, 16, UNIT, LINEAR, radio_states),
    "theia": ("theia", tiny.make_theia, 16, IMAGENET, CUBIC, theia_states),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family, write, *rest = KINDS[request.param]
    folder = tmp_path_factory.mktemp("teacher")
    return f"{family}:{folder}", write(folder), *rest


@pytest.mark.parametrize("layer", [None, 1, tiny.BLOCKS])
def test_features_are_the_published_models_own(kind: Any, layer: int | None) -> None:
    name, model, patch, (mean, std), method, states = kind
    teacher = build_teacher(TeacherConfig(name, layer))
    pixels = teacher.preprocess(IMAGES, GRID)
    expected_pixels = seen(GRID * patch, mean, std, method)
    torch.testing.assert_close(pixels, expected_pixels, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        expected = states(model, expected_pixels, layer)
    features = teacher.features(pixels)
    assert features.shape == (2, GRID * GRID, teacher.width) == tuple(expected.shape)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)
    assert not features.requires_grad
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_precision_is_the_teachers_whatever_surrounds_it(kind: Any) -> None:
    teacher = build_teacher(TeacherConfig(kind[0]))
    low = build_teacher(TeacherConfig(kind[0]), torch.bfloat16)
    pixels = teacher.preprocess(IMAGES, GRID)
    alone = teacher.features(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded = teacher.features(pixels)
    assert surrounded.dtype == torch.float32 and torch.equal(alone, surrounded)
    rounded = low.features(pixels)
    assert rounded.dtype == torch.bfloat16
    similar = torch.cosine_similarity(rounded.float(), alone, dim=-1)
    assert similar.min() > 0.98


@pytest.mark.parametrize("write", [tiny.make_radio, tiny.make_published_radio])
def test_radio_normalises_by_its_own_mean_and_deviation_in_any_precision(
    write: Callable[[Path], Any], tmp_path: Path
) -> None:
    model = write(tmp_path)
    low = build_teacher(TeacherConfig(f"radio:{tmp_path}"), torch.bfloat16)
    for name in ("norm_mean", "norm_std"):
        wanted = getattr(model.input_conditioner, name)
        assert not torch.equal(wanted.bfloat16().float(), wanted)
        assert torch.equal(getattr(low._conditioner, name), wanted)  # type: ignore[attr-defined]
    weights = {value.dtype for value in low._model.state_dict().values()}  # type: ignore[attr-defined]
    assert torch.bfloat16 in weights and torch.float32 not in weights


def test_rows_of_the_grid_follow_the_pictures_rows(kind: Any) -> None:
    teacher = build_teacher(TeacherConfig(kind[0], layer=1))
    plain = np.full((1, 64, 64, 3), 90, dtype=np.uint8)
    marked = plain.copy()
    marked[:, :16, 48:] = 250  # the last patch of the first row
    before, after = (teacher.features(teacher.preprocess(p, 4)) for p in (plain, marked))
    assert int((after - before).norm(dim=-1).argmax()) == 3


def test_a_fingerprint_tells_all_that_decides_a_feature(kind: Any) -> None:
    name = kind[0]
    same = [build_teacher(TeacherConfig(name)).fingerprint for _ in range(2)]
    others = [
        build_teacher(TeacherConfig(name), torch.bfloat16).fingerprint,
        build_teacher(TeacherConfig(name, layer=1)).fingerprint,
        build_teacher(TeacherConfig(name, layer=tiny.BLOCKS)).fingerprint,
        build_teacher(TeacherConfig(name, pixels="clip")).fingerprint,
    ]
    assert same[0] == same[1] and len({same[0], *others}) == 5
    assert all(len(value) == 16 for value in others)


def test_cameras_follow_each_other_as_the_students_tokens_do(tmp_path: Path) -> None:
    tiny.make_dinov2(tmp_path)
    teacher = build_teacher(TeacherConfig(f"dinov2:{tmp_path}"))
    two = np.stack([IMAGES, IMAGES[::-1]], axis=1)
    joined = compute_targets(teacher, two, GRID)
    first, second = (compute_targets(teacher, two[:, i], GRID) for i in (0, 1))
    torch.testing.assert_close(joined, torch.cat([first, second], dim=1), atol=1e-6, rtol=1e-5)


def test_one_bit_of_a_weight_changes_the_fingerprint(tmp_path: Path) -> None:
    tiny.make_dinov2(tmp_path)
    before = build_teacher(TeacherConfig(f"dinov2:{tmp_path}")).fingerprint

    def nudge(state: dict[str, Tensor]) -> None:
        state["layernorm.bias"][3] = torch.nextafter(state["layernorm.bias"][3], torch.tensor(9.0))

    tiny.edit_weights(tmp_path, nudge)
    assert build_teacher(TeacherConfig(f"dinov2:{tmp_path}")).fingerprint != before


# -- the published code's own answers (golden/make_teacher_golden.py) --------------------------
GOLDEN = Path(__file__).parent / "golden"


def golden_features(family: str, low: float, high: float) -> dict[int, tuple[Tensor, Tensor]]:
    """Grid -> features by our teacher, features by the published code in its old environment."""
    teacher = build_teacher(TeacherConfig(f"{family}:{GOLDEN / family}"))
    tensors = load_file(GOLDEN / family / "golden.safetensors")
    found = {}
    for grid in (2, 5, 8):
        pixels = low + tensors[f"pixels_{grid}"] / 255 * (high - low)
        found[grid] = teacher.features(pixels), tensors[f"features_{grid}"]
    return found


def test_radio_answers_as_its_published_code() -> None:
    for ours, published in golden_features("radio", 0.0, 1.0).values():
        torch.testing.assert_close(ours, published, atol=1e-5, rtol=1e-5)


def test_theia_answers_as_its_published_code() -> None:
    """But for positions between the learned ones, which transformers has moved by 0.1 since."""
    found = golden_features("theia", -2.0, 2.0)
    torch.testing.assert_close(*found.pop(8), atol=1e-5, rtol=1e-5)
    for ours, published in found.values():
        assert torch.cosine_similarity(ours, published, dim=-1).min() > 0.9998


# -- pixels -----------------------------------------------------------------------------------
@given(
    grid=st.integers(1, 6),
    patch=st.sampled_from([8, 14, 16]),
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    kind=st.sampled_from(sorted(NORMALISATIONS)),
)
@settings(deadline=None, max_examples=25)
def test_any_picture_becomes_patches_of_the_students_grid(
    grid: int, patch: int, height: int, width: int, kind: str
) -> None:
    mean, std = NORMALISATIONS[kind]
    grey = np.full((1, height, width, 3), 51, dtype=np.uint8)
    pixels = PixelRecipe(patch, mean, std, "bilinear")(grey, grid)
    assert pixels.shape == (1, 3, patch * grid, patch * grid) and pixels.dtype == torch.float32
    for channel in range(3):
        expected = (0.2 - mean[channel]) / std[channel]
        torch.testing.assert_close(
            pixels[0, channel], torch.full_like(pixels[0, channel], expected), atol=1e-5, rtol=1e-5
        )


def test_published_preprocessing_wins_over_the_familys(tmp_path: Path) -> None:
    tiny.make_dinov2(tmp_path)
    published = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
    }
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(published))
    name = f"dinov2:{tmp_path}"
    pixels = build_teacher(TeacherConfig(name)).preprocess(IMAGES, GRID)
    expected = seen(GRID * 14, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), LINEAR)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=1e-5)
    asked = build_teacher(TeacherConfig(name, pixels="half")).preprocess(IMAGES, GRID)
    torch.testing.assert_close(asked, seen(GRID * 14, *HALF, CUBIC), atol=1e-5, rtol=1e-5)
    path.write_text(json.dumps({**published, "do_normalize": False}))
    raw = build_teacher(TeacherConfig(name)).preprocess(IMAGES, GRID)
    torch.testing.assert_close(raw, seen(GRID * 14, *UNIT, LINEAR), atol=1e-5, rtol=1e-5)
    for wrong in ({"rescale_factor": 1 / 127.5}, {"resample": 0}):
        path.write_text(json.dumps({**published, **wrong}))
        with pytest.raises(ConfigurationError, match="in an unknown way"):
            build_teacher(TeacherConfig(name))
    path.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": published}))
    nested = build_teacher(TeacherConfig(name)).preprocess(IMAGES, GRID)
    torch.testing.assert_close(nested, expected, atol=1e-5, rtol=1e-5)
