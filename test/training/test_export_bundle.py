"""From a run folder to a proven bundle that the robot's own code opens, or to nothing at all."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

from tiny_models import IMAGE_PX, STATE_DIM, build, tiny_config, tokens_config

from training.commands import export as command
from training.export.bundle import export_run
from training.export.graph import check_parity, example_inputs, export_onnx, run_onnx
from training.export.quantize import KEPT_IN_FLOAT, find_nodes, quantize_int8
from training.model import GroundingConfig
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec
from vla_align_ros.errors import ExportError, TrainingError
from vla_align_ros.runtime.policy import Policy

HORIZON = 4
WORDS = ["<pad>", "<s>", "<unk>", "put", "the", "carrot", "plate", "on"]


def make_processor() -> Processor:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(WORDS[:3])
    rng = np.random.default_rng(0)
    state_names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    values = rng.normal(0, 0.02, (400, STATE_DIM))
    values[:, -1] = rng.random(400)
    return Processor(
        PolicySpec(
            (CameraSpec("front", 48, 64),),
            StateSpec(state_names),
            ActionSpec("base_link", 5.0, HORIZON),
        ),
        ImageTransform(size=IMAGE_PX),
        {key: Normalizer("quantile", compute_statistics(values)) for key in ("action", "state")},
        PromptTokenizer(words.to_str().encode(), max_length=24),
    )


def make_model(**overrides):
    return build(tiny_config(grounding=GroundingConfig(layer=1), **overrides))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_model().save(folder)
    make_processor().save(folder / "processor")
    (folder / "config.json").write_text(json.dumps({"recipe": "debug", "seed": 3}))
    (folder / "run.json").write_text(json.dumps({"steps": 7, "out": "/home/someone/run"}))
    rng = np.random.default_rng(1)
    np.savez(
        folder / "golden_inputs.npz",
        image_front=rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8),
        state=rng.normal(0, 0.02, (3, STATE_DIM)).astype(np.float32),
        instruction=np.array(["put the carrot on the plate", "put the plate", "carrot"]),
    )
    return folder


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


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The fp32 graph of the run's model, as the exporter leaves it."""
    path = tmp_path_factory.mktemp("graph") / "policy.onnx"
    export_onnx(make_model(), make_processor(), path)
    return path


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_bundle_says_where_it_comes_from_and_names_no_local_path(bundle):
    result, opened = bundle
    provenance = opened.manifest["provenance"]
    assert provenance["precision"] == "fp32" and provenance["recipe"] == "debug"
    assert provenance["run"] == {"steps": 7} and provenance["config"]["seed"] == 3
    assert result["bundle_id"] == opened.id and result["parity"] < 1e-4
    assert opened.report()["verify"]["ok"] is True
    graph = opened.graph_path("policy").read_bytes()
    assert b"prismatic.py" not in graph and os.getcwd().encode() not in graph


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


def test_int8_stays_close_and_keeps_the_head_in_float(graph, tmp_path):
    exact, small = graph, tmp_path / "b.onnx"
    assert quantize_int8(exact, small) > 10
    samples = [example_inputs(make_processor())]
    difference = np.abs(run_onnx(exact, samples)[0] - run_onnx(small, samples)[0]).max()
    assert 0 < difference < 0.2
    onnx = pytest.importorskip("onnx")
    kept = set(find_nodes(onnx.load(exact), KEPT_IN_FLOAT))
    nodes = onnx.load(small).graph.node
    products = {n.name: n.input[1] for n in nodes if n.op_type in ("MatMul", "Gemm")}
    restored = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
    # The head: two linear maps and two residual ones. The state's encoder: two.
    assert len({name for name in kept if products.get(name) not in restored} & set(products)) == 6
    everything = tmp_path / "c.onnx"
    assert quantize_int8(exact, everything, keep=()) == quantize_int8(exact, small) + 6


def test_int8_run_is_exported_and_proved(run_dir, tmp_path):
    result = export_run(run_dir, tmp_path / "b", "int8")
    assert result["proof"]["precision"] == "int8" and result["ok"]
    facts = Bundle.open(tmp_path / "b").manifest["provenance"]["export"]
    assert facts["quantized_matrices"] > 10


def test_a_graph_of_other_weights_fails_parity(graph):
    samples = [example_inputs(make_processor())]
    assert check_parity(graph, make_model(), samples) < 1e-5
    with pytest.raises(ExportError, match="something else"):
        check_parity(graph, build(tiny_config(), seed=5), samples)


def test_padding_is_masked_and_pointing_is_kept_in_the_graph(tmp_path):
    grounding = GroundingConfig(layer=1, to_actions=True)
    model = build(tiny_config(attention="bidirectional", grounding=grounding))
    processor = make_processor()
    export_onnx(model, processor, tmp_path / "a.onnx")
    full, short = example_inputs(processor), example_inputs(processor)
    short["attention_mask"][:, 3:] = 0
    assert check_parity(tmp_path / "a.onnx", model, [full, short]) < 1e-4
    a, b = run_onnx(tmp_path / "a.onnx", [full, short])
    assert np.abs(a - b).max() > 1e-6


def test_a_failed_proof_leaves_nothing(run_dir, tmp_path, monkeypatch):
    from vla_align_ros.runtime import golden

    strict = {"fp32": golden.GoldenLimits(0.0, 0.0, 0.0)}
    monkeypatch.setattr("vla_align_ros.runtime.limits.GOLDEN_LIMITS", strict)
    with pytest.raises(ExportError, match="fails its proof"):
        export_run(run_dir, tmp_path / "b", "fp32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "no finished run"), ("golden_inputs.npz", "golden inputs")],
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


def test_an_existing_bundle_is_never_overwritten(run_dir, tmp_path):
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export_run(run_dir, tmp_path)
    assert (tmp_path / "keep").read_text() == "mine"


def test_what_one_graph_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ExportError, match="tokens head"):
        export_onnx(build(tokens_config()), make_processor(), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="fp4"):
        export_run(tmp_path, tmp_path / "b", "fp4")


def test_the_command_prints_and_returns_the_proof(exported):
    result, printed, _ = exported
    assert json.loads(json.dumps(result))["ok"] is True
    assert "gripper" in printed and result["bundle_id"][:12] in printed


def test_tensorrt_is_refused_clearly(run_dir, tmp_path):
    with pytest.raises(ExportError, match="TensorRT export is not in this version"):
        command.run(parse(str(run_dir), "--out", str(tmp_path / "b"), "--trt"))
