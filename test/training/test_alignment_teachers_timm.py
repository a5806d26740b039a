"""A timm model as a teacher; without timm, one clear error."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch

from training.alignment.teachers import TeacherConfig, build_teacher
from training.alignment.teachers.timm_teacher import TimmTeacher
from vla_align_ros.errors import ConfigurationError

HERE = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HERE, reason="needs the extra [timm]")
NAME = "timm:vit_tiny_patch16_224"


@pytest.mark.skipif(HERE, reason="timm is installed")
def test_without_timm_the_error_says_how_to_get_it() -> None:
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[timm\]'"):
        build_teacher(TeacherConfig(NAME))


@needs_timm
@pytest.mark.parametrize("layer", [None, 2])
def test_features_are_the_models_own(layer: int | None) -> None:
    torch.manual_seed(0)
    teacher = TimmTeacher(TeacherConfig(NAME, layer), torch.float32, "cpu", pretrained=False)
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    pixels = teacher.preprocess(images, 5)
    assert pixels.shape == (2, 3, 80, 80)
    model = teacher._model
    with torch.no_grad():
        x = model.patch_embed(pixels)
        x = model._pos_embed(x)
        for block in model.blocks[:layer]:
            x = block(x)
        expected = (model.norm(x) if layer is None else x)[:, 1:]
    torch.testing.assert_close(teacher.features(pixels), expected, atol=1e-5, rtol=1e-5)
    assert teacher.width == 192


@needs_timm
def test_a_model_without_patches_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="vision transformer"):
        TimmTeacher(TeacherConfig("timm:resnet18"), torch.float32, "cpu", pretrained=False)
    with pytest.raises(ConfigurationError, match="cannot build"):
        TimmTeacher(TeacherConfig("timm:no_such_model"), torch.float32, "cpu", pretrained=False)
    with pytest.raises(ConfigurationError, match="layer 13"):
        TimmTeacher(TeacherConfig(NAME, 13), torch.float32, "cpu", pretrained=False)
