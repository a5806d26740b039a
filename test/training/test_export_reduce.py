"""Fewer bits: what a result is kept under, how much memory it takes, how often weights are kept."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="needs the extra [export]")

import onnx_ir as ir
from tiny_export import make_run

from training.export.bundle import export_run
from training.export.graph_file import load_graph
from training.export.precision import find_plan
from training.export.reduce import (
    Exact,
    _find_ranges,
    _search,
    group_products,
    measure_floors,
    reduce_graphs,
)
from training.export.restore import prepare_samples, write_restored
from training.export.stages import Stages
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.runtime.limits import GoldenLimits


def quietly(_line):
    pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a chunk policy's and a token policy's run, each with its fp32 bundle."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("chunk", "tokens"):
        (folder / name).mkdir()
        run = make_run(folder / name / "run", tokens=name == "tokens")
        export_run(run, folder / name / "bundle", say=quietly)
    return folder


def start(bundle, key="the same graphs"):
    return Exact(bundle.acting_graphs, bundle.path / "model", key, bundle=bundle)


def with_golden(bundle, dest, change):
    """The same policy with other golden samples."""
    return write_bundle(
        dest,
        processor=bundle.processor,
        graphs={"policy": bundle.graph_path()},
        golden=change(bundle.golden()),
        provenance={"precision": "fp32"},
    )


def test_reduced_graphs_are_proved_anew_for_other_golden_actions_and_limits(
    runs, tmp_path, monkeypatch
):
    bundle = Bundle.open(runs / "chunk/bundle")

    def shift(golden):
        return {**golden, "reference_actions": golden["reference_actions"] + 0.1}

    other = with_golden(bundle, tmp_path / "other", shift)
    stages = Stages(tmp_path / "stages", quietly)
    proofs = [
        reduce_graphs(stages, start(each), "int8", engine=False, block=128).proof
        for each in (bundle, other, bundle)
    ]
    assert [proof["ok"] for proof in proofs] == [True, False, True]
    strict = {"int8": GoldenLimits(0.0, 0.0, 0.0, noise=0.0, agreement=1.0)}
    monkeypatch.setattr("vla_align_ros.runtime.limits.GOLDEN_LIMITS", strict)
    again = reduce_graphs(stages, start(bundle), "int8", engine=False, block=128)
    assert not again.proof["ok"]


def test_reduced_graphs_are_proved_anew_on_another_processor(runs, tmp_path, monkeypatch):
    """An export may be killed on one machine of a cluster, and go on on another."""
    bundle = Bundle.open(runs / "chunk/bundle")
    said = []
    for name in ("one", "one", "another"):
        monkeypatch.setattr("training.export.reduce.name_runtime", lambda name=name: name)
        stages = Stages(tmp_path / "stages", said.append)
        reduce_graphs(stages, start(bundle), "int8", engine=False, block=128)
    told = [line for line in said if line.startswith("graphs-int8")]
    taken = "graphs-int8: taken from an interrupted export"
    assert told == ["graphs-int8 ...", taken, "graphs-int8 ..."]


def test_the_noise_is_measured_anew_on_as_many_other_samples(runs, tmp_path):
    bundle = Bundle.open(runs / "chunk/bundle")
    stages = Stages(tmp_path, quietly)
    samples = prepare_samples(bundle.golden(), bundle.processor)
    darker = [{**s, "pixel_values": 0.1 * s["pixel_values"]} for s in samples]
    one, other, again = (
        measure_floors(stages, start(bundle), seen, bundle.processor)
        for seen in (samples, darker, samples)
    )
    assert one == again and one.graphs != other.graphs and one.actions != other.actions


def test_ranges_are_those_of_a_token_policys_own_calls(runs, tmp_path):
    """Every graph is looked at, the decoding in all its steps."""
    bundle = Bundle.open(runs / "tokens/bundle")
    samples = prepare_samples(bundle.golden(), bundle.processor)
    plan = find_plan("int8", engine=True)
    ranges = _find_ranges(Stages(tmp_path, quietly), start(bundle), plan, samples)
    assert list(ranges) == ["decode", "prefill", "vision"]
    assert all(len(found) > 5 and min(found.values()) > 0.0 for found in ranges.values())


def test_memory_for_ranges_does_not_grow_with_the_samples(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.calibrate._KEPT_VALUES", 100)
    bundle = Bundle.open(runs / "tokens/bundle")
    samples = prepare_samples(bundle.golden(), bundle.processor)
    call = sum(
        4 * int(np.prod([extent or 1 for extent in tensor.shape]))
        for spec in bundle.acting_graphs
        for tensor in spec.inputs
    )
    plan = find_plan("int8", engine=True)
    peaks = []
    for times in (1, 1, 20):  # the first also imports
        gc.collect()
        tracemalloc.start()
        stages = Stages(tmp_path / str(len(peaks)), quietly)
        _find_ranges(stages, start(bundle), plan, samples * times)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 5 * call, "57 more samples, each of six and more such calls"


def located(path):
    """By file, the names of a graph's weights that lie beside it."""
    found = {}
    for name, value in load_graph(path).graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            found.setdefault(value.const_value.location, []).append(name)
    return found


def test_a_reduced_token_policy_holds_its_language_model_once(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.graph_file._ONE_FILE_UP_TO_BYTES", 30_000)
    export_run(runs / "tokens/run", tmp_path / "b", "int8", say=quietly)
    opened, restored = Bundle.open(tmp_path / "b"), tmp_path / "restored"
    restored.mkdir()
    graphs = {spec.name: opened.graph_path(spec.name) for spec in opened.acting_graphs}
    write_restored(graphs, restored)
    for folder in (opened.path / "model", restored):
        shared = located(folder / "decode.onnx")
        assert set(shared) == {"prefill.onnx.data"} and len(shared["prefill.onnx.data"]) > 10
        beside = {path.name for path in folder.glob("*.data")}
        assert beside == {"vision.onnx.data", "prefill.onnx.data"}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_that_is_small_when_reduced_takes_its_other_weights_along(
    runs, tmp_path, monkeypatch, precision
):
    """The exact one has its weights in a file beside it; the reduced one holds them itself."""
    whole = (runs / "chunk/bundle/model/policy.onnx").stat().st_size
    monkeypatch.setattr("training.export.graph_file._ONE_FILE_UP_TO_BYTES", int(0.8 * whole))
    export_run(runs / "chunk/run", tmp_path / "exact", say=quietly)
    assert located(tmp_path / "exact/model/policy.onnx").keys() == {"policy.onnx.data"}
    assert export_run(runs / "chunk/run", tmp_path / "b", precision, say=quietly)["ok"]
    assert located(tmp_path / "b/model/policy.onnx") == {}


def test_graphs_of_a_bundle_are_judged_as_the_robot_runs_them(runs, tmp_path):
    bundle = Bundle.open(runs / "chunk/bundle")
    stages = Stages(tmp_path / "stages", quietly)
    judged = reduce_graphs(stages, start(bundle), "int8", engine=False, block=128).proof
    made = export_run(runs / "chunk/run", tmp_path / "int8", "int8", say=quietly)
    assert made["proof"]["dimensions"] == judged["dimensions"]
    assert any(error["max"] > 0 for error in judged["dimensions"].values())


@pytest.mark.parametrize(
    ("by_kept", "fewest"),
    [
        ([2.0, 0.9, 0.7, 0.5], 2),  # the second that passes has room to spare
        ([0.7], 0),
        ([2.0, 2.0, 0.9], 2),  # none has room: then the limit itself counts
    ],
)
def test_auto_keeps_the_fewest_parts_that_pass_with_room_to_spare(runs, tmp_path, by_kept, fewest):
    bundle = Bundle.open(runs / "chunk/bundle")
    exact = start(bundle)
    groups = group_products(exact)
    assert len(groups) >= 4

    def judge(plan, _folder):
        kept = sum(set(names) <= set(plan.kept) for names in groups.values())
        error = by_kept[min(kept, len(by_kept) - 1)]
        return {"ok": error <= 1.0, "dimensions": {"dx": {"max": error, "limit": 1.0}}}

    plan = find_plan("auto_weights", engine=False)
    samples = prepare_samples(bundle.golden(), bundle.processor)
    chosen, table = _search(exact, plan, judge, {}, samples, tmp_path)
    assert sum(row["kept"] for row in table) == fewest
    assert (chosen.kept == ()) == (fewest == 0)
