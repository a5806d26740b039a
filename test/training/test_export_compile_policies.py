"""The graphs of a token policy become engines in every precision: traced, reduced, built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorrt_fakes import VERSIONS, FakeDriver, FakeEngine, make_tensorrt
from tiny_export import make_run, trace_run

from training.export.compile import build_engine
from training.export.graph_file import load_graph
from training.export.precision import ENGINE_PLANS, find_plan, write_plan
from training.export.products import find_products
from vla_align_ros.inference import open_backend
from vla_align_ros.inference.pipeline import GraphPipeline
from vla_align_ros.inference.tensorrt.backend import TensorRTBackend
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.library import RTX, TENSORRT, Library, installed_libraries

needs_rtx = pytest.mark.skipif(
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


@needs_rtx
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


def test_the_loop_on_the_device_gives_the_tokens_that_onnx_runtime_gives(traced, tmp_path):
    folder, specs = traced
    sessions = {s.name: open_backend("onnx", folder / f"{s.name}.onnx") for s in specs}
    fakes = {}
    for spec in specs:
        (tmp_path / spec.name).write_bytes(spec.name.encode())
        inputs, outputs = (
            {tensor.name: (tensor.dtype, tensor.shape) for tensor in side}
            for side in (spec.inputs, spec.outputs)
        )
        fakes[spec.name.encode()] = FakeEngine(inputs, outputs, sessions[spec.name].infer)
    driver, version = FakeDriver(), VERSIONS[0]
    library = Library(TENSORRT, version.split()[1], make_tensorrt(version, driver, fakes))
    engines = SimpleNamespace(
        facts={"graphs": dict.fromkeys(sessions)}, engine_path=lambda name: tmp_path / name
    )
    device = TensorRTBackend(engines, library, Cuda(0, driver))
    pipeline = GraphPipeline(specs, sessions)
    assert device.inputs == pipeline.inputs and device.outputs == pipeline.outputs
    rng = np.random.default_rng(0)
    for words in (5, 17):
        inputs = {
            tensor.name: rng.normal(size=tensor.shape).astype(tensor.dtype)
            if tensor.dtype == "float32"
            else (np.arange(tensor.shape[1]) < words).astype(np.int64)[None]
            for tensor in device.inputs
        }
        found, expected = device.infer(inputs), pipeline.infer(inputs)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    device.close()
