"""What a cache of a teacher's features is called: by all that decides them, and by nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import tiny_teachers as tiny
import torch

from training.alignment.teachers import TeacherConfig, build_teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
GRID = 5
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "dinov2": (tiny.make_dinov2, {"num_attention_heads": 4}),
    "dinov3": (tiny.make_dinov3, {"layer_norm_eps": 0.1}),
    "siglip": (lambda folder: tiny.make_siglip(folder, whole=False), {"hidden_act": "relu"}),
    "radio": (tiny.make_radio, {"num_attention_heads": 4}),
}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_fingerprint_tells_what_no_weight_tells_and_not_where_it_lies(
    family: str, tmp_path: Path
) -> None:
    write, change = ARCHITECTURES[family]
    write(tmp_path / "one")
    moved = shutil.copytree(tmp_path / "one", tmp_path / "moved")
    other = shutil.copytree(tmp_path / "one", tmp_path / "other")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | change))
    paths = (tmp_path / "one", moved, other)
    teachers = [build_teacher(TeacherConfig(f"{family}:{path}")) for path in paths]
    one, same, changed = (teacher.fingerprint for teacher in teachers)
    assert one == same != changed
    first, _, third = (t.features(t.preprocess(IMAGES, GRID)) for t in teachers)
    assert not torch.allclose(first, third, atol=1e-4)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_fingerprint_is_the_same_on_any_device_and_however_numbers_are_printed(
    family: str, device: str, tmp_path: Path
) -> None:
    ARCHITECTURES[family][0](tmp_path)
    config = TeacherConfig(f"{family}:{tmp_path}")
    before = build_teacher(config).fingerprint
    torch.set_printoptions(precision=2)
    try:
        assert build_teacher(config, device=device).fingerprint == before
    finally:
        torch.set_printoptions(profile="default")
