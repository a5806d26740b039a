"""Engines in processes of their own: opened, timed in turns, proved, and told when they are not."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
from sample_engines import ENGINES, make_engine_set
from sample_policy import make_bundle

from vla_align_ros.bench.engine_rows import AGAIN, Row, Worker, measure_rows, measure_size
from vla_align_ros.bench.engine_table import summarise_rows
from vla_align_ros.cli import run_command
from vla_align_ros.contract.bundle import write_bundle
from vla_align_ros.errors import BackendError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bench")).path


def test_rows_take_turns_and_the_first_has_a_twin(bundle):
    lines: list[str] = []
    rows = [
        Row("absent", bundle, "onnx", {"speed": 9}),
        Row("one thread", bundle, "onnx", {"threads": 1}),
        Row("two threads", bundle, "onnx", {"threads": 2}),
    ]
    measured, absent = measure_rows(rows, rounds=2, burst=3, say=lines.append)
    labels = ["one thread", f"one thread {AGAIN}", "two threads"]
    assert [row["label"] for row in measured] == labels
    assert list(absent) == ["absent"] and "refuses its options" in absent["absent"]
    for row in summarise_rows(measured):
        assert row["inferences"] == 6 and row["proved"] and row["precision"] == "fp32"
        assert 0.0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["memory_mb"] is None or row["memory_mb"] > 10.0
        assert row["size_mb"] > 0.0 and row["load_s"] > 0.0
    assert "opening two threads" in lines


def test_the_size_is_of_the_files_that_are_loaded(tmp_path):
    """Weights beside a graph count; a graph that does not act does not."""
    plain = make_bundle(tmp_path)
    model = onnx.load(plain.graph_path())
    (tmp_path / "graphs").mkdir()
    graph, sight = (tmp_path / "graphs" / f"{name}.onnx" for name in ("policy", "other"))
    onnx.save(
        model,
        graph,
        save_as_external_data=True,
        location="policy.onnx.data",
        size_threshold=64,
    )
    sight.write_bytes(plain.graph_path().read_bytes())
    bundle = write_bundle(
        tmp_path / "apart",
        processor=plain.processor,
        graphs={"policy": graph, "other": sight},
        golden=plain.golden(),
        provenance={"precision": "fp32"},
    )
    row = Row("onnx", bundle.path, "onnx")
    backend = row.open(bundle)
    loaded = [bundle.path / "model" / name for name in ("policy.onnx", "policy.onnx.data")]
    assert measure_size(row, bundle, backend) == sum(path.stat().st_size for path in loaded)
    backend.close()


def test_the_size_of_engines_is_their_own(tmp_path):
    bundle = make_bundle(tmp_path)
    make_engine_set(bundle)
    backend = SimpleNamespace(engines=bundle.engine("sm89"))
    row = Row("tensorrt", bundle.path, "tensorrt")
    assert measure_size(row, bundle, backend) == sum(map(len, ENGINES.values()))


def test_a_row_that_strays_is_not_proved(tmp_path):
    strayed = make_bundle(tmp_path, noise=0.01).path
    measured, _ = measure_rows([Row("onnx", strayed, "onnx")], rounds=1, burst=1, say=str)
    assert [row["proof"]["ok"] for row in measured] == [False, False]


def test_a_process_that_dies_is_told(bundle):
    worker = Worker(Row("onnx", bundle, "onnx"))
    worker._process.kill()
    worker._process.join()
    with pytest.raises(BackendError, match="process died: got exit status -9"):
        worker.ask("time", 1)
    worker.close()


def test_the_command_prints_a_table_and_what_is_absent(bundle, capsys):
    words = [
        "bench",
        str(bundle),
        "--backends",
        "onnx",
        "tensorrt",
        "--rounds",
        "1",
        "--burst",
        "1",
    ]
    assert run_command([*words, "--json"]) == 0
    printed = capsys.readouterr().out
    assert "| onnx | fp32 |" in printed and "absent: tensorrt:" in printed


def test_an_unknown_engine_is_answered_with_those_there_are(bundle, capsys):
    assert run_command(["bench", str(bundle), "--backends", "onyx"]) == 1
    error = capsys.readouterr().err
    assert "got ['onyx']" in error and "openvino" in error
