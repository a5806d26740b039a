"""Engines are built for real, for GPUs that are not here: whole, the same each time, or not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_graphs import LENGTH, PRECISIONS, WIDTH, save_graph, write_attention
from onnx import helper

from training.export import compile as compile_module
from training.export.compile import build_engine
from training.export.compile_cache import hash_graph
from training.export.compile_options import parse_options
from vla_align_ros.contract.files import hash_file
from vla_align_ros.errors import ExportError
from vla_align_ros.inference.tensorrt.library import RTX, installed_libraries

pytestmark = pytest.mark.skipif(
    RTX not in installed_libraries(), reason="TensorRT-RTX is not installed: extra trt-rtx"
)
LACKS = {"sm75": {"fp32", "bf16", "int8", "fp8", "int4"}, "sm80": {"fp8"}, "sm86": {"fp8"}}
"""What TensorRT-RTX 1.7 refuses: float32 products on Turing, and types that a GPU does not have."""


def quiet(_: object) -> None:
    """Say nothing of a build."""


def build(onnx: Path, out: Path, target: str = "sm89", **options):
    return build_engine(onnx, out, target, progress=quiet, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_builds_and_is_the_same_byte_for_byte_on_repeat(tmp_path, precision):
    graph = write_attention(tmp_path / "graph.onnx", precision)
    engines = {}
    for target in ("sm86", "sm89", "sm120"):
        if precision in LACKS.get(target, ()):
            with pytest.raises(
                ExportError, match=f"cannot build graph.onnx for {target}: got .*fp8"
            ):
                build(graph, tmp_path / target, target)
            assert not (tmp_path / target).exists()
            continue
        first = build(graph, tmp_path / target, target)
        again = build(graph, tmp_path / "again", target)
        assert first.path.read_bytes() == again.path.read_bytes()
        assert first.key == again.key and first.library == RTX
        engines[target] = first.path.read_bytes()
    assert len(set(engines.values())) == len(engines), "each GPU has an engine of its own"
    assert first.inputs == ({"name": "x", "dtype": "float32", "shape": [1, LENGTH, WIDTH]},)
    assert first.outputs == ({"name": "y", "dtype": "float32", "shape": [1, LENGTH, WIDTH]},)


def test_another_process_builds_the_same_bytes(tmp_path):
    graph = write_attention(tmp_path / "graph.onnx", "int8")
    build(graph, tmp_path / "here")
    code = (
        "import sys; from training.export.compile import build_engine as b;"
        f"b({str(graph)!r}, {str(tmp_path / 'there')!r}, 'sm89');"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules), 'a Jetson lacks them'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.mark.parametrize(("target", "precision"), [("sm75", "fp32"), ("sm75", "bf16")])
def test_a_type_that_the_gpu_lacks_is_one_clear_error(tmp_path, target, precision):
    graph = write_attention(tmp_path / "graph.onnx", precision)
    with pytest.raises(ExportError, match=f"for {target}: got .*fix: choose another --precision"):
        build(graph, tmp_path / "out", target)
    assert build(write_attention(graph, "fp16"), tmp_path / "out", target).target == target


def test_another_graph_is_another_engine(tmp_path):
    one = build(write_attention(tmp_path / "one.onnx", seed=0), tmp_path / "one")
    two = build(write_attention(tmp_path / "two.onnx", seed=1), tmp_path / "two")
    assert one.path.read_bytes() != two.path.read_bytes()
    assert one.key != two.key and one.onnx_sha256 != two.onnx_sha256


# -- what cannot be read ------------------------------------------------------------------------
def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(tmp_path):
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], name="fine"),
        helper.make_node("Bernoulli", ["a"], ["y"], name="layer3.odd"),
    ]
    save_graph(tmp_path / "graph.onnx", nodes, [])
    with pytest.raises(ExportError, match=r"cannot compile graph.onnx.*'layer3.odd' \(Bernoulli\)"):
        build(tmp_path / "graph.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_none_is_refused(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"graph\.onnx"):
        build(tmp_path / "graph.onnx", tmp_path / "out")
    with pytest.raises(ExportError, match="cannot be read"):
        build(tmp_path / "missing.onnx", tmp_path / "out")


def test_weights_beside_the_graph_are_read_and_count(tmp_path):
    inside = write_attention(tmp_path / "inside.onnx", "bf16")
    outside = write_attention(tmp_path / "graph.onnx", "bf16", external=True)
    weights = tmp_path / "graph.onnx.data"
    assert weights.stat().st_size > 2 * 3 * WIDTH * WIDTH
    first = build(outside, tmp_path / "first")
    assert first.path.read_bytes() == build(inside, tmp_path / "inside").path.read_bytes()
    assert hash_graph(inside) == hash_file(inside)[0] != first.onnx_sha256
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    assert build(outside, tmp_path / "second").key != first.key
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"graph\.onnx"):
        build(outside, tmp_path / "third")
    weights.unlink()
    with pytest.raises(ExportError, match=r"graph\.onnx"):
        build(outside, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_weights_that_lie_beside_another_graph_count_too(tmp_path):
    first = write_attention(tmp_path / "prefill.onnx", "bf16", external=True)
    content = first.read_bytes()
    shared = tmp_path / "decode.onnx"
    shared.write_bytes(content)
    assert hash_graph(shared) == hash_graph(first)
    before = hash_graph(shared)
    (tmp_path / "other.onnx.data").write_bytes(b"not named in the graph")
    assert hash_graph(shared) == before
    weights = tmp_path / "prefill.onnx.data"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert hash_graph(shared) != before
    assert hash_graph(write_attention(tmp_path / "whole.onnx")) != before


def test_making_engines_of_a_bundle_needs_no_torch():
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnxscript', 'peft'): sys.modules[name] = None\n"
        "import training.export.engines, training.commands.export"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- caches -------------------------------------------------------------------------------------
def test_a_build_that_was_made_before_is_taken_and_a_damaged_one_made_again(tmp_path, monkeypatch):
    graph, cache = write_attention(tmp_path / "graph.onnx", "bf16"), tmp_path / "cache"
    first = build(graph, tmp_path / "first", cache=cache)
    original = first.path.read_bytes()
    calls = []
    real = compile_module._run_build
    monkeypatch.setattr(
        compile_module, "_run_build", lambda *args: calls.append(args) or real(*args)
    )
    again = build(graph, tmp_path / "again", cache=cache)
    assert not calls and again.path.read_bytes() == original
    assert (again.key, again.inputs, again.outputs) == (first.key, first.inputs, first.outputs)
    kept = cache / "engines" / first.key / "engine"
    kept.unlink()
    kept.write_bytes(original[:-1])
    assert build(graph, tmp_path / "third", cache=cache).path.read_bytes() == original
    assert len(calls) == 1
    build(graph, tmp_path / "fourth", cache=cache)
    assert len(calls) == 1, "the damaged engine was replaced"
    for changed in ({"target": "sm86"}, {"options": parse_options(["noTF32"])}):
        build(graph, tmp_path / "other", cache=cache, **changed)
    write_attention(graph, "bf16", seed=1)
    build(graph, tmp_path / "other", cache=cache)
    assert len(calls) == 4, "another target, option or graph is another build"


def test_a_cache_without_room_loses_no_engine(tmp_path, monkeypatch):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="engine is not cached"):
        built = build(graph, tmp_path / "out", cache=tmp_path / "cache")
    assert built.path.stat().st_size > 0


# -- options ------------------------------------------------------------------------------------
def test_options_reach_the_builder(tmp_path):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")
    told = parse_options(["memPoolSize=workspace:4096M", "builderOptimizationLevel=3"])
    built = build(graph, tmp_path / "out", options=told)
    assert built.options == told
    with pytest.raises(ExportError, match=r"workspace.*fix: .*memPoolSize=workspace:SIZE"):
        build(graph, tmp_path / "small", options=parse_options(["memPoolSize=workspace:1K"]))


def test_float32_is_not_rounded_to_tf32(tmp_path, monkeypatch):
    flags = []
    real = compile_module.apply_options

    def look(library, config, options):
        flags.append(config.get_flag(library.module.BuilderFlag.TF32))
        real(library, config, options)

    monkeypatch.setattr(compile_module, "apply_options", look)
    graph = write_attention(tmp_path / "graph.onnx", "fp32")
    exact = build(graph, tmp_path / "exact")
    assert flags == [False], "and an option comes after it"
    monkeypatch.setattr(compile_module, "set_defaults", lambda *_: None)
    rounded = build(graph, tmp_path / "rounded")
    assert flags[1] and rounded.path.read_bytes() != exact.path.read_bytes()


def test_an_engine_that_was_built_by_other_settings_is_not_taken(tmp_path, monkeypatch):
    graph, cache = write_attention(tmp_path / "graph.onnx", "bf16"), tmp_path / "cache"
    first = build(graph, tmp_path / "first", cache=cache)
    monkeypatch.setattr("training.export.compile_cache.SETTINGS", -1)
    assert build(graph, tmp_path / "second", cache=cache).key != first.key
    assert len([path for path in (cache / "engines").iterdir() if path.is_dir()]) == 2


# -- faults -------------------------------------------------------------------------------------
def test_a_full_disk_leaves_the_old_engine(tmp_path, monkeypatch):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")
    (tmp_path / "out").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.files.os.fsync", full)
    with pytest.raises(ExportError, match=r"engine cannot be written.*No space left.*make room"):
        build(graph, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "out"]


def test_a_limit_on_file_sizes_leaves_no_engine(tmp_path):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from training.export.compile import build_engine as b;"
        f"b({str(graph)!r}, {str(tmp_path / 'out')!r}, 'sm89')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ExportError: engine cannot be written: got [Errno 27] File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]


def start_build(graph: Path, out: Path) -> subprocess.Popen[str]:
    """Start a build that stops at a step of TensorRT's until it is killed or told to go on."""
    code = (
        "import sys, time\n"
        "from training.export.compile import build_engine\n"
        "def slowly(progress):\n"
        "    print('step', flush=True)\n"
        "    time.sleep(0.05)\n"
        f"build_engine({str(graph)!r}, {str(out)!r}, 'sm89', progress=slowly)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == "step\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_interrupted_leaves_the_old_engine_and_nothing_else(tmp_path, number):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")
    (tmp_path / "out").write_bytes(b"old")
    process = start_build(graph, tmp_path / "out")
    began = time.monotonic()
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert time.monotonic() - began < 10, "it stops at the next step, not at the end"
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "out"]


def test_a_failing_report_stops_the_build_and_comes_through(tmp_path):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")

    def fail(progress: object) -> None:
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError, match="nobody listens"):
        build_engine(graph, tmp_path / "out", "sm89", progress=fail)
    assert not (tmp_path / "out").exists()


def test_progress_rises_to_the_end_and_guesses_the_time_left(tmp_path):
    graph = write_attention(tmp_path / "graph.onnx", "bf16")
    told = []
    build_engine(graph, tmp_path / "out", "sm89", progress=told.append)
    fractions = [moment.fraction for moment in told]
    assert fractions == sorted(fractions) and 0.0 <= fractions[0] < 0.2 and fractions[-1] > 0.9
    assert told[0].left_s is None and told[-1].left_s < 1.0
    assert "Building engine" in {moment.phase for moment in told}


def test_progress_is_told_on_a_line_that_stays_readable_in_a_log(tmp_path):
    graph = write_attention(tmp_path / "policy.onnx", "bf16")
    code = (
        "import training.export.compile_progress as p; p.TELL_EVERY_S = 0.0\n"
        "from training.export.compile import build_engine as b\n"
        f"b({str(graph)!r}, {str(tmp_path / 'out')!r}, 'sm89')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) > 10 and all(line.startswith("policy for sm89:") for line in lines)
    assert any(" left (" in line for line in lines) and "\r" not in done.stderr


def test_the_facts_of_an_engine_are_json(tmp_path):
    built = build(write_attention(tmp_path / "graph.onnx", "bf16"), tmp_path / "out")
    assert json.loads(json.dumps([built.inputs, built.outputs, built.options]))
