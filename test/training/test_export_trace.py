"""Graphs compute what torch computes, from weights that are read one by one."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="needs the extra [export]")

import onnx_ir as ir
import torch
from tiny_export import make_model, make_processor, make_run, trace_run
from tiny_models import build, tiny_config, tokens_config

from training.export.graph_file import load_graph, save_graph, share_weights
from training.export.preview import preview_export
from training.export.proof import check_parity, run_graphs
from training.export.source import RunSource, reference_outputs
from training.model import GroundingConfig
from training.model.openvla import openvla_7b_json, openvla_config
from vla_align_ros.errors import ExportError


@pytest.fixture(scope="module")
def chunk(tmp_path_factory):
    """A chunk policy's run, and where its graph lies."""
    folder = tmp_path_factory.mktemp("chunk")
    return make_run(folder / "run"), folder, trace_run(folder / "run", folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A token policy's run, and where its graphs lie."""
    folder = tmp_path_factory.mktemp("tokens")
    return make_run(folder / "run", tokens=True), folder, trace_run(folder / "run", folder)


def test_a_chunk_policys_graph_gives_the_models_actions(chunk):
    run, folder, specs = chunk
    source = RunSource.open(run)
    actions = run_graphs(specs, folder, source.samples())
    assert check_parity(actions, reference_outputs(source)["actions"]) < 1e-5


def test_with_vision_apart_it_gives_the_same(chunk, tmp_path):
    run, folder, whole = chunk
    specs = trace_run(run, tmp_path, split_vision=True)
    assert [spec.name for spec in specs] == ["vision", "policy"]
    samples = RunSource.open(run).samples()
    apart, together = run_graphs(specs, tmp_path, samples), run_graphs(whole, folder, samples)
    np.testing.assert_allclose(apart, together, atol=1e-5)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("split_vision", [True, False])
def test_a_graph_is_told_the_actions_that_are_decided(tmp_path, state, split_vision):
    model = make_model(**({} if state else {"state": None}))
    model.take_committed(2)
    torch.nn.init.normal_(model.committed.fc.weight, std=0.3)
    run = make_run(tmp_path / "run", model=model)
    source, specs = RunSource.open(run), trace_run(run, tmp_path, split_vision=split_vision)
    actions = run_graphs(specs, tmp_path, source.samples())
    assert check_parity(actions, reference_outputs(source)["actions"]) < 1e-5
    untold = [
        {**sample, "committed_mask": 0 * sample["committed_mask"]} for sample in source.samples()
    ]
    plain = run_graphs(specs, tmp_path, untold)
    np.testing.assert_array_equal(plain[0], actions[0])  # nothing was told
    told = source.processor.encode_actions(source.inputs["committed"])
    np.testing.assert_array_equal(actions[1, :2], told[1])
    assert np.abs(plain[1, 2:] - actions[1, 2:]).max() > 1e-4


def test_a_token_policys_graphs_decode_the_tokens_that_torch_decodes(tokens):
    run, folder, specs = tokens
    assert [spec.name for spec in specs] == ["vision", "prefill", "decode"]
    source = RunSource.open(run)
    expected = reference_outputs(source)["actions"]
    assert len(np.unique(expected)) > 1
    assert np.array_equal(run_graphs(specs, folder, source.samples()), expected)


def test_a_token_policy_with_a_state_decodes_alike(tmp_path):
    from tiny_models import STATE_DIM

    from training.model import HeadConfig, StateConfig

    config = tiny_config(head=HeadConfig(kind="tokens", horizon=1), state=StateConfig(STATE_DIM))
    run = make_run(tmp_path / "run", model=build(config))
    spec = json.loads((run / "processor/processor.json").read_text())
    spec["spec"]["action"]["horizon"] = 1
    (run / "processor/processor.json").write_text(json.dumps(spec))
    specs = trace_run(run, tmp_path)
    source = RunSource.open(run)
    actions = run_graphs(specs, tmp_path, source.samples())
    assert np.array_equal(actions, reference_outputs(source)["actions"])


def test_padding_is_masked_and_pointing_is_kept_in_the_graph(tmp_path):
    grounding = GroundingConfig(layer=1, to_actions=True)
    model = build(tiny_config(attention="bidirectional", grounding=grounding))
    run = make_run(tmp_path / "run", model=model)
    specs = trace_run(run, tmp_path)
    source = RunSource.open(run)
    samples = source.samples()
    actions = run_graphs(specs, tmp_path, samples)
    assert check_parity(actions, reference_outputs(source)["actions"]) < 1e-4
    shorter = {**samples[0], "attention_mask": samples[0]["attention_mask"].copy()}
    shorter["attention_mask"][:, 3:] = 0
    assert np.abs(run_graphs(specs, tmp_path, [shorter])[0] - actions[0]).max() > 1e-6


def test_graphs_of_other_weights_fail_parity(chunk, tmp_path):
    _, folder, specs = chunk
    other = RunSource.open(make_run(tmp_path / "other", model=build(tiny_config(), seed=5)))
    actions = run_graphs(specs, folder, other.samples())
    with pytest.raises(ExportError, match="something else"):
        check_parity(actions, reference_outputs(other)["actions"])


def test_graphs_are_plain_static_and_name_their_weights(tokens):
    _, folder, specs = tokens
    states = {f"model.{name}": value for name, value in build(tokens_config()).state_dict().items()}
    for spec in specs:
        model = load_graph(folder / f"{spec.name}.onnx")
        assert set(model.opset_imports) == {""} and not model.functions
        for tensor, value in zip(spec.inputs, model.graph.inputs, strict=True):
            assert (tensor.name, tensor.shape) == (value.name, tuple(value.shape.numpy()))
        for node in model.graph:
            assert not node.metadata_props and not (node.doc_string or "")
        weights = [value for value in model.graph.initializers.values() if len(value.shape) == 2]
        named = [v for v in weights if re.sub(r"\.T$", "", v.name) in states]
        assert sum(v.const_value.nbytes for v in named) > 0.9 * sum(
            v.const_value.nbytes for v in weights
        )
        for value in named:
            expected = states[value.name.removesuffix(".T")].numpy()
            expected = expected.T if value.name.endswith(".T") else expected
            assert np.array_equal(value.const_value.numpy(), expected)


@pytest.fixture
def apart(tokens, tmp_path, monkeypatch):
    """The token policy's graphs with their weights in files beside them, as large ones have."""
    run, folder, specs = tokens
    monkeypatch.setattr("training.export.graph_file._ONE_FILE_UP_TO_BYTES", 60_000)
    for spec in specs:
        model = load_graph(folder / f"{spec.name}.onnx")
        if spec.name == "decode":
            share_weights(model, tmp_path / "prefill.onnx")
        save_graph(model, tmp_path / f"{spec.name}.onnx")
    return run, tmp_path, specs


def locations(path):
    held = [value.const_value for value in load_graph(path).graph.initializers.values()]
    return [tensor.location for tensor in held if isinstance(tensor, ir.ExternalTensor)]


def test_what_two_graphs_share_lies_on_disk_once(apart):
    run, folder, specs = apart
    assert (folder / "prefill.onnx.data").stat().st_size > 100_000
    assert not (folder / "decode.onnx.data").exists()
    assert locations(folder / "decode.onnx").count("prefill.onnx.data") > 20
    assert set(locations(folder / "vision.onnx")) == {"vision.onnx.data"}
    source = RunSource.open(run)
    actions = run_graphs(specs, folder, source.samples())
    assert np.array_equal(actions, reference_outputs(source)["actions"])


def test_sharing_takes_no_weight_of_another_name(apart):
    _, folder, _ = apart
    vision = load_graph(folder / "vision.onnx")
    share_weights(vision, folder / "prefill.onnx")
    held = [value.const_value for value in vision.graph.initializers.values()]
    assert {t.location for t in held if isinstance(t, ir.ExternalTensor)} == {"vision.onnx.data"}


def test_a_graph_saved_in_another_folder_takes_its_weights_along(apart):
    run, folder, specs = apart
    (folder / "moved").mkdir()
    for spec in specs:
        save_graph(load_graph(folder / f"{spec.name}.onnx"), folder / "moved" / f"{spec.name}.onnx")
    for path in folder.glob("*.onnx*"):
        path.unlink()
    samples = RunSource.open(run).samples()
    assert np.isfinite(run_graphs(specs, folder / "moved", samples)).all()


def test_the_horizon_of_another_run_is_refused(tmp_path):
    from training.model import HeadConfig

    model = build(tiny_config(head=HeadConfig(horizon=9)))
    run = make_run(tmp_path / "run", model=model)
    with pytest.raises(ExportError, match="horizon 9, 0 committed; expected 4, 0"):
        trace_run(run, tmp_path)


def test_a_preview_needs_no_weights_and_sees_the_graph_that_is_exported(chunk, tmp_path):
    run, folder, _ = chunk
    for path in run.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).symlink_to(path)
    seen = preview_export(tmp_path)["graphs"]["policy"]
    graph = load_graph(folder / "policy.onnx").graph
    assert seen["nodes"] == len(graph)
    held = sum(value.const_value.nbytes for value in graph.initializers.values())
    assert seen["weight_bytes"] == pytest.approx(held, rel=0.05)  # ones and zeros fold


def test_openvla_7b_is_traced_at_full_size_in_little_memory(tmp_path):
    """Its decoding, the largest graph, in a process of its own, whose peak is its own."""
    import subprocess
    import sys

    run = tmp_path / "run"
    run.mkdir()
    config = openvla_config(openvla_7b_json())
    (run / "model.json").write_text(json.dumps(config.to_dict()))
    make_openvla_processor().save(run / "processor")
    script = (
        "import json, sys; from training.export.preview import preview_export;"
        "print(json.dumps(preview_export(sys.argv[1], only={'decode'})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=True
    )
    preview = json.loads(done.stdout.splitlines()[-1])
    sizes = {name: graph["weight_bytes"] / 4e9 for name, graph in preview["graphs"].items()}
    assert sizes["decode"] == pytest.approx(6.74, abs=0.02)
    cache = preview["graphs"]["decode"]["inputs"][-1]
    assert cache["name"] == "values" and cache["shape"][1:] == [32, 32, 128]
    assert preview["peak_rss_gb"] < 4.0, "the weights alone are 30 GB"


def make_openvla_processor():
    from vla_align_ros.contract.images import ImageTransform
    from vla_align_ros.contract.processor import Processor

    small = make_processor(tokens=True)
    siglip = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transform = ImageTransform(size=224, extra_towers=(siglip,))
    return Processor(small.spec, transform, small.normalizers, small.tokenizer)
