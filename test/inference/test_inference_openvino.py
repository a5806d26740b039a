"""OpenVINO behind the seam: right numbers, the precision that was asked for, and no reports."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import helper
from sample_policy import make_graph, make_processor

pytest.importorskip("openvino", reason="needs the extra [openvino]")

import openvino

from vla_align_ros.errors import BackendError
from vla_align_ros.inference import open_backend
from vla_align_ros.inference import openvino as module
from vla_align_ros.inference.openvino import OpenVinoBackend, find_abilities


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return make_graph(tmp_path_factory.mktemp("graph") / "policy.onnx")


def save_chain(path, side, links, extent=None):
    """y = x @ x @ ... @ x, in one file; extent: of the first axis, a name for a free one."""
    nodes = [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(links)]
    shape = [side if extent is None else extent, side]
    ends = [helper.make_tensor_value_info(f"m{i}", 1, shape) for i in (0, links)]
    chain = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(chain, opset_imports=opset, ir_version=9), path)
    return path


def has_bf16() -> bool:
    return "BF16" in find_abilities(openvino.Core())


def test_opening_and_running_reports_to_nobody(graph, tmp_path):
    code = (
        "import sys, threading\n"
        "from vla_align_ros.inference import open_backend\n"
        f"open_backend('openvino', {str(graph)!r})\n"
        "print([n for n in sys.modules if n.startswith('openvino_telemetry')])\n"
        "print([t.name for t in threading.enumerate()])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    assert run.stdout.splitlines() == ["[]", "['MainThread']"]
    assert list(tmp_path.iterdir()) == []


def test_a_cache_is_kept_only_where_it_is_asked_for(graph, tmp_path):
    OpenVinoBackend(graph, cache_dir=tmp_path / "kept").close()
    assert list((tmp_path / "kept").iterdir())
    before = set(graph.parent.iterdir())
    OpenVinoBackend(graph).close()
    assert set(graph.parent.iterdir()) == before


def test_bf16_is_really_computed_in_bf16(tmp_path):
    if not has_bf16():
        pytest.skip("this CPU has no bfloat16 units")
    path = save_chain(tmp_path / "chain.onnx", 64, 2)
    rows = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) / 8
    exact = np.linalg.matrix_power(rows.astype(np.float64), 3)
    errors = {}
    for name in ("openvino", "openvino_bf16"):
        backend = open_backend(name, path)
        assert backend.name == name
        errors[name] = np.abs(backend.infer({"m0": rows})["m2"] - exact).max() / np.abs(exact).max()
    assert errors["openvino"] < 1e-5
    assert 1e-4 < errors["openvino_bf16"] < 2e-2


def test_a_cpu_without_bf16_is_refused(graph, monkeypatch):
    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr(module.openvino, "Core", Core)
    with pytest.raises(BackendError, match=r"does not compute in bf16: got FP32, INT8"):
        open_backend("openvino_bf16", graph)


def test_an_unknown_precision_is_refused(graph):
    with pytest.raises(BackendError, match="got 'int3'; expected fp32 or bf16"):
        OpenVinoBackend(graph, precision="int3")


@pytest.mark.parametrize("name", ["policy.xml", "policy.pdmodel", "policy.tflite"])
def test_formats_other_than_onnx_are_refused(graph, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(graph.read_bytes())
    with pytest.raises(BackendError, match="graph cannot be loaded"):
        OpenVinoBackend(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"no graph at all" * 9])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "policy.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match="graph cannot be loaded"):
        OpenVinoBackend(path)


def test_a_graph_of_free_extents_is_refused(tmp_path):
    path = save_chain(tmp_path / "free.onnx", 8, 1, extent="rows")
    with pytest.raises(BackendError, match="free extents"):
        OpenVinoBackend(path)


def test_outputs_survive_later_calls(graph):
    backend = OpenVinoBackend(graph)
    rng = np.random.default_rng(0)
    inputs = {
        tensor.name: np.ones(tensor.shape, tensor.dtype)
        for tensor in make_processor().input_tensors()
    }
    first = backend.infer(inputs)["actions"]
    kept = first.copy()
    backend.infer({**inputs, "state": rng.normal(size=(1, 7)).astype(np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_other_threads_go_on_while_a_graph_runs(tmp_path):
    path = save_chain(tmp_path / "long.onnx", 1024, 40)
    backend, ticks, done = OpenVinoBackend(path), [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start_s = time.perf_counter()
    backend.infer({"m0": np.ones((1024, 1024), np.float32) / 1024})
    end_s = time.perf_counter()
    done.set()
    thread.join()
    assert end_s - start_s > 0.05, "too short to tell"
    assert sum(start_s < stamp_s < end_s for stamp_s in ticks) > 10


def test_a_signal_still_comes_through_after_an_engine_was_opened_run_and_closed(tmp_path):
    """OpenVINO alone leaves a stack for signals behind that is gone when one comes."""
    path = save_chain(tmp_path / "chain.onnx", 512, 4)
    script = f"""
import gc, os, signal
import numpy as np
from vla_align_ros.inference.openvino import OpenVinoBackend
from vla_align_ros.inference.signal_stack import signal_stack_size

before = signal_stack_size()
backend = OpenVinoBackend({str(path)!r})
backend.infer({{"m0": np.ones((512, 512), np.float32)}})
assert signal_stack_size() == before, (before, signal_stack_size())
backend.close()
del backend
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"]), done.stderr
