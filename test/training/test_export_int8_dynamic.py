"""Integer products are the same on every CPU: their sums fit where some CPUs keep them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("onnx_ir", reason="needs the extra [export]")

from onnx import TensorProto, helper, numpy_helper

from training.export.graph_file import load_graph
from training.export.quantize import quantize, round_weight

WEIGHTS = arrays(np.float32, (64, 5), elements=st.floats(-1e3, 1e3, width=32))


def largest_pair(codes):
    """The largest sum of two products with a full activation, as x86 without VNNI adds them."""
    wide = 255 * np.abs(codes.astype(np.int64))
    return (wide[::2] + wide[1::2]).max()


@given(WEIGHTS)
@settings(max_examples=60, deadline=None)
def test_two_products_of_integers_fit_into_16_bits_and_no_weight_is_off_by_more_than_half_a_step(
    values,
):
    codes, scales = round_weight(values, "int8_dynamic", 1, 0, np.float32)
    assert codes.dtype == np.int8 and largest_pair(codes) <= np.iinfo(np.int16).max
    assert (np.abs(codes * scales - values) <= 0.501 * scales + 1e-6 * np.abs(values)).all()


def test_the_graph_holds_such_weights(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [info("x", TensorProto.FLOAT, [1, 64])],
        [info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "product.onnx").write_bytes(model.SerializeToString())
    small = load_graph(tmp_path / "product.onnx")
    quantize(small, "int8_dynamic")
    codes = small.graph.initializers["w_codes"].const_value.numpy()
    assert codes.max() == 64 and largest_pair(codes) <= np.iinfo(np.int16).max
