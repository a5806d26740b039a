"""ONNX Runtime behind the seam: right numbers, no silent fall-back, clear refusals."""

from __future__ import annotations

import threading
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from sample_policy import INSTRUCTIONS, make_graph, make_processor, run_reference

from vla_align_ros.contract.observation import Observation
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import open_backend
from vla_align_ros.inference.onnx import OnnxBackend


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return make_graph(tmp_path_factory.mktemp("graph") / "policy.onnx")


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    seen = Observation({"front": image}, rng.normal(size=7), INSTRUCTIONS[0], 0.0)
    return make_processor().prepare(seen)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_real_graph_gives_the_numbers_of_a_second_implementation(graph, inputs, threads):
    backend = OnnxBackend(graph, threads=threads)
    found = backend.infer(inputs)
    assert list(found) == ["actions"] and found["actions"].dtype == np.float32
    np.testing.assert_allclose(found["actions"], run_reference(inputs), atol=1e-5)
    assert backend.providers == ("CPUExecutionProvider",)


def test_the_graph_declares_what_the_processor_gives_and_reads(graph):
    backend = open_backend("onnx", graph, threads=1)
    processor = make_processor()
    assert set(backend.inputs) == set(processor.input_tensors())
    assert set(backend.outputs) == set(processor.output_tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "wrong inputs"),
        ({"other": np.zeros(1, np.float32)}, "wrong inputs"),
        ({"state": np.zeros((1, 7))}, r"'state' does not fit: got float64 \(1, 7\)"),
        (
            {"state": np.zeros((1, 6), np.float32)},
            r"got float32 \(1, 6\); expected float32 \(1, 7\)",
        ),
        ({"input_ids": np.zeros((1, 3), np.int64)}, "'input_ids' does not fit"),
        ({"state": [0.0] * 7}, "'state' does not fit"),
    ],
)
def test_inputs_that_do_not_fit_are_named(graph, inputs, change, message):
    given = {name: value for name, value in {**inputs, **change}.items() if value is not None}
    with pytest.raises(BackendError, match=message):
        OnnxBackend(graph).infer(given)


def test_a_provider_that_is_not_there_is_refused_instead_of_running_on_the_cpu(graph):
    for providers in (
        ("MadeUpExecutionProvider",),
        ("MadeUpExecutionProvider", "CPUExecutionProvider"),
        (),
    ):
        with pytest.raises(BackendError, match="not available"):
            OnnxBackend(graph, providers=providers)


def test_a_provider_that_onnxruntime_silently_drops_is_refused(graph, monkeypatch):
    monkeypatch.setattr(
        "onnxruntime.get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    # ONNX Runtime itself only warns and runs on the CPU when CUDA cannot load.
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    for providers, message in (((cuda, cpu), "not in use"), ((cuda,), f"fix: ask for {cpu}")):
        with (
            pytest.warns(UserWarning, match=cuda),
            pytest.raises(BackendError, match=message),
        ):
            OnnxBackend(graph, providers=providers)


def test_a_provider_that_leaves_nodes_to_the_cpu_is_refused_unless_the_cpu_is_asked_for(graph):
    azure, cpu = "AzureExecutionProvider", "CPUExecutionProvider"
    if azure not in onnxruntime.get_available_providers():
        pytest.skip("needs a build of ONNX Runtime with a provider that runs no ordinary node")
    with pytest.raises(BackendError, match=rf"can run on {azure} alone; fix: ask for {cpu}"):
        OnnxBackend(graph, providers=(azure,))
    assert OnnxBackend(graph, providers=(azure, cpu)).providers == (azure, cpu)


def test_options_for_a_provider_that_is_not_asked_for_are_refused(graph):
    with pytest.raises(BackendError, match=r"not asked for: got \['CUDAExecutionProvider'\]"):
        OnnxBackend(graph, provider_options={"CUDAExecutionProvider": {"use_tf32": "1"}})


def test_an_option_that_a_provider_does_not_keep_is_refused(graph):
    with pytest.raises(BackendError, match=r"CPUExecutionProvider does not keep its options"):
        OnnxBackend(graph, provider_options={"CPUExecutionProvider": {"speed": "9"}})


@pytest.mark.parametrize(
    ("provider", "option"),
    [("CUDAExecutionProvider", "use_tf32"), ("TensorrtExecutionProvider", "trt_fp16_enable")],
)
def test_providers_of_a_gpu_are_told_to_round_nothing(graph, monkeypatch, provider, option):
    seen = {}

    class Session:
        def __init__(self, path, options, providers):
            seen.update(dict(providers))
            raise RuntimeError("no GPU in this test")

    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [provider])
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    with pytest.raises(BackendError, match="no GPU in this test"):
        OnnxBackend(graph, providers=(provider,))
    assert seen[provider][option] == "0"
    given = {provider: {option: "1"}}
    with pytest.raises(BackendError, match="no GPU in this test"):
        OnnxBackend(graph, providers=(provider,), provider_options=given)
    assert seen[provider][option] == "1"


def test_tensorrts_provider_is_refused_where_nothing_keeps_it_from_tf32(graph, monkeypatch):
    provider = "TensorrtExecutionProvider"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [provider])
    with pytest.raises(BackendError, match=r"TF32.*expected NVIDIA_TF32_OVERRIDE=0"):
        OnnxBackend(graph, providers=(provider,))


def test_weights_beside_a_graph_are_read(graph, inputs, tmp_path):
    onnx.save(
        onnx.load(graph),
        tmp_path / "policy.onnx",
        save_as_external_data=True,
        location="policy.onnx.data",
        size_threshold=64,
    )
    found = OnnxBackend(tmp_path / "policy.onnx").infer(inputs)["actions"]
    np.testing.assert_array_equal(found, OnnxBackend(graph).infer(inputs)["actions"])
    (tmp_path / "policy.onnx.data").unlink()
    with pytest.raises(BackendError, match="graph cannot be loaded"):
        OnnxBackend(tmp_path / "policy.onnx")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"no graph at all" * 9])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "policy.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match="graph cannot be loaded"):
        OnnxBackend(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BackendError, match="graph cannot be loaded"):
        OnnxBackend(tmp_path / "policy.onnx")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_thread_count_that_makes_no_sense_is_refused(graph, threads):
    with pytest.raises(BackendError, match="thread count"):
        OnnxBackend(graph, threads=threads)


def test_a_closed_backend_refuses_work(graph, inputs):
    backend = OnnxBackend(graph)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer(inputs)


def test_other_threads_go_on_while_a_graph_runs(tmp_path):
    """One long run, so that nothing but the engine can let the other thread go on."""
    side, rows, ticks, done = 1024, np.ones((1024, 1024), np.float32), [], threading.Event()
    link = [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(40)]
    ends = [helper.make_tensor_value_info(f"m{i}", 1, [side, side]) for i in (0, len(link))]
    chain = helper.make_graph(link, "chain", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(chain, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "long.onnx",
    )
    backend = OnnxBackend(tmp_path / "long.onnx")

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start_s = time.perf_counter()
    backend.infer({"m0": rows / side})
    end_s = time.perf_counter()
    done.set()
    thread.join()
    assert end_s - start_s > 0.05, "too short to tell"
    assert sum(start_s < stamp_s < end_s for stamp_s in ticks) > 10
