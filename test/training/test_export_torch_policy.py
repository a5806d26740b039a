"""The network of a run or of a bundle behind the runtime's seam, dense and in few bits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

import torch
from tiny_export import make_run

from training.export.bundle import export_run
from training.export.source import RunSource
from training.export.torch_policy import find_llm_linears, rebuild_from_bundle
from training.model import PrismaticVLA
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import open_backend
from vla_align_ros.inference.pipeline import open_graphs
from vla_align_ros.runtime.policy import Policy


@pytest.fixture(scope="module", params=["chunk", "tokens"])
def run(tmp_path_factory, request):
    return make_run(tmp_path_factory.mktemp("run") / "run", tokens=request.param == "tokens")


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "exported"
    export_run(run, out, say=lambda text: None)
    return Bundle.open(out)


@torch.no_grad()
def predict(run):
    """What the trained network gives on the golden inputs, and those as the backends take them."""
    model, samples = PrismaticVLA.load(run), RunSource.open(run).samples()
    tensors = [{name: torch.from_numpy(a) for name, a in sample.items()} for sample in samples]
    return samples, [model.predict(**sample).numpy() for sample in tensors]


def test_a_run_acts_as_the_network_that_was_trained(run):
    samples, expected = predict(run)
    backend = open_backend("torch", run)
    assert backend.name == "torch" and backend.precision == "fp32"
    for sample, actions in zip(samples, expected, strict=True):
        np.testing.assert_allclose(backend.infer(sample)["actions"], actions, atol=1e-6)


def test_a_bundle_alone_holds_the_weights_of_its_run_bit_for_bit(run, bundle):
    rebuilt, trained = rebuild_from_bundle(bundle).state_dict(), PrismaticVLA.load(run).state_dict()
    assert set(rebuilt) == {name for name in trained if not name.startswith("grounding")}
    for name, tensor in rebuilt.items():
        assert torch.equal(tensor, trained[name]), name


def test_a_bundle_acts_as_its_run(run, bundle):
    samples, expected = predict(run)
    with Policy.open(bundle, "torch") as policy:
        assert policy.precision == "fp32"
        for sample, actions in zip(samples, expected, strict=True):
            np.testing.assert_allclose(policy.backend.infer(sample)["actions"], actions, atol=1e-6)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.1), ("fp16", 0.01)])
def test_fewer_bits_stray_a_little(tmp_path, precision, error):
    run = make_run(tmp_path / "run")
    samples, expected = predict(run)
    backend = open_backend("torch", run, precision=precision)
    found = np.stack([backend.infer(sample)["actions"] for sample in samples])
    assert 0 < np.abs(found - np.stack(expected)).max() < error
    assert backend.precision == precision


def _open_exactly(bundle):
    """On ONNX Runtime without kernels that round activations where the graph does not."""
    return Policy(bundle, open_graphs(bundle, "onnx", optimization="basic"))


def test_a_policy_of_8_bits_comes_back_as_what_its_graph_computes(tmp_path):
    run = make_run(tmp_path / "run")
    export_run(run, tmp_path / "bundle", "int8", say=lambda text: None)
    bundle = Bundle.open(tmp_path / "bundle")
    sample = RunSource.open(run).samples()[0]
    with Policy.open(bundle, "torch") as ours, _open_exactly(bundle) as theirs:
        assert ours.precision == "int8"
        np.testing.assert_allclose(
            ours.backend.infer(sample)["actions"],
            theirs.backend.infer(sample)["actions"],
            atol=1e-5,
        )


def test_a_policy_of_16_bits_comes_back_with_its_rounded_weights(tmp_path):
    run = make_run(tmp_path / "run")
    export_run(run, tmp_path / "bundle", "fp16", say=lambda text: None)
    bundle = Bundle.open(tmp_path / "bundle")
    found, trained = rebuild_from_bundle(bundle).state_dict(), PrismaticVLA.load(run).state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, trained[name], rtol=1e-3, atol=1e-6)
    name = "llm.model.layers.0.mlp.down_proj.weight"
    assert torch.equal(found[name], trained[name].half().float())
    with Policy.open(bundle, "torch") as policy:
        assert policy.precision == "fp16"


@pytest.mark.parametrize(("quantize", "precision"), [("nf4", "int4"), ("int8", "int8")])
def test_the_language_model_can_lie_in_few_bits(tmp_path, quantize, precision):
    pytest.importorskip("bitsandbytes", reason="needs the extra [qlora]")
    run = make_run(tmp_path / "run")
    samples, expected = predict(run)
    backend = open_backend("torch", run, quantize=quantize)
    assert (backend.name, backend.precision) == (f"torch_{quantize}", precision)
    found = np.stack([backend.infer(sample)["actions"] for sample in samples])
    assert 0 < np.abs(found - np.stack(expected)).max() < 0.5


def test_only_the_language_models_blocks_are_stored_in_few_bits(tmp_path):
    names = find_llm_linears(PrismaticVLA.load(make_run(tmp_path / "run")))
    assert names and all(name.startswith("llm.") and ".layers." in name for name in names)


def test_a_folder_that_is_neither_run_nor_bundle_is_refused(tmp_path):
    with pytest.raises(BackendError, match=r"cannot be rebuilt.*a run or a bundle"):
        open_backend("torch", tmp_path)


def test_a_bundle_that_does_not_describe_its_network_is_refused():
    untold = SimpleNamespace(manifest={"provenance": {"precision": "fp32"}})
    with pytest.raises(BackendError, match="does not describe its network"):
        rebuild_from_bundle(untold)


def test_a_storage_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(BackendError, match="got 'int2'; expected none or nf4 or int8"):
        open_backend("torch", make_run(tmp_path / "run"), quantize="int2")
