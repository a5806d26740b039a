"""Weights between two checkpoints: exact at the ends, linear between, and whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file
from tiny_models import build, tiny_config, tiny_inputs, tiny_llm

from training.blend import blend, interpolate, part_of
from training.merging import save_merged
from training.model import HeadConfig, PrismaticVLA
from vla_align_ros.cli import main
from vla_align_ros.errors import ConfigurationError, TrainingError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two run folders of one architecture, with what else a run leaves behind."""
    folders = []
    for seed, name in enumerate(("before", "after")):
        folder = tmp_path_factory.mktemp(name)
        build(tiny_config(), seed=seed).save(folder)
        (folder / "config.json").write_text(json.dumps({"recipe": name}))
        (folder / "processor" / "tokenizer").mkdir(parents=True)
        (folder / "processor" / "tokenizer" / "tokenizer.json").write_text("{}")
        (folder / "processor" / "stats.json").write_text(json.dumps({"action": {"q01": [seed]}}))
        (folder / "processor" / "processor.json").write_text(json.dumps(described()))
        for measured in ("sight.npz", "run.json", "report.html"):
            (folder / measured).write_text("of this run's weights")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "large").write_text("optimizer")
        folders.append(folder)
    return folders[0], folders[1]


def described(**changes: object) -> dict[str, object]:
    """What of a processor.json is compared: dotted keys, changed by `changes`."""
    values: dict[str, object] = {
        "image_transform": {"crop": 1.0, "mean": [0.5], "size": 56},
        "normalization": {"action": {"mode": "quantile"}},
        "prompt": {"template": "{instruction}"},
        "spec": {"action": {"frame": "base"}, "cameras": [{"name": "top"}], "state": {"names": []}},
    }
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = values
        for parent in parents:
            node = node[parent]  # type: ignore[assignment]
        node[key] = value
    return values


def weights(folder: Path) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        merged |= load_file(path)
    return merged


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_every_tensor_lies_on_the_line_between(runs, tmp_path, alpha):
    result = blend(*runs, tmp_path / "out", alpha)
    old, new, mixed = weights(runs[0]), weights(runs[1]), weights(tmp_path / "out")
    assert set(mixed) == set(old) == set(new)
    for name, value in mixed.items():
        expected = (1 - alpha) * old[name].numpy().astype(np.float64)
        expected += alpha * new[name].numpy().astype(np.float64)
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-6)
        if alpha in (0.0, 1.0):
            assert torch.equal(value, (old, new)[int(alpha)][name])
    apart = torch.cat([(new[n] - old[n]).double().flatten() for n in new])
    assert result["distance"] == pytest.approx(apart.square().mean().sqrt().item())
    assert result["parameters"] == apart.numel() and result["tensors"] == len(new)


def test_the_blend_is_a_run_with_the_fine_tuned_ones_files(runs, tmp_path):
    blend(*runs, tmp_path / "out", 0.5)
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_text()) == {"recipe": "after"}
    assert json.loads((out / "processor" / "stats.json").read_text()) == {"action": {"q01": [1]}}
    for left in ("checkpoints", "sight.npz", "run.json", "report.html"):
        assert not (out / left).exists()
    record = json.loads((out / "blend.json").read_text())
    assert record["alpha"] == 0.5 and len({record["before"], record["after"]}) == 2
    models = [PrismaticVLA.load(folder) for folder in (*runs, out)]
    first, second, mixed = (model.state_dict() for model in models)
    for name, value in mixed.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    assert models[2].predict(**tiny_inputs()).isfinite().all()


def test_parts_may_have_shares_of_their_own(runs, tmp_path):
    blend(*runs, tmp_path / "out", 1.0, parts={"vision": 0.0, "llm": 0.5})
    old, new, mixed = weights(runs[0]), weights(runs[1]), weights(tmp_path / "out")
    for name, value in mixed.items():
        share = {"vision": 0.0, "llm": 0.5}.get(part_of(name), 1.0)
        torch.testing.assert_close(value, (1 - share) * old[name] + share * new[name])
    assert {part_of(name) for name in mixed} == {"vision", "projector", "llm", "state", "head"}


def write_openvla(folder: Path, seed: int, *, rows: int = 6) -> Path:
    """Write two bfloat16 shards with the index and names of a published OpenVLA folder."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    shards = {
        "model-00001-of-00002.safetensors": {
            "vision_backbone.featurizer.blocks.0.ls1.scale_factor": draw(4),
            "language_model.model.embed_tokens.weight": draw(rows, 4),
        },
        "model-00002-of-00002.safetensors": {
            "language_model.lm_head.weight": draw(rows, 4),
            "projector.fc1.weight": draw(8, 4),
            "steps": torch.tensor([3]),
        },
    }
    folder.mkdir(parents=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    places = {key: name for name, tensors in shards.items() for key in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "openvla", "seed": seed}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_an_openvla_folder_keeps_its_shards_and_its_precision(tmp_path):
    old, new = write_openvla(tmp_path / "a", 1), write_openvla(tmp_path / "b", 2)
    blend(old, new, tmp_path / "out", 0.5, parts={"vision": 0.0})
    for path in sorted(new.glob("*.safetensors")):
        first, second = load_file(old / path.name), load_file(path)
        mixed = load_file(tmp_path / "out" / path.name)
        assert list(mixed) == list(second)
        for name, value in mixed.items():
            assert value.dtype == second[name].dtype
            share = 0.0 if name.startswith("vision") else 0.5
            if value.is_floating_point():
                exact = (1 - share) * first[name].float() + share * second[name].float()
                assert torch.equal(value, exact.to(torch.bfloat16))
            else:
                assert torch.equal(value, second[name])
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (new / index).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["seed"] == 2


FLOATS = hnp.arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32))


@given(FLOATS, FLOATS, st.floats(0, 1))
def test_a_mixture_lies_between_its_ends(first, second, share):
    mixed = interpolate(torch.from_numpy(first), torch.from_numpy(second), share).numpy()
    low, high = np.minimum(first, second), np.maximum(first, second)
    slack = 1e-6 * np.maximum(np.abs(first), np.abs(second))
    assert (mixed >= low - slack).all() and (mixed <= high + slack).all()


def refuse(tmp_path: Path, error: type[Exception], message: str, *args, **options) -> None:
    """Expect the refusal, and nothing left on disk."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        blend(*args, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_checkpoints_that_do_not_belong_together_are_refused(runs, tmp_path):
    build(tiny_config(head=HeadConfig(horizon=5))).save(tmp_path / "other")
    out = tmp_path / "out"
    refuse(tmp_path, TrainingError, r"got head\.horizon", runs[0], tmp_path / "other", out, 0.5)
    (tmp_path / "other" / "model.json").unlink()
    refuse(tmp_path, TrainingError, "action_queries", runs[0], tmp_path / "other", out, 0.5)
    build(tiny_config(state=None)).save(tmp_path / "stateless")
    refuse(tmp_path, TrainingError, "different tensors", runs[0], tmp_path / "stateless", out, 0.5)
    tokens = tmp_path / "other" / "processor" / "tokenizer" / "tokenizer.json"
    tokens.parent.mkdir(parents=True)
    tokens.write_text('{"other": 1}')
    build(tiny_config()).save(tmp_path / "other")
    refuse(tmp_path, TrainingError, "read words differently", runs[0], tmp_path / "other", out, 0.5)


def test_an_index_cannot_lead_the_blend_to_write_elsewhere(tmp_path):
    folders = [write_openvla(tmp_path / name, seed) for seed, name in enumerate(("old", "new"))]
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    before = other.read_bytes()
    for folder in folders:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"a": f"../{other.name}"}}))
    refuse(tmp_path, ConfigurationError, "no files beside it", *folders, tmp_path / "out", 0.5)
    assert other.read_bytes() == before


def test_a_damaged_document_is_refused_by_its_name(runs, tmp_path):
    folders = [write_openvla(tmp_path / name, seed) for seed, name in enumerate(("old", "new"))]
    (folders[1] / "model.safetensors.index.json").write_text('{"weight_map": ')
    refuse(tmp_path, ConfigurationError, r"new/model\..*index", *folders, tmp_path / "out", 0.5)
    cut = shutil.copytree(runs[1], tmp_path / "cut")
    (cut / "model.json").write_text("{")
    refuse(tmp_path, TrainingError, r"cut/model\.json", runs[0], cut, tmp_path / "out", 0.5)


def test_other_networks_with_the_same_tensors_are_refused(runs, tmp_path):
    other = shutil.copytree(runs[1], tmp_path / "other")
    model = json.loads((other / "model.json").read_text())
    assert model["attention"] == "causal_prefix"
    (other / "model.json").write_text(json.dumps({**model, "attention": "bidirectional"}))
    told = "different networks: got attention;"
    refuse(tmp_path, TrainingError, told, runs[0], other, tmp_path / "out", 0.5)
    (other / "model.json").write_text(json.dumps({**model, "attention_backend": "sdpa"}))
    blend(runs[0], other, tmp_path / "out", 0.5)  # computes the same


@pytest.mark.parametrize(
    "change",
    [
        {"image_transform__mean": [0.4]},
        {"normalization__action": {"mode": "gaussian"}},
        {"prompt__template": "Q: {instruction}"},
        {"spec__state": {"names": ["joint_0"]}},
    ],
)
def test_runs_that_take_their_inputs_differently_are_refused(runs, tmp_path, change):
    other = shutil.copytree(runs[1], tmp_path / "other")
    (other / "processor" / "processor.json").write_text(json.dumps(described(**change)))
    key = next(iter(change)).replace("__", ".")
    told = f"take their inputs differently: got {key}"
    refuse(tmp_path, TrainingError, told, runs[0], other, tmp_path / "out", 0.5)


def test_what_may_differ_is_told_and_the_second_ones(runs, tmp_path, capsys):
    other = shutil.copytree(runs[0], tmp_path / "other")
    assert blend(runs[0], other, tmp_path / "same", 0.5)["differences"] == []
    moved = described(spec__action={"frame": "fr3"}, image_transform__crop=0.9)
    (other / "processor" / "processor.json").write_text(json.dumps(moved))
    (other / "processor" / "stats.json").write_text(json.dumps({"action": {"q01": [7]}}))
    assert main(["blend", str(runs[0]), str(other), "--out", str(tmp_path / "out")]) == 0
    told = ["image_transform.crop", "spec.action.frame", "statistics"]
    assert json.loads((tmp_path / "out/blend.json").read_text())["differences"] == told
    assert f"AFTER's in the blend: {', '.join(told)}" in capsys.readouterr().err


def test_a_run_in_openvla_s_layout_and_a_repository_are_found(tmp_path, monkeypatch):
    old = write_openvla(tmp_path / "hub", 1)
    new = write_openvla(tmp_path / "tuned" / "openvla", 2)
    (tmp_path / "tuned" / "config.json").write_text("{}")  # the run's own
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(old))
    told = blend("openvla/openvla-7b", tmp_path / "tuned", tmp_path / "out", 0.5)
    assert told["tensors"] == 5
    mixed = tmp_path / "out" / "openvla"
    assert json.loads((mixed / "config.json").read_text())["seed"] == 2
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    assert weights(mixed).keys() == weights(new).keys() and not weights(tmp_path / "out")
    refuse(tmp_path, ConfigurationError, "not found", "a/b/c", new, tmp_path / "second", 0.5)


def test_what_is_no_checkpoint_is_refused(runs, tmp_path):
    out = tmp_path / "out"
    refuse(tmp_path, TrainingError, "no checkpoint", tmp_path, runs[1], out, 0.5)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    refuse(tmp_path, TrainingError, "cannot be read", tmp_path, runs[1], out, 0.5)
    out.mkdir()
    refuse(tmp_path, TrainingError, "exists already", *runs, out, 0.5)


@pytest.mark.parametrize(
    ("alpha", "parts", "message"),
    [
        (1.5, {}, "alpha"),
        (float("nan"), {}, "alpha"),
        (0.5, {"visoin": 0.5}, "visoin"),
        (0.5, {"vision": -0.1}, "vision"),
    ],
)
def test_impossible_shares_are_refused(runs, tmp_path, alpha, parts, message):
    refuse(tmp_path, ConfigurationError, message, *runs, tmp_path / "out", alpha, parts=parts)


def test_the_command_blends_and_tells(runs, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["blend", *map(str, runs), "--alpha", "0.3", "--part", "vision=0", "--out", out]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["alpha"] == 0.3 and told["parts"] == {"vision": 0.0} and told["out"] == out
    assert main([*arguments[:-2], "--out", str(tmp_path / "second"), "--part", "vision"]) != 0
    assert "NAME=SHARE" in capsys.readouterr().err


def test_a_tied_model_blends_with_its_adapted_self(tmp_path):
    pytest.importorskip("peft", reason="needs the extra [lora]")
    from tiny_adapters import adapted

    config = tiny_config(llm=tiny_llm(tie_word_embeddings=True))
    build(config).save(tmp_path / "before")
    save_merged(adapted(config), tmp_path / "after")
    assert set(weights(tmp_path / "before")) == set(weights(tmp_path / "after"))
    blend(tmp_path / "before", tmp_path / "after", tmp_path / "out", 0.5)
    PrismaticVLA.load(tmp_path / "out")
