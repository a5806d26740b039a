"""From a run folder to a proven bundle that the robot's own code opens, or to nothing at all."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

from tiny_export import HORIZON, make_model, make_processor, make_run
from tiny_models import STATE_DIM, build, tiny_config

from training.commands import export as command
from training.export.behaviour import check_gate
from training.export.bundle import export_run
from training.export.graph_file import load_graph
from training.export.source import RunSource, add_reference, reference_outputs
from training.files import hold_lock
from vla_align_ros.commands.inspect import describe_bundle
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.spec import CameraSpec
from vla_align_ros.errors import ConfigurationError, ExportError, TrainingError
from vla_align_ros.runtime.limits import GoldenLimits
from vla_align_ros.runtime.policy import Policy

needs_simulator = pytest.mark.skipif(  # not imported: the simulator chooses how it draws
    importlib.util.find_spec("mujoco") is None, reason="needs the extra [sim]"
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    """What `vla-align export` printed and returned, and where the bundle lies."""
    out = tmp_path_factory.mktemp("out") / "bundle"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = command.run(parse(str(run_dir), "--out", str(out)))
    return result, printed.getvalue(), out


@pytest.fixture(scope="module")
def bundle(exported):
    return exported[0], Bundle.open(exported[2])


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def quietly(_line):
    pass


def test_the_bundle_says_where_it_comes_from_and_names_no_local_path(bundle):
    result, opened = bundle
    provenance = opened.manifest["provenance"]
    assert provenance["precision"] == "fp32" and provenance["recipe"] == "debug"
    assert provenance["run"] == {"steps": 7} and provenance["config"]["seed"] == 3
    assert result["bundle_id"] == opened.id and result["parity"] < 1e-4
    assert 0.0 < provenance["export"]["noise_floor"] < 0.1
    assert opened.report()["proofs"]["onnx"]["ok"] is True
    graph = opened.graph_path("policy").read_bytes()
    assert b"prismatic.py" not in graph and os.getcwd().encode() not in graph


def test_a_bundle_of_mixed_weights_says_what_was_mixed_and_drops_folders(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "blend.json").write_text(json.dumps({"alpha": 0.5, "before": "a1", "after": "b2"}))
    (run / "config.json").write_text(json.dumps({"recipe": "debug", "base": "/home/a/runs/first"}))
    described = RunSource.open(run).describe()
    assert described["blend"] == {"alpha": 0.5, "before": "a1", "after": "b2"}
    assert described["config"]["base"] == "first"
    assert "blend" not in RunSource.open(run_dir).describe()


def test_the_runtime_gives_the_actions_of_the_trained_model(bundle):
    _, opened = bundle
    model, processor = make_model(), make_processor()
    rng = np.random.default_rng(7)
    seen = Observation(
        images={"front": rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)},
        state=rng.normal(0, 0.02, STATE_DIM).astype(np.float32),
        instruction="put the carrot on the plate",
        stamp_s=1.5,
    )
    inputs = {k: torch.from_numpy(v) for k, v in processor.prepare(seen).items()}
    expected = processor.decode({"actions": model.predict(**inputs).numpy()}, seen)
    with Policy.open(opened) as policy:
        chunk = policy.infer(seen)
    assert chunk.actions.shape == (HORIZON, 7) and chunk.stamp_s == 1.5
    np.testing.assert_allclose(chunk.actions, expected.actions, atol=1e-5)


def test_golden_samples_hold_the_models_own_actions(bundle, run_dir):
    _, opened = bundle
    golden = opened.golden()
    inputs = np.load(run_dir / "golden_inputs.npz")
    assert np.array_equal(golden["image_front"], inputs["image_front"])
    actions = golden["reference_actions"]
    assert actions.shape == (3, HORIZON, 7) and actions.dtype == np.float64
    assert np.ptp(actions, axis=0).max() > 1e-4


def test_a_bundle_that_is_told_committed_actions_is_proved_on_them_and_keeps_them(tmp_path):
    model = make_model()
    model.take_committed(2)
    torch.nn.init.normal_(model.committed.fc.weight, std=0.3)
    export_run(make_run(tmp_path / "run", model=model), tmp_path / "b", "fp32", say=quietly)
    opened = Bundle.open(tmp_path / "b")
    assert opened.spec.action.committed == 2 and opened.report()["proofs"]["onnx"]["ok"] is True
    does = describe_bundle(opened, opened.report())["does"]
    assert "goes on from up to 2 committed actions" in does
    golden = opened.golden()
    np.testing.assert_allclose(
        golden["reference_actions"][1, :2, :6], golden["committed"][1, :, :6], atol=1e-6
    )
    seen = next(iterate_observations(golden, opened.spec))
    decided = golden["committed"][1].copy()
    decided[:, 6] = 0.7
    with Policy.open(opened) as policy:
        free = policy.infer(seen).actions
        told = policy.infer(dataclasses.replace(seen, committed=decided)).actions
    np.testing.assert_allclose(told[:2], decided, atol=1e-6)
    assert np.abs(told[2:] - free[2:]).max() > 1e-6


def test_int8_stores_weights_in_8_bits_and_is_proved(run_dir, tmp_path):
    result = export_run(run_dir, tmp_path / "b", "int8", say=quietly)
    assert result["ok"] and result["proof"]["precision"] == "int8"
    assert result["proof"]["numbers"]["outputs"]["policy.actions"]["ratio"] > 0.01
    opened = Bundle.open(tmp_path / "b")
    assert opened.manifest["provenance"]["export"]["plan"]["method"] == "int8_weights"
    held = load_graph(opened.graph_path("policy")).graph.initializers
    head = [name for name in held if name.startswith("model.action_head.fc")]
    assert head and not any(name.endswith("_codes") for name in head)
    assert sum(name.endswith("_codes") for name in held) > 10


def test_a_token_policy_is_exported_proved_and_runs_as_the_node_runs_it(tmp_path):
    run = make_run(tmp_path / "run", tokens=True)
    result = export_run(run, tmp_path / "b", "int8_dynamic", say=quietly)
    assert result["proof"]["agreement"]["ok"]
    assert "decode.next_token" in result["proof"]["numbers"]["outputs"]
    opened = Bundle.open(tmp_path / "b")
    assert [spec.name for spec in opened.acting_graphs] == ["vision", "prefill", "decode"]
    with Policy.open(opened) as policy:
        policy.warm_up()
        assert policy.last_timings_ms["infer"] > 0.0


def test_a_failed_proof_leaves_nothing(run_dir, tmp_path, monkeypatch):
    strict = {"fp32": GoldenLimits(0.0, 0.0, 0.0, noise=0.0, agreement=1.0)}
    monkeypatch.setattr("vla_align_ros.runtime.limits.GOLDEN_LIMITS", strict)
    with pytest.raises(ExportError, match="fails its proof"):
        export_run(run_dir, tmp_path / "b", "fp32", say=quietly)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no finished run"),
        ("golden_inputs.npz", "golden inputs"),
        ("model.json", "no weights of a whole network.*consolidate"),
        ("model.safetensors", "lacks a part of its network.*consolidate"),
    ],
)
def test_an_unfinished_run_is_refused_and_leaves_nothing(run_dir, tmp_path, missing, message):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run_dir.iterdir():
        if path.name != missing:
            (folder / path.name).symlink_to(path)
    with pytest.raises((ExportError, TrainingError), match=message):
        export_run(folder, tmp_path / "out" / "b")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_fp32_is_not_compared_with_itself_in_closed_loop(run_dir, tmp_path):
    with pytest.raises(ExportError, match="fix: leave --episodes out"):
        export_run(run_dir, tmp_path / "b", episodes=2, say=quietly)
    assert os.listdir(tmp_path) == []


@needs_simulator
def test_a_gate_of_behaviour_that_cannot_be_passed_is_refused_before_any_work(run_dir, tmp_path):
    with pytest.raises(ExportError, match=r"so few episodes.*expected 42 or more"):
        export_run(run_dir, tmp_path / "b", "int8", episodes=41, say=quietly)
    other = make_processor().spec
    other = dataclasses.replace(other, cameras=(CameraSpec("wrist", 48, 64),))
    with pytest.raises(ExportError, match=r"cannot be compared: got cameras \['wrist'\]"):
        check_gate(other, 60)
    assert os.listdir(tmp_path) == []


@needs_simulator
def test_what_was_exported_waits_when_the_gate_of_behaviour_is_not_passed(
    run_dir, tmp_path, monkeypatch
):
    verdicts = [{"verdict": "undecided", "ok": False}, {"verdict": "not worse", "ok": True}]
    counts = {"candidate": 40, "reference": 42, "episodes": 42}
    verdicts = [{**counts, **verdict} for verdict in verdicts]
    prove = "training.export.bundle.prove_behaviour"
    monkeypatch.setattr(prove, lambda *_: verdicts.pop(0))
    with pytest.raises(ExportError, match=r"undecided.*more --episodes.*\.b\.stages"):
        export_run(run_dir, tmp_path / "b", "int8", episodes=42, say=quietly)
    assert [path.name for path in tmp_path.iterdir()] == [".b.stages"]
    said = []
    export_run(run_dir, tmp_path / "b", "int8", episodes=60, say=said.append)
    assert len(said) >= 4 and all("taken from an interrupted export" in line for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_existing_bundle_is_never_overwritten(run_dir, tmp_path):
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export_run(run_dir, tmp_path)
    assert (tmp_path / "keep").read_text() == "mine"


def test_an_export_that_waited_for_one_to_the_same_place_does_no_work_and_leaves_nothing(
    run_dir, tmp_path, capsys
):
    steps, failures = [], []

    def export():
        try:
            export_run(run_dir, tmp_path / "b", say=steps.append)
        except ExportError as error:
            failures.append(str(error))

    with hold_lock(tmp_path / ".b.stages.lock"):
        second = threading.Thread(target=export)
        second.start()
        while second.is_alive() and "waiting" not in capsys.readouterr().err:
            time.sleep(0.01)
        (tmp_path / "b").mkdir()
    second.join()
    assert steps == [] and "exists already" in failures[0]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_golden_actions_are_of_the_weights_that_are_exported_whatever_was_interrupted(tmp_path):
    """Two runs' references lie among the kept results; each run gets its own."""
    models = {name: build(tiny_config(), seed=seed) for seed, name in enumerate(("one", "other"))}
    run, kept = tmp_path / "run", tmp_path / ".one.stages"

    def stop(line):
        if line == "noise ...":
            raise KeyboardInterrupt

    for model in models.values():
        with pytest.raises(KeyboardInterrupt):
            export_run(make_run(run, model=model), tmp_path / "one", say=stop)
    assert len(list(kept.glob("reference-*"))) == 2
    shutil.copytree(kept, tmp_path / ".other.stages")
    for name, model in models.items():
        export_run(make_run(run, model=model), tmp_path / name, say=quietly)
        source = RunSource.open(run)
        expected = add_reference(source, reference_outputs(source)["actions"])
        found = Bundle.open(tmp_path / name).golden()
        assert np.array_equal(found["reference_actions"], expected["reference_actions"])


@pytest.mark.parametrize(
    ("precision", "message"), [("fp4", "got 'fp4'"), ("fp8", "fp8 is made with --trt")]
)
def test_an_unknown_precision_is_refused_with_those_there_are(
    run_dir, tmp_path, precision, message
):
    with pytest.raises(ExportError, match=message):
        export_run(run_dir, tmp_path / "b", precision)


def test_the_command_prints_and_returns_the_proof(exported):
    result, printed, _ = exported
    assert json.loads(json.dumps(result))["ok"] is True
    assert "gripper" in printed and "proved" in printed and result["bundle_id"][:12] in printed


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ((), "a run, or"),
        (("run",), "--out is needed"),
        (("--bundle", "b"), "goes with --trt"),
        (("run", "--out", "o", "--trt", "--bundle", "b"), "without a run"),
        (("--trt", "--bundle", "b", "--dry-run"), "traces a run"),
        (("--trt", "--bundle", "b", "--episodes", "60"), "verify --episodes"),
        (("run", "--out", "o", "--trt", "--episodes", "60"), "verify --episodes"),
        (("run", "--dry-run", "--trt"), "leave --trt out"),
        (("run", "--dry-run", "--precision", "int8"), "leave --precision and --episodes out"),
        (("run", "--dry-run", "--episodes", "60"), "leave --precision and --episodes out"),
        (("run", "--out", "o", "--data", "d", "--target", "sm89"), "leave --data, --target out"),
        (("run", "--out", "o", "--trt-option", "a=1"), "leave --trt-option out, or add --trt"),
        (("run", "--out", "o", "--block", "64"), "leave --block out"),
        (("--trt", "--bundle", "b", "--block", "64", "--precision", "int8"), "leave --block out"),
        (("--trt", "--bundle", "b", "--split-vision"), "leave --split-vision out"),
        (("--trt", "--bundle", "b", "--data", "d"), "leave --data out"),
        (("--trt", "--bundle", "b", "--data", "d", "--precision", "int4"), "leave --data out"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_what_would(arguments, fix):
    with pytest.raises(ConfigurationError, match=fix):
        command.run(parse(*arguments))
