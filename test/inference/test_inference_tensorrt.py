"""Engines run where they were built for, in fixed memory, in order, and are freed in order.

There is no GPU here: CUDA and TensorRT are fakes that compute on the CPU, one for each version.
"""

from __future__ import annotations

import importlib.util
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from sample_engines import make_engine_set, make_facts, write_facts
from sample_policy import HORIZON, LENGTH, SIZE, make_bundle
from sample_policy import run_reference as run_policy
from tensorrt_fakes import VERSIONS, FakeDriver, FakeEngine, make_tensorrt

from vla_align_ros.cli import main
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.files import seal
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.errors import BackendError, BundleError
from vla_align_ros.inference import open_backend
from vla_align_ros.inference.tensorrt import opening as opening_module
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.device import describe_device
from vla_align_ros.inference.tensorrt.opening import open_engines
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import require_proof

PIXELS, IDS, STATE = (1, 3, SIZE, SIZE), (1, LENGTH), (1, 7)
ROWS, BLOCK, PATCHES, WIDTH = LENGTH + 5 + 6, (2, 1, 4), 5, 3
RTX_VERSION = VERSIONS[-1]


def act(given):
    """A chunk policy that answers to each of its inputs."""
    seen = given["visual"].mean() if "visual" in given else given["pixel_values"].mean()
    words = (given["input_ids"] * given["attention_mask"]).sum()
    base = np.float32(seen + 0.01 * words) + given["state"]
    return {"actions": np.tanh(base)[:, None] * np.ones((1, HORIZON, 1), np.float32)}


def look(given):
    return {"visual": np.full((1, PATCHES, WIDTH), given["pixel_values"].mean(), np.float32)}


def read(given):
    """A prefill whose cache and first token depend on all that was read."""
    words = given["input_ids"] * given["attention_mask"]
    keys = np.zeros((ROWS, *BLOCK), np.float32)
    keys[: ROWS - 6] = np.resize(words, ROWS - 6)[:, None, None, None] + given["visual"].mean()
    token = np.array([[words.sum() % 50]])
    return {"token": token, "action": token * 0.1, "keys": keys, "values": keys * 2}


def decode(given):
    """A decoding step that depends on the token, the step, the mask and every row so far."""
    step = int(given["step"][0])
    held = given["keys"][: ROWS - 6 + step].sum() + given["values"][: ROWS - 6 + step].sum()
    token = (given["token"] * 3 + step + int(held) + given["attention_mask"].sum()) % 97
    new = np.full((1, *BLOCK), token[0, 0] + 0.5, np.float32)
    return {"next_token": token, "action": token * 0.1, "new_keys": new, "new_values": -new}


READ = {"input_ids": ("int64", IDS), "attention_mask": ("int64", IDS)}
ACTIONS = {"actions": ("float32", (1, HORIZON, 7))}
VISUAL = {"visual": ("float32", (1, PATCHES, WIDTH))}
CACHE = {name: ("float32", (ROWS, *BLOCK)) for name in ("keys", "values")}
FIRST = {"token": ("int64", (1, 1)), "action": ("float32", (1, 1))}
ONE = {
    "policy": (
        {"pixel_values": ("float32", PIXELS), **READ, "state": ("float32", STATE)},
        ACTIONS,
        act,
    )
}
SPLIT = {
    "vision": ({"pixel_values": ("float32", PIXELS)}, VISUAL, look),
    "policy": ({**VISUAL, **READ, "state": ("float32", STATE)}, ACTIONS, act),
}
TOKENS = {
    "vision": SPLIT["vision"],
    "prefill": ({**VISUAL, **READ}, {**FIRST, **CACHE}, read),
    "decode": (
        {
            "token": ("int64", (1, 1)),
            "step": ("int64", (1,)),
            "attention_mask": ("int64", IDS),
            **CACHE,
        },
        {
            "next_token": ("int64", (1, 1)),
            "action": ("float32", (1, 1)),
            "new_keys": ("float32", (1, *BLOCK)),
            "new_values": ("float32", (1, *BLOCK)),
        },
        decode,
    ),
}


def give_module(monkeypatch, find):
    """Let the adapter, and nothing else, import what ``find`` gives."""
    fake = SimpleNamespace(import_module=find, util=importlib.util)
    monkeypatch.setattr("vla_align_ros.inference.tensorrt.library.importlib", fake)


class Machine:
    """A bundle with engines, and a fake GPU and library that know them."""

    def __init__(
        self, folder, monkeypatch, graphs=ONE, version=RTX_VERSION, *, built=None, **facts
    ):
        self.library, number = version.split()
        self.driver = FakeDriver()
        self.kernels = folder / "kernels"
        self.engines = {name: FakeEngine(*tensors) for name, tensors in graphs.items()}
        contents = {name: f"engine of {name}".encode() for name in graphs}
        module = make_tensorrt(
            version, self.driver, {contents[name]: self.engines[name] for name in graphs}
        )
        (folder / "home").mkdir()
        self.bundle = make_bundle(folder / "home")
        facts = {"library": self.library, "library_version": number, **facts}
        self.folder = make_engine_set(self.bundle, built or "sm89", contents, **facts)
        give_module(monkeypatch, lambda name: module)
        monkeypatch.setattr(
            opening_module, "describe_device", lambda index: describe_device(index, self.driver)
        )
        monkeypatch.setattr(opening_module, "Cuda", lambda index: Cuda(index, self.driver))

    def open(self, **options):
        return open_engines(self.bundle, self.library, kernels=self.kernels, **options)


def make_inputs(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "pixel_values": rng.normal(size=PIXELS).astype(np.float32),
        "input_ids": rng.integers(0, 20, IDS),
        "attention_mask": (np.arange(LENGTH) < 9 + seed).astype(np.int64)[None],
        "state": rng.normal(size=STATE).astype(np.float32),
    }


def run_reference(graphs, inputs):
    """Run the graphs one after another in numpy, the cache grown row by row."""
    known = dict(inputs)
    for name in graphs:
        if name != "decode":
            known |= graphs[name][2](known)
    if "decode" not in graphs:
        return {"actions": known["actions"]}
    tokens, actions = [known["token"]], [known["action"]]
    for step in range(6):
        out = decode({**known, "token": tokens[-1], "step": np.array([step])})
        known["keys"][ROWS - 6 + step] = out["new_keys"][0]
        known["values"][ROWS - 6 + step] = out["new_values"][0]
        tokens.append(out["next_token"])
        actions.append(out["action"])
    return {
        "actions": np.concatenate(actions, 1).astype(np.float32)[:, None],
        "tokens": np.concatenate(tokens, 1),
    }


# -- what is computed ---------------------------------------------------------------------------
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("graphs", [ONE, SPLIT, TOKENS], ids=["one", "split", "tokens"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_layout_computes_what_its_graphs_say(
    tmp_path, monkeypatch, version, graphs, cuda_graph
):
    machine = Machine(tmp_path, monkeypatch, graphs, version)
    backend = machine.open(cuda_graph=cuda_graph)
    assert backend.name == machine.library and backend.replays == cuda_graph
    for seed in (0, 1, 0):
        inputs = make_inputs(seed)
        inputs = {tensor.name: inputs[tensor.name] for tensor in backend.inputs}
        found, expected = backend.infer(inputs), run_reference(graphs, inputs)
        assert sorted(found) == sorted(tensor.name for tensor in backend.outputs)
        for tensor in backend.outputs:
            assert found[tensor.name].dtype == tensor.dtype
            assert found[tensor.name].shape == tensor.shape
            np.testing.assert_array_equal(found[tensor.name], expected[tensor.name])
    backend.close()


def test_a_policy_opens_the_engines_of_this_gpu_by_the_name_of_the_library(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Policy.open(machine.bundle, backend="tensorrt_rtx") as policy:
        observation = next(iterate_observations(machine.bundle.golden(), policy.spec))
        assert policy.infer(observation).actions.shape == (HORIZON, 7)
        assert policy.backend.engines.target == "sm89"
    assert list((tmp_path / "cache/vla_align_ros/kernels").iterdir())


def test_verify_proves_engines_beside_them_and_the_node_then_takes_them(
    tmp_path, monkeypatch, capsys
):
    machine = Machine(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine.engines["policy"].function = lambda given: {"actions": run_policy(given)}
    with Policy.open(machine.bundle, "tensorrt_rtx") as policy:
        assert policy.precision == "bf16", "the engine's, not the bundle's"
        with pytest.raises(BundleError, match="--backend tensorrt_rtx"):
            require_proof(policy)
    command = ["verify", str(machine.bundle.path), "--backend", "tensorrt_rtx"]
    assert main(command) == 0, capsys.readouterr()
    assert machine.bundle.engine("sm89").gates["device"]["precision"] == "bf16"
    assert not machine.bundle.report()
    with Policy.open(machine.bundle, "tensorrt_rtx") as policy:
        require_proof(policy)
    machine.engines["policy"].function = lambda given: {"actions": run_policy(given) + 1}
    assert main(command) == 1
    with Policy.open(machine.bundle, "tensorrt_rtx") as policy, pytest.raises(BundleError):
        require_proof(policy)


def test_any_path_in_a_bundle_leads_to_its_engines(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    for path in (machine.bundle.path, machine.bundle.graph_path(), machine.folder):
        backend = open_backend("tensorrt_rtx", path, kernels=machine.kernels)
        assert backend.engines.path == machine.folder
        backend.close()
    with pytest.raises(BackendError, match="expected a path in a bundle"):
        open_backend("tensorrt_rtx", tmp_path / "elsewhere")
    with pytest.raises(BackendError, match=r"got \['speed'\]; expected some of \['device'"):
        open_backend("tensorrt_rtx", machine.bundle.path, speed=9)


def test_results_are_the_callers_own(tmp_path, monkeypatch):
    with_first = Machine(tmp_path, monkeypatch).open()
    first = with_first.infer(make_inputs(0))["actions"]
    kept = first.copy()
    with_first.infer(make_inputs(1))
    np.testing.assert_array_equal(first, kept)


def test_another_thread_may_infer_and_makes_the_device_current(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    backend = machine.open()
    machine.driver.journal.clear()
    found = []
    thread = threading.Thread(target=lambda: found.append(backend.infer(make_inputs())))
    thread.start()
    thread.join()
    assert len(found) == 1 and machine.driver.journal[0] == "cuCtxSetCurrent"


# -- in what order ------------------------------------------------------------------------------
def test_an_inference_is_one_launch_and_one_wait(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, TOKENS)
    backend = machine.open()
    inputs = {k: v for k, v in make_inputs().items() if k != "state"}
    machine.driver.journal.clear()
    backend.infer(inputs)
    assert machine.driver.journal == ["cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"]


def test_without_a_recording_only_inputs_and_outputs_cross_the_bus(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, TOKENS)
    backend = machine.open(cuda_graph=False)
    machine.driver.journal.clear()
    backend.infer({k: v for k, v in make_inputs().items() if k != "state"})
    journal = machine.driver.journal
    assert journal.count("cuMemcpyHtoDAsync") == 3, "pictures, words and mask"
    assert journal.count("cuMemcpyDtoHAsync") == 2, "actions and tokens"
    assert journal.count("cuMemcpyDtoDAsync") == 2 + 6 * 6
    assert journal.count("cuStreamSynchronize") == 1
    assert not [call for call in journal if "Alloc" in call or call.startswith("bound")]


def test_memory_is_taken_and_tensors_are_bound_before_the_first_run_alone(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, TOKENS)
    backend = machine.open()
    journal = machine.driver.journal
    assert journal.count("bound keys") == 2, "given by the prefill, taken by each step: one place"
    assert len(machine.driver.memory) == journal.count("cuMemAlloc"), "nothing is freed early"
    assert journal.index("cuStreamBeginCapture") > journal.index("bound new_values")
    floats = ROWS * np.prod(BLOCK) * 2
    assert 4 * floats + 4096 < backend.device_bytes < 4 * floats + 2 * 4096 + 9000, "one scratch"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_recorded_goes_first_then_contexts_then_engines_then_memory(
    tmp_path, monkeypatch, version
):
    machine = Machine(tmp_path, monkeypatch, TOKENS, version)
    backend = machine.open()
    machine.driver.journal.clear()
    backend.close()
    journal = [call for call in machine.driver.journal if not call.startswith("cuCtx")]
    kernels = ["kernels freed"] if machine.library == "tensorrt_rtx" else []
    assert journal[: 7 + len(kernels)] == [
        "cuGraphExecDestroy",
        *["context freed"] * 3,
        *kernels,
        *["engine freed"] * 3,
    ]
    assert journal[-2:] == ["cuStreamDestroy", "cuDevicePrimaryCtxRelease"]
    assert not machine.driver.memory and not machine.driver.graphs
    backend.close()
    with pytest.raises(BackendError, match="backend is closed"):
        backend.infer(make_inputs())


def test_closing_waits_for_an_inference_under_way(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    backend = machine.open()
    begun, go = threading.Event(), threading.Event()

    def synchronize(driver, stream):
        if threading.current_thread() is inference:
            begun.set()
            assert go.wait(5.0)

    monkeypatch.setattr(FakeDriver, "cuStreamSynchronize", synchronize)
    found = []
    inference = threading.Thread(target=lambda: found.append(backend.infer(make_inputs())))
    closing = threading.Thread(target=backend.close)
    inference.start()
    assert begun.wait(5.0)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive() and machine.driver.memory, "its memory was freed under it"
    go.set()
    for thread in (inference, closing):
        thread.join(5.0)
    np.testing.assert_allclose(found[0]["actions"], run_reference(ONE, make_inputs())["actions"])
    assert not machine.driver.memory


# -- what cannot be recorded --------------------------------------------------------------------
def test_an_engine_that_cannot_be_recorded_is_run_step_by_step_and_said(
    tmp_path, monkeypatch, caplog
):
    machine = Machine(tmp_path, monkeypatch, SPLIT)
    machine.engines["policy"].refuses.add("capture")
    backend = machine.open()
    assert not backend.replays
    assert "no CUDA graph" in caplog.text and "['policy']" in caplog.text
    expected = run_reference(SPLIT, make_inputs())["actions"]
    np.testing.assert_array_equal(backend.infer(make_inputs())["actions"], expected)


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphLaunch"])
def test_a_recording_that_fails_is_ended_and_freed(tmp_path, monkeypatch, caplog, call):
    machine = Machine(tmp_path, monkeypatch)
    machine.driver.failing[call] = 901
    backend = machine.open()
    assert not backend.replays and f"{call} failed" in caplog.text
    assert machine.driver.recording is None
    expected = run_reference(ONE, make_inputs())["actions"]
    np.testing.assert_array_equal(backend.infer(make_inputs())["actions"], expected)
    backend.close()
    assert not machine.driver.memory


# -- what is refused ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ("shape", r"refuses the shape \(1, 3, 14, 14\) of 'pixel_values'"),
        ("address", "refuses the address of 'pixel_values'"),
        ("infer", r"lacks the shape or address of \['unknown'\]"),
        ("output", r"gives 'actions' the shape \(1, 4, 7, 1\)"),
        ("location", "in the CPU's memory"),
        ("context", "no execution context.*got out of memory"),
        ("run", "does not run: got kernel is missing"),
    ],
)
def test_each_answer_of_tensorrt_is_checked_and_all_is_freed(tmp_path, monkeypatch, refusal, says):
    machine = Machine(tmp_path, monkeypatch)
    machine.engines["policy"].refuses.add(refusal)
    with pytest.raises(BackendError, match=f"engine of 'policy' .*{says}"):
        machine.open()
    assert not machine.driver.memory
    assert machine.driver.journal[-1] == "cuDevicePrimaryCtxRelease"


@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc", "cuStreamSynchronize"])
def test_each_call_of_cuda_is_checked_and_all_is_freed(tmp_path, monkeypatch, call):
    machine = Machine(tmp_path, monkeypatch)
    machine.driver.failing[call] = 2
    with pytest.raises(BackendError, match=f"{call} failed: got CUDA_ERROR_2: injected"):
        machine.open()
    assert not machine.driver.memory


def test_a_fault_while_it_runs_is_raised_and_the_backend_still_closes(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    backend = machine.open()
    machine.driver.failing["cuStreamSynchronize"] = 700
    with pytest.raises(BackendError, match="CUDA_ERROR_700"):
        backend.infer(make_inputs())
    backend.close()
    assert not machine.driver.memory


def test_inputs_that_do_not_fit_are_refused_before_the_device_sees_them(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    backend = machine.open()
    machine.driver.journal.clear()
    with pytest.raises(BackendError, match="'state' does not fit"):
        backend.infer({**make_inputs(), "state": np.zeros((1, 6), np.float32)})
    assert machine.driver.journal == []


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"library": "tensorrt"}, r"another library: got tensorrt .*open the backend tensorrt, or"),
        ({"library_version": "1.6.0"}, r"another version.*got 1\.6\.0; expected 1\.7"),
        ({"architecture": "sm86"}, r"another GPU: got sm86; expected sm89 \(Fake GPU\)"),
    ],
)
def test_engines_for_something_else_are_refused_with_the_command(
    tmp_path, monkeypatch, facts, says
):
    machine = Machine(tmp_path, monkeypatch, **facts)
    with pytest.raises(BackendError, match=says) as refused:
        machine.open()
    command = f"vla-align export --trt --bundle {machine.bundle.path} --target sm89"
    assert f"{command} --precision bf16" in str(refused.value)
    assert "cuMemAlloc" not in machine.driver.journal


def test_engines_of_another_gpu_alone_are_answered_with_the_command(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, built="sm120")
    with pytest.raises(BundleError, match=r"no such engine set.*--target sm89 "):
        machine.open()


def test_a_damaged_engine_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    (machine.folder / "policy.engine").write_bytes(b"Engine of policy")
    with pytest.raises(BundleError, match=r"policy\.engine was altered"):
        machine.open()
    facts = make_facts(machine.bundle.id, engines={"policy": b"Engine of policy"})
    write_facts(machine.folder, facts)
    assert Bundle.open(machine.bundle.path).engine("sm89")
    with pytest.raises(BackendError, match=r"cannot be loaded: got serialization magic is wrong"):
        machine.open()


def test_versions_that_are_not_known_and_missing_libraries_are_refused(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    old = make_tensorrt(VERSIONS[0], machine.driver, {})
    old.__version__ = "8.6.1"
    give_module(monkeypatch, lambda name: old)
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 is not supported.*10 to 11"):
        open_engines(machine.bundle, "tensorrt")

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name}", name=name)

    give_module(monkeypatch, missing)
    with pytest.raises(BackendError, match=r"no module tensorrt_rtx or .*'\.\[trt-rtx\]'"):
        open_engines(machine.bundle, "tensorrt_rtx")


# -- kernels that are compiled when an engine is loaded -----------------------------------------
def test_compiled_kernels_are_kept_and_taken_and_a_damaged_file_is_dropped(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, SPLIT)
    machine.open().close()
    (kept,) = machine.kernels.iterdir()
    original = kept.read_bytes()
    assert original.endswith(b"compiled") and machine.kernels.stat().st_mode & 0o077 == 0
    assert machine.driver.journal.count("kernels attached") == 2, "one cache for all engines"
    assert "kernels read: b'compiled'" not in machine.driver.journal
    stamp = kept.stat().st_mtime_ns
    machine.bundle.engine("sm89").add_gates({"device": {}})
    machine.open().close()
    assert "kernels read: b'compiled'" in machine.driver.journal
    assert kept.stat().st_mtime_ns == stamp, "a proof was added, but nothing new was compiled"
    kept.write_bytes(original[:-1] + b"X")
    machine.driver.journal.clear()
    machine.open().close()
    assert not [call for call in machine.driver.journal if call.startswith("kernels read")]
    assert kept.read_bytes() == original


def test_kernels_that_cannot_be_kept_cost_time_alone(tmp_path, monkeypatch, caplog):
    machine = Machine(tmp_path, monkeypatch)
    machine.kernels.write_text("a file where the folder should be")
    assert machine.open().infer(make_inputs())
    assert "compiled kernels are not kept" in caplog.text


def test_kernels_that_others_can_reach_are_neither_read_nor_written(tmp_path, monkeypatch, caplog):
    machine = Machine(tmp_path, monkeypatch)
    machine.open().close()
    (kept,) = machine.kernels.iterdir()
    kept.write_bytes(seal(b"theirs"))
    machine.kernels.chmod(0o770)
    machine.driver.journal.clear()
    machine.open().close()
    assert not [call for call in machine.driver.journal if call.startswith("kernels read")]
    assert kept.read_bytes() == seal(b"theirs")
    assert "not taken" in caplog.text and "not the user's alone" in caplog.text


def test_the_full_tensorrt_has_no_kernels_to_keep(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, version=VERSIONS[0])
    machine.open().close()
    assert not machine.kernels.exists()
