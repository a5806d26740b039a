"""Graphs in 16 bits: typed for a compiler, or simulated where nothing computes in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnx_ir", reason="needs the extra [export]")

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from training.export.casts import lower_precision
from training.export.graph_file import load_graph, save_graph
from vla_align_ros.inference.base import open_backend

RNG = np.random.default_rng(2)
WIDTH = 32
WEIGHT = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32)
HEAD = RNG.normal(size=(WIDTH, 7)).astype(np.float32)


def make(folder, nodes, inputs, constants, inner):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "casts",
        [info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [info("y", TensorProto.FLOAT, inner["y"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[info(n, TensorProto.FLOAT, s) for n, s in inner.items() if n != "y"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "source.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def block(tmp_path):
    """x -> MatMul -> LayerNormalization -> Softmax -> MatMul -> head."""
    shape = [4, WIDTH]
    nodes = [
        helper.make_node("MatMul", ["x", "model.a.weight.T"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "model.n.weight"], ["n"]),
        helper.make_node("Softmax", ["n"], ["s"]),
        helper.make_node("MatMul", ["s", "model.b.weight.T"], ["b"]),
        helper.make_node("MatMul", ["b", "model.action_head.fc.weight.T"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    constants = {
        "model.a.weight.T": WEIGHT,
        "model.n.weight": np.ones(WIDTH, np.float32),
        "model.b.weight.T": WEIGHT.T.copy(),
        "model.action_head.fc.weight.T": HEAD,
    }
    inner = dict.fromkeys("ansb", shape) | {"h": [4, 7], "y": [4, 7]}
    return make(tmp_path, nodes, {"x": (TensorProto.FLOAT, shape)}, constants, inner)


def lower(source, dtype, **options):
    model = load_graph(source)
    count = lower_precision(model, dtype, **options)
    path = source.with_name("low.onnx")
    save_graph(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return load_graph(path), path, count


def run(path, **inputs):
    backend = open_backend("onnx", path, optimization="basic")
    try:
        return backend.infer(inputs)["y"]
    finally:
        backend.close()


def kinds(model):
    return {(node.op_type, node.outputs[0].dtype) for node in model.graph if node.op_type != "Cast"}


@pytest.mark.parametrize(
    ("dtype", "low"), [("bfloat16", ir.DataType.BFLOAT16), ("float16", ir.DataType.FLOAT16)]
)
def test_products_are_low_and_sums_of_exponentials_and_the_head_are_not(block, dtype, low):
    model, _, count = lower(block, dtype)
    wide = ir.DataType.FLOAT
    assert kinds(model) == {
        *(("MatMul", low), ("MatMul", wide), ("LayerNormalization", wide)),
        *(("Softmax", wide), ("Relu", wide)),
    }
    assert count == 2
    assert model.graph.outputs[0].dtype == model.graph.inputs[0].dtype == wide
    assert model.graph.initializers["model.action_head.fc.weight.T"].dtype == wide


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_simulated_graph_rounds_as_torch_does(block, dtype):
    _, path, _ = lower(block, dtype, simulate=True)
    x = RNG.normal(size=(4, WIDTH)).astype(np.float32)

    def low(values):
        return values.to(getattr(torch, dtype)).float()

    a = low(low(torch.from_numpy(x)) @ low(torch.from_numpy(WEIGHT)))
    s = torch.softmax(torch.nn.functional.layer_norm(a, (WIDTH,)), dim=-1)
    b = low(low(s) @ low(torch.from_numpy(WEIGHT.T.copy())))
    expected = torch.relu(b @ torch.from_numpy(HEAD)).numpy()
    got = run(path, x=x)
    exact = run(block, x=x)
    assert np.abs(got - exact).max() > 1e-4, "it rounds"
    assert np.abs(got - expected).max() < 0.3 * np.abs(got - exact).max(), "as torch does"


def test_a_typed_float16_graph_runs_and_is_near(block):
    x = RNG.normal(size=(4, WIDTH)).astype(np.float32)
    typed, exact = run(lower(block, "float16")[1], x=x), run(block, x=x)
    assert 0 < np.abs(typed - exact).max() < 0.05


def test_what_overflows_float16_becomes_infinite_and_is_not_hidden(block):
    x = np.full((4, WIDTH), 1e5, np.float32)
    assert np.isfinite(run(block, x=x)).all()
    assert not np.isfinite(run(lower(block, "float16", simulate=True)[1], x=x)).all()
    assert np.isfinite(run(lower(block, "bfloat16", simulate=True)[1], x=x)).all()


def test_angles_of_late_positions_stay_exact(tmp_path):
    """bfloat16 has no 257: a rotary embedding in it turns by another angle."""
    nodes = [
        helper.make_node("Cast", ["position"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["p", "model.rotary.inv_freq"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cosine"]),
        helper.make_node("Mul", ["x", "cosine"], ["y"]),
    ]
    inner = {"p": [4, 1], "angle": [4, 3], "cosine": [4, 3], "y": [4, 3]}
    path = make(
        tmp_path,
        nodes,
        {"position": (TensorProto.INT64, [4, 1]), "x": (TensorProto.FLOAT, [4, 3])},
        {"model.rotary.inv_freq": np.array([[1.0, 0.5, 0.01]], np.float32)},
        inner,
    )
    position = np.array([[1], [129], [257], [311]])
    model, low, _ = lower(path, "bfloat16", simulate=True)
    got = run(low, position=position, x=np.ones((4, 3), np.float32))
    np.testing.assert_allclose(got, np.cos(position * [[1.0, 0.5, 0.01]]), atol=0.005)
    assert ("MatMul", ir.DataType.FLOAT) in kinds(lower(path, "bfloat16")[0])
    assert model.graph.outputs[0].name == "y"


def test_the_convolution_stays_wide_in_bfloat16_alone(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "model.patch.weight"], ["y"], strides=[2, 2])]
    weight = RNG.normal(size=(3, 3, 2, 2)).astype(np.float32)
    inputs = {"x": (TensorProto.FLOAT, [1, 3, 4, 4])}
    path = make(tmp_path, nodes, inputs, {"model.patch.weight": weight}, {"y": [1, 3, 2, 2]})
    assert kinds(lower(path, "bfloat16")[0]) == {("Conv", ir.DataType.FLOAT)}
    assert kinds(lower(path, "float16")[0]) == {("Conv", ir.DataType.FLOAT16)}


def test_weights_that_are_named_delicate_stay_in_float32(block):
    model, _, count = lower(block, "bfloat16", delicate=("model.b.weight.T",))
    assert count == 1, "it stays, and the head, which it alone feeds"
    assert model.graph.initializers["model.b.weight.T"].dtype == ir.DataType.FLOAT
