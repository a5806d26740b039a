"""Products in fewer bits: what is stored, what is computed, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("onnx_ir", reason="needs the extra [export]")

import ml_dtypes
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from training.export.calibrate import choose_range, measure_ranges
from training.export.graph_file import load_graph, save_graph
from training.export.precision import Plan, apply_plan, find_plan, restore_weights, write_plan
from training.export.products import DELICATE, find_products
from training.export.quantize import quantize, round_weight
from vla_align_ros.errors import ExportError
from vla_align_ros.inference.base import open_backend

DEPTH, WIDTH = 64, 24
RNG = np.random.default_rng(4)
WEIGHTS = {
    "model.llm.layers.0.up.weight.T": RNG.normal(size=(DEPTH, 96)).astype(np.float32),
    "model.llm.layers.0.gate.weight.T": RNG.normal(size=(DEPTH, 96)).astype(np.float32),
    "model.llm.layers.1.down.weight": RNG.normal(size=(WIDTH, 96)).astype(np.float32),
    "model.action_head.fc.weight.T": RNG.normal(size=(WIDTH, 7)).astype(np.float32),
}
BIAS = RNG.normal(size=WIDTH).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """x -> (x U) * (x G) -> Gemm with a transposed weight and a bias -> head."""
    names = list(WEIGHTS)
    nodes = [
        helper.make_node("MatMul", ["x", names[0]], ["u"]),
        helper.make_node("MatMul", ["x", names[1]], ["g"]),
        helper.make_node("Mul", ["u", "g"], ["m"]),
        helper.make_node("Gemm", ["m", names[2], "bias"], ["d"], transB=1),
        helper.make_node("MatMul", ["d", names[3]], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "products",
        [info("x", TensorProto.FLOAT, [3, DEPTH])],
        [info("y", TensorProto.FLOAT, [3, 7])],
        [numpy_helper.from_array(v, k) for k, v in {**WEIGHTS, "bias": BIAS}.items()],
        value_info=[
            info("u", TensorProto.FLOAT, [3, 96]),
            info("g", TensorProto.FLOAT, [3, 96]),
            info("m", TensorProto.FLOAT, [3, 96]),
            info("d", TensorProto.FLOAT, [3, WIDTH]),
        ],
    )
    path = tmp_path_factory.mktemp("graph") / "source.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def compute(x, weights=WEIGHTS, through=lambda values: values):
    """The graph in numpy, float64; `through` is done to every product's activation but the head's.

    weights: of which some may be rounded.
    """
    up, gate, down, head = (weights[name].astype(np.float64) for name in WEIGHTS)
    x = through(x.astype(np.float64))
    mixed = through((x @ up) * (x @ gate))
    return (mixed @ down.T + BIAS) @ head


def run(path, x):
    backend = open_backend("onnx", path, optimization="basic")
    try:
        return backend.infer({"x": x})["y"]
    finally:
        backend.close()


def write(source, folder, method, **options):
    model = load_graph(source)
    done = quantize(model, method, **options)
    save_graph(model, folder / "small.onnx")
    onnx.checker.check_model(str(folder / "small.onnx"), full_check=True)
    return folder / "small.onnx", done


def restore(method, block=32):
    """The weights as codes and scales give them back, in numpy."""
    result = dict(WEIGHTS)
    for name, values in WEIGHTS.items():
        if name.startswith(DELICATE):
            continue
        axis = 1 if name.endswith(".T") else 0
        codes, scales = round_weight(values, method, axis, block, np.float32)
        codes = codes.astype(np.float64)
        if method == "int4":
            wide = np.repeat(scales, block, axis=1 - axis)
        else:
            wide = np.expand_dims(scales, 1 - axis)
        result[name] = codes * wide
    return result


@pytest.mark.parametrize("method", ["int8_weights", "int4"])
def test_weights_alone_in_fewer_bits_compute_what_the_codes_stand_for(source, tmp_path, method):
    path, done = write(source, tmp_path, method, block=32)
    assert done == list(WEIGHTS)[:3]
    x = RNG.normal(size=(3, DEPTH)).astype(np.float32)
    np.testing.assert_allclose(run(path, x), compute(x, restore(method)), rtol=1e-4, atol=1e-3)


def test_int8_rounds_activations_by_the_measured_ranges(source, tmp_path):
    ranges = {name: 2.0 if ".0." in name else 60.0 for name in list(WEIGHTS)[:3]}
    path, _ = write(source, tmp_path, "int8", ranges=ranges)
    x = RNG.normal(size=(3, DEPTH)).astype(np.float32)

    def through(values):
        step = (2.0 if values.shape[1] == DEPTH else 60.0) / 127
        return np.rint(values / step).clip(-128, 127) * step  # as QuantizeLinear

    np.testing.assert_allclose(
        run(path, x), compute(x, restore("int8"), through), rtol=1e-3, atol=0.5
    )
    counts = [node.op_type for node in load_graph(path).graph]
    assert counts.count("QuantizeLinear") == 2, "up and gate share their input's rounding"


def test_fp8_holds_codes_of_eight_bits_and_loses_less_than_an_eighth(source, tmp_path):
    x = RNG.normal(size=(3, DEPTH)).astype(np.float32)
    ranges = measure_ranges(source, lambda engine: engine.infer({"x": x}), 1, "fp8")
    path, _ = write(source, tmp_path, "fp8", ranges=ranges)
    held = load_graph(path).graph.initializers
    assert held["model.llm.layers.0.up.weight.T_codes"].dtype == ir.DataType.FLOAT8E4M3FN
    exact = compute(x)
    error = np.sqrt(np.square(run(path, x) - exact).mean() / np.square(exact).mean())
    assert 1e-4 < error < 0.125


def test_integer_products_find_their_scale_at_run_time(source, tmp_path):
    path, _ = write(source, tmp_path, "int8_dynamic")
    x = (100 * RNG.normal(size=(3, DEPTH))).astype(np.float32)
    exact = compute(x)
    error = np.sqrt(np.square(run(path, x) - exact).mean() / np.square(exact).mean())
    assert 1e-4 < error < 0.05
    kinds = {node.op_type for node in load_graph(path).graph}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds and "Gemm" not in kinds


@given(
    arrays(np.float32, (64, 5), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from(["int8", "int8_weights", "fp8", "int4"]),
    st.sampled_from([0, 1]),
)
@example(np.full((64, 5), 1e-45, np.float32), "int8_weights", 1)
@example(np.full((64, 5), 1e-44, np.float32), "int4", 0)
@settings(max_examples=60, deadline=None)
def test_no_weight_is_rounded_by_more_than_a_step(values, method, axis):
    """Axis 1 counts outputs of (terms, outputs); 0 of the transposed. int4 may clip a quarter."""
    stored = values if axis == 1 else values.T
    codes, scales = round_weight(stored, method, axis, 32, np.float32)
    assert codes.shape == stored.shape and np.isfinite(scales).all() and (scales > 0).all()
    terms = 1 - axis
    if method == "int4":
        wide = np.repeat(scales, 32, axis=terms)
        parts = np.abs(np.moveaxis(stored, terms, 0)).reshape(2, 32, 5).max(axis=1)
        peaks = np.moveaxis(np.repeat(parts, 32, axis=0), 0, terms)
        bound = 0.25 * peaks + wide
    else:
        wide = np.expand_dims(scales, terms)
        step = wide * (448 / 2**3 if method == "fp8" else 1.0)
        bound = 0.5 * step + 1e-6 * np.abs(stored)
    error = np.abs(codes.astype(np.float64) * wide - stored)
    assert (error <= bound * 1.001 + 1e-6).all()


@pytest.mark.parametrize("method", ["int8_weights", "int4"])
def test_restored_weights_are_what_was_computed_with_and_spare_what_was_spared(
    source, tmp_path, method
):
    path, _ = write(source, tmp_path, method, block=32)
    model = load_graph(path)
    spared = restore_weights(model)
    assert spared == ("model.action_head.fc.weight.T",)
    assert [p.name for p in find_products(model, keep=())] == list(WEIGHTS)
    save_graph(model, tmp_path / "restored.onnx")
    x = RNG.normal(size=(3, DEPTH)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "restored.onnx", x), run(path, x), rtol=1e-5)


@pytest.mark.parametrize("method", ["int8", "int8_dynamic"])
def test_a_graph_with_rounded_activations_is_no_source_for_another(source, tmp_path, method):
    ranges = dict.fromkeys(WEIGHTS, 1.0)
    path, _ = write(source, tmp_path, method, ranges=ranges)
    with pytest.raises(ExportError, match="rounded activations"):
        restore_weights(load_graph(path))


def test_a_float_graph_is_restored_to_itself(source):
    model = load_graph(source)
    assert restore_weights(model) == () and len(model.graph) == 5


def test_kept_products_stay_in_float(source, tmp_path):
    kept = ("model.llm.layers.0.up.weight.T",)
    done = write_plan(source, tmp_path / "a.onnx", Plan("int8_weights", kept=kept))
    assert done == list(WEIGHTS)[1:3]
    held = load_graph(tmp_path / "a.onnx").graph.initializers
    assert np.array_equal(held[kept[0]].const_value.numpy(), WEIGHTS[kept[0]])


def test_int4_takes_the_largest_block_that_divides_the_depth(source):
    model = load_graph(source)
    quantize(model, "int4", block=128)
    blocks = [
        node.attributes["block_size"].as_int()
        for node in model.graph
        if node.op_type == "DequantizeLinear"
    ]
    assert blocks == [64, 64, 32], "depths 64, 64 and 96"


def test_nothing_to_quantise_is_an_error(tmp_path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "none",
        [info("x", TensorProto.FLOAT, [1, 4])],
        [info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="nothing was quantised"):
        quantize(load_graph(tmp_path / "none.onnx"), "int8_weights")


@given(st.integers(0, 2**32 - 1), st.sampled_from([7, 127]), st.floats(1.5, 30.0))
@settings(max_examples=40, deadline=None)
def test_the_chosen_range_never_loses_more_than_the_largest_value_would(seed, codes, tail):
    values = np.random.default_rng(seed).standard_t(tail, size=4000).astype(np.float32)

    def loss(peak):
        step = peak / codes
        return np.square(values - np.rint(values / step).clip(-codes, codes) * step).mean()

    chosen = choose_range(values, codes)
    assert loss(chosen) <= loss(np.abs(values).max()) * (1 + 1e-6)


def test_few_codes_and_a_few_large_values_are_clipped():
    values = RNG.normal(size=20_000).astype(np.float32)
    values[:2] = 12.0
    assert choose_range(values, 7) < 6.0 < choose_range(values, 127)


def test_ranges_are_measured_before_every_product(source):
    x = RNG.normal(size=(3, DEPTH)).astype(np.float32)
    ranges = measure_ranges(
        source, lambda engine: [engine.infer({"x": k * x}) for k in (1, 2)], 2, "fp8"
    )
    assert list(ranges) == list(WEIGHTS)[:3]
    first, second, third = ranges.values()
    assert first == second == pytest.approx(2 * np.abs(x).max())
    up, gate = (2 * x @ WEIGHTS[name] for name in list(WEIGHTS)[:2])
    assert third == pytest.approx(np.abs(up * gate).max(), rel=1e-4)


@pytest.mark.parametrize(
    ("precision", "engine", "message"),
    [
        ("fp4", False, "got 'fp4'"),
        ("fp8", False, "made with --trt"),
        ("int8_dynamic", True, "made without --trt"),
    ],
)
def test_an_unknown_precision_is_refused_with_those_there_are(precision, engine, message):
    with pytest.raises(ExportError, match=message):
        find_plan(precision, engine=engine)


def test_an_unknown_block_is_refused():
    with pytest.raises(ExportError, match="got 48; expected 128 or 64 or 32"):
        find_plan("int4", engine=True, block=48)


def test_a_plan_survives_json():
    plan = Plan("int4", "bfloat16", ("a",), 64, ("b", "c"))
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("method", ["int8", "fp8", "int4"])
def test_scales_have_the_type_that_the_rest_is_computed_in(source, tmp_path, method):
    model = load_graph(source)
    ranges = dict.fromkeys(WEIGHTS, 50.0)
    apply_plan(model, Plan(method, "bfloat16", block=32), ranges)
    save_graph(model, tmp_path / "typed.onnx")
    onnx.checker.check_model(str(tmp_path / "typed.onnx"), full_check=True)
    held = model.graph.initializers
    scales = held["model.llm.layers.0.up.weight.T_scales"]
    assert scales.dtype == ir.DataType.BFLOAT16
    codes, _ = round_weight(
        WEIGHTS["model.llm.layers.0.up.weight.T"], method, 1, 32, ml_dtypes.bfloat16
    )
    stored = held["model.llm.layers.0.up.weight.T_codes"].const_value.numpy()
    assert np.array_equal(stored.astype(np.float32), codes.astype(np.float32))
