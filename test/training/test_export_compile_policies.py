"""The graphs of a token policy become engines in every precision: traced, reduced, built."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_export import make_run, trace_run

from training.export.compile import build_engine
from training.export.precision import ENGINE_PLANS, find_plan, write_plan
from training.export.products import find_products
from training.export.trace import load_graph
from vla_align_ros.inference.tensorrt.library import RTX, installed_libraries

pytestmark = pytest.mark.skipif(
    RTX not in installed_libraries(), reason="TensorRT-RTX is not installed: extra trt-rtx"
)
PRECISIONS = [name for name in ENGINE_PLANS if name != "auto"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Vision, prefill and decode of a tiny policy, and what the contract says of them."""
    folder: Path = tmp_path_factory.mktemp("tokens")
    (folder / "graphs").mkdir()
    specs = trace_run(make_run(folder / "run", tokens=True), folder / "graphs")
    return folder / "graphs", specs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_has_the_tensors_of_its_graph(traced, tmp_path, precision):
    folder, specs = traced
    for spec in specs:
        source, reduced = folder / f"{spec.name}.onnx", tmp_path / f"{spec.name}.onnx"
        ranges = {product.name: 4.0 for product in find_products(load_graph(source))}
        write_plan(source, reduced, find_plan(precision, engine=True, block=32), ranges)
        built = build_engine(reduced, tmp_path / spec.name, "sm89", progress=lambda _: None)
        assert list(built.inputs) == [tensor.to_dict() for tensor in spec.inputs]
        assert list(built.outputs) == [tensor.to_dict() for tensor in spec.outputs]
