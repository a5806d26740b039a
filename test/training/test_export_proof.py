"""A deliberately broken export fails the gate that is there to find it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="needs the extra [export]")

import onnx
from onnx import numpy_helper
from tiny_export import make_model, make_run

from training.export import proof as proof_module
from training.export.bundle import export_run
from training.export.precision import Plan, write_plan
from training.export.proof import measure_graphs, prove_graphs, require_proof
from training.export.restore import prepare_samples
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ExportError


def quietly(_line):
    pass


@pytest.fixture(scope="module")
def chunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunk")
    export_run(make_run(folder / "run"), folder / "bundle", say=quietly)
    return prepare(folder / "bundle")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    run = make_run(folder / "run", tokens=True)
    export_run(run, folder / "bundle", say=quietly)
    return prepare(folder / "bundle")


def prepare(path):
    """The bundle, its inputs, and what bfloat16 does to each output."""
    bundle = Bundle.open(path)
    samples = prepare_samples(bundle.golden(), bundle.processor)
    noisy = path.parent / "noisy"
    noisy.mkdir()
    exact = path / "model"
    for spec in bundle.acting_graphs:
        name = f"{spec.name}.onnx"
        write_plan(exact / name, noisy / name, Plan(base="bfloat16"), simulate=True)
    return bundle, samples, measure_graphs(bundle.acting_graphs, exact, noisy, samples)


def prove(policy, folder, precision, *, fused=False):
    bundle, samples, floors = policy
    return prove_graphs(
        bundle, bundle.path / "model", folder, precision, samples, floors, fused=fused
    )


def copy(policy, folder):
    target = folder / "graphs"
    shutil.copytree(policy[0].path / "model", target)
    return target


def change(path, edit):
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def find_weight(model, part):
    return next(tensor for tensor in model.graph.initializer if part in tensor.name)


def failed(proof):
    assert not proof["ok"]
    with pytest.raises(ExportError, match="fails its proof"):
        require_proof(proof, "do something else")
    return {
        *(name for name, row in proof["dimensions"].items() if not row["ok"]),
        *(name for name, row in proof["numbers"]["outputs"].items() if not row["ok"]),
        *(["tokens"] if proof["agreement"] and not proof["agreement"]["ok"] else []),
    }


def test_an_honest_copy_passes_as_fp32(chunk, tmp_path):
    proof = prove(chunk, copy(chunk, tmp_path), "fp32")
    assert proof["ok"]
    assert proof["numbers"]["outputs"]["policy.actions"]["error"] < 1e-6
    require_proof(proof, "nothing")


def test_rounding_to_bfloat16_is_its_own_measure(chunk, tmp_path):
    folder = copy(chunk, tmp_path)
    source = folder / "policy.onnx"
    write_plan(source, source, Plan(base="bfloat16"), simulate=True)
    proof = prove(chunk, folder, "bf16")
    assert proof["ok"]
    assert proof["numbers"]["outputs"]["policy.actions"]["ratio"] == pytest.approx(1.0)
    assert not prove(chunk, folder, "fp32")["ok"]


def test_both_gates_see_a_bundles_graphs_by_the_kernels_that_run_them(chunk, tmp_path, monkeypatch):
    folder = copy(chunk, tmp_path)
    write_plan(folder / "policy.onnx", folder / "policy.onnx", Plan("int8_weights"))
    seen = []
    real = proof_module.open_backend

    def look(name, path, *, optimization):
        seen.append((path.parent == folder, optimization))
        return real(name, path, optimization=optimization)

    monkeypatch.setattr(proof_module, "open_backend", look)
    for fused, level in ((True, "all"), (False, "basic")):
        seen.clear()
        assert prove(chunk, folder, "int8", fused=fused)["ok"]
        assert seen == [(False, "basic"), (True, level), (True, level)]


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_swapped_channel_order_fails(chunk, tmp_path, precision):
    folder = copy(chunk, tmp_path)

    def swap(model):
        patches = find_weight(model, "patch_embeddings.projection.weight")
        values = numpy_helper.to_array(patches)[:, ::-1].copy()
        patches.CopyFrom(numpy_helper.from_array(values, patches.name))

    change(folder / "policy.onnx", swap)
    proof = prove(chunk, folder, precision)
    assert (
        "policy.actions" in failed(proof)
        or proof["numbers"]["outputs"]["policy.actions"]["ratio"] > 1
    )


def test_a_dropped_scale_fails(chunk, tmp_path):
    folder = copy(chunk, tmp_path)
    source = folder / "policy.onnx"
    write_plan(source, source, Plan("int8_weights"))
    assert prove(chunk, folder, "int8")["ok"]

    def drop(model):
        scales = find_weight(model, "layers.1.mlp.down_proj.weight.T_scales")
        ones = np.ones_like(numpy_helper.to_array(scales))
        scales.CopyFrom(numpy_helper.from_array(ones, scales.name))

    change(source, drop)
    assert "policy.actions" in failed(prove(chunk, folder, "int8"))


def test_a_shifted_token_fails(tokens, tmp_path):
    """Off by one in the vocabulary: each action lands in the bin beside its own."""
    folder = copy(tokens, tmp_path)
    assert prove(tokens, folder, "fp32")["ok"]

    def shift(model):
        for node in model.graph.node:
            if node.op_type == "ArgMax":
                wanted = node.output[0]
                node.output[0] = f"{wanted}_unshifted"
                one = numpy_helper.from_array(np.array(-1, np.int64), "minus_one")
                model.graph.initializer.append(one)
                index = list(model.graph.node).index(node)
                added = onnx.helper.make_node("Add", [node.output[0], "minus_one"], [wanted])
                model.graph.node.insert(index + 1, added)
                return

    for name in ("prefill", "decode"):
        change(folder / f"{name}.onnx", shift)
    wrong = failed(prove(tokens, folder, "int4"))
    assert {"tokens", "prefill.token", "decode.next_token"} <= wrong


def test_a_layer_that_overflows_float16_fails_there_and_not_in_bfloat16(tmp_path):
    """Two weights far from 1 that cancel: harmless in float32, beyond float16 in between."""
    import torch

    model = make_model()
    block = model.llm.model.layers[1].mlp
    with torch.no_grad():
        block.up_proj.weight.mul_(1e6)
        block.down_proj.weight.mul_(1e-6)
    export_run(make_run(tmp_path / "run", model=model), tmp_path / "bundle", say=quietly)
    policy = prepare(tmp_path / "bundle")
    verdicts = {}
    for precision, base in (("bf16", "bfloat16"), ("fp16", "float16")):
        folder = tmp_path / precision
        shutil.copytree(policy[0].path / "model", folder)
        write_plan(
            policy[0].path / "model/policy.onnx",
            folder / "policy.onnx",
            Plan(base=base),
            simulate=True,
        )
        verdicts[precision] = prove(policy, folder, precision)
    assert verdicts["bf16"]["ok"]
    assert {"actions", "policy.actions"} <= failed(verdicts["fp16"]) | {"actions"}
    with pytest.raises(ExportError, match="not a finite number"):
        require_proof(verdicts["fp16"], "export in bf16")
