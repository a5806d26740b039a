"""The trainer carries every part: OpenVLA with LoRA or in 4 bits, questions, an insulated head."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [lora]")

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import assert_equal, needs_teacher, read_scalars, read_state, read_weights, run_short

from training.benchmark.policies import identify, open_policy
from training.blend import blend
from training.checkpoint import list_checkpoints
from training.commands.consolidate import add_arguments, run
from training.consolidate import consolidate
from training.model import PrismaticVLA
from training.model.checkpoint import is_consolidated
from training.model.openvla import load_openvla
from training.preview import preview
from training.recipes import find_recipe
from training.run_folder import Run
from training.setup_model import find_base
from training.train import train
from vla_align_ros.errors import ConfigurationError, TrainingError

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import openvla_layout as layout

pytestmark = [needs_teacher, pytest.mark.usefixtures("one_thread")]
OPENVLA = (
    *("optim.steps=4", "optim.batch_size=4", "checkpoint_every=2", "evaluate_every=4"),
    *("data.validation=0.2", "data.workers=1", "data.drop_near_zero=false", "optim.lr=1e-2"),
    *("adapter.rank=2", "alignment.layers=[1]", "alignment.hidden=16", "alignment.trainable=true"),
    *("teacher.name=embedded", "teacher.layer=8", "watch.every_steps=0", "precision=fp32"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in OpenVLA's layout."""
    with np.load(Path(__file__).parent / "golden" / "openvla_tiny.npz") as stored:
        shapes = json.loads(str(stored["shapes"]))
    path = tmp_path_factory.mktemp("openvla") / "tiny"
    layout.write_folder(path, shapes)
    return path


def train_openvla(data: Path, out: Path, base: Path, *settings: str, recipe: str) -> dict[str, Any]:
    # With two threads sums may be added in another order, and the last bits differ.
    settings = (*OPENVLA, "threads=1", *settings)
    options = {"base": str(base), "settings": settings, "progress": False}
    return train(recipe, [data], out, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tuned(tabletop_data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    train_openvla(tabletop_data, out, base, recipe="openvla_7b_align")
    return out


def test_openvla_is_tuned_and_comes_back_in_its_own_layout(tuned: Path, base: Path) -> None:
    told = json.loads((tuned / "run.json").read_text())
    assert told["trained_parameters"] < 0.5 * told["parameters"]
    assert np.isfinite(told["val/l1"]) and told["align/cosine_layer_1"] < 1.0
    opened = load_openvla(tuned / "openvla", dtype=torch.float32)
    name = json.loads((tuned / "dataset.json").read_text())["name"]
    assert list(opened.norm_stats) == [name]
    start = load_openvla(base, dtype=torch.float32).model.state_dict()
    after = opened.model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, start[key])}
    adapted = ("attn.qkv", "q_proj", "down_proj", "projector.")  # towers, LLM, and between them
    assert all(any(part in key for key in moved) for part in adapted)
    assert not any("norm" in key or "embed_tokens" in key for key in moved)
    assert not (tuned / "model.safetensors").exists()


def test_a_finished_run_in_that_layout_is_a_base(tuned: Path, tabletop_data: Path) -> None:
    config = dataclasses.replace(find_recipe("openvla_7b_align"), base=str(tuned))
    found = find_base(config)
    assert found.base == str((tuned / "openvla").resolve())
    assert found.model == find_base(dataclasses.replace(config, base=found.base)).model
    assert preview("openvla_7b_align", base=str(tuned))["missing_keys"] == []


def test_it_blends_with_what_it_was_tuned_from(tuned: Path, base: Path, tmp_path: Path) -> None:
    blend(base, tuned, tmp_path / "out", 0.0)
    start = load_openvla(base, dtype=torch.float32).model.state_dict()
    assert_equal(
        dict(load_openvla(tmp_path / "out/openvla", dtype=torch.float32).model.state_dict()),
        dict(start),
    )
    blend(base, tuned / "openvla", tmp_path / "plain", 0.0)  # no run was named, so none is made
    assert (tmp_path / "plain/config.json").read_bytes() == (
        tuned / "openvla/config.json"
    ).read_bytes()
    assert not (tmp_path / "plain/openvla").exists()


def test_a_tuned_openvla_is_exported_from_its_own_layout_and_proved(
    tuned: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    from training.export.bundle import export_run
    from training.export.preview import preview_export
    from training.export.torch_policy import load_policy, rebuild_from_bundle
    from vla_align_ros.contract.bundle import Bundle

    planned = preview_export(tuned)["graphs"]
    result = export_run(tuned, tmp_path / "bundle", say=lambda _line: None)
    bundle = Bundle.open(tmp_path / "bundle")
    assert result["ok"] and [spec.name for spec in bundle.acting_graphs] == list(planned)
    wanted = load_openvla(tuned / "openvla", dtype=torch.float32).model.state_dict()
    policy = load_policy(tuned, dtype=torch.float32, device=torch.device("cpu"))
    for network in (policy.module.model, rebuild_from_bundle(bundle)):
        found = network.state_dict()
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert bundle.manifest["provenance"]["config"]["base"] == "tiny"
    assert str(tuned.parent) not in json.dumps(bundle.manifest["provenance"])


def test_a_blend_of_a_tuned_openvla_is_exported_like_any_other_run(
    tuned: Path, base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    from training.export.bundle import export_run
    from vla_align_ros.contract.bundle import Bundle

    mixed = tmp_path / "mixed"
    told = blend(base, tuned, mixed, 0.5)
    assert told["distance"] > 0.0
    here = {path.name for path in mixed.iterdir()}
    assert here >= {"config.json", "processor", "golden_inputs.npz", "openvla", "blend.json"}
    assert not here & {"checkpoints", "run.json", "tensorboard", "report.html"}
    assert export_run(mixed, tmp_path / "bundle", say=lambda _line: None)["ok"]
    provenance = Bundle.open(tmp_path / "bundle").manifest["provenance"]
    assert provenance["blend"]["alpha"] == 0.5
    config = dataclasses.replace(find_recipe("openvla_7b_align"), base=str(mixed))
    assert find_base(config).base == str(mixed / "openvla")


def test_a_tuned_openvla_acts_in_an_evaluation_under_an_id_of_its_own(
    tuned: Path, tmp_path: Path
) -> None:
    policy = open_policy(tuned)
    policy.warm_up()
    policy.close()
    assert policy.bundle_id == identify(tuned) and len(policy.bundle_id) == 64
    other = shutil.copytree(tuned, tmp_path / "other")
    shard = next((other / "openvla").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert identify(other) != policy.bundle_id


def test_an_openvla_run_with_an_adapter_alone_says_how_it_becomes_whole(
    tuned: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    from training.export.bundle import export_run

    run = shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(run / "openvla")
    with pytest.raises(TrainingError, match=r"no weights of a whole.*fix: vla-align consolidate"):
        export_run(run, tmp_path / "bundle")
    consolidate(run, lora="apart")
    with pytest.raises(TrainingError, match=r"an adapter alone.*fix: vla-align consolidate"):
        export_run(run, tmp_path / "bundle")
    with pytest.raises(ConfigurationError, match=r"an adapter alone.*fix: `vla-align consolidate"):
        find_base(dataclasses.replace(find_recipe("openvla_7b_align"), base=str(run)))
    assert not is_consolidated(run)
    newest = Run.open(run).load_after().state_dict()  # the adapter's checkpoint
    assert any("lora" in name for name in newest)


def test_a_head_that_openvla_does_not_have_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none but model\.attention_backend") as error:
        train_openvla(
            tmp_path, tmp_path / "out", base, "model.head.hidden=64", recipe="openvla_7b_align"
        )
    assert error.value.got == "model.head.hidden"


def put_on_another_base(run: Path, base: Path, folder: Path) -> Path:
    """Change one weight of a copy of the base, and let a run's configuration name that."""
    other = shutil.copytree(base, folder)
    shard = sorted(other.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    first = min(name for name in tensors if name.endswith("weight"))
    save_file({**tensors, first: tensors[first] + 1.0}, shard, metadata={"format": "pt"})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "base": str(other)}))
    return other


def test_checkpoints_of_an_adapter_hold_what_trains_and_check_the_rest(
    tuned: Path, base: Path, tabletop_data: Path, tmp_path: Path
) -> None:
    names = [name for name in read_state(tuned)["tensors"] if name.startswith("objective/")]
    assert all(".lora_" in name or "aligner.projectors" in name for name in names)
    broken = shutil.copytree(tuned, tmp_path / "r")
    shutil.rmtree(list_checkpoints(broken / "checkpoints")[-1])
    other = put_on_another_base(broken, base, tmp_path / "other")
    with pytest.raises(TrainingError, match=r"trained on other frozen weights.*base model"):
        train_openvla(tabletop_data, broken, other, recipe="openvla_7b_align")


def test_an_adapter_is_not_merged_into_another_base_than_its_own(
    tuned: Path, base: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tuned, tmp_path / "run")
    put_on_another_base(run, base, tmp_path / "other")
    with pytest.raises(TrainingError, match=r"trained on other frozen weights.*base model"):
        consolidate(run)
    for path in (tuned / "openvla").glob("*.safetensors"):
        assert path.read_bytes() == (run / "openvla" / path.name).read_bytes(), "as it was"


def test_a_run_with_an_adapter_goes_on_bit_for_bit(
    tuned: Path, base: Path, tabletop_data: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(tuned, tmp_path / "again")
    shutil.rmtree(list_checkpoints(again / "checkpoints")[-1])
    shutil.rmtree(again / "openvla")
    train_openvla(tabletop_data, again, base, recipe="openvla_7b_align")
    assert_equal(read_state(again)["tensors"], read_state(tuned)["tensors"])
    for path in (tuned / "openvla").glob("*.safetensors"):
        assert path.read_bytes() == (again / "openvla" / path.name).read_bytes()


def test_the_adapter_can_be_written_apart_from_any_checkpoint(tuned: Path, tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = f"{tuned} --out {tmp_path} --step 2 --lora apart"
    told = run(parser.parse_args(text.split()))
    assert told["step"] == 2 and Path(told["weights"]) == tmp_path / "openvla"
    stored = load_file(tmp_path / "openvla" / "adapter_model.safetensors")
    assert stored and all("lora_" in name for name in stored)
    with pytest.raises(TrainingError, match=r"no such checkpoint.*expected step 3"):
        consolidate(tuned, tmp_path / "other", step=3)


def test_a_quantised_base_trains_with_8_bit_moments(
    tabletop_data: Path, base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra [qlora]")
    settings = ("parallel.accumulate=2", "adapter.rank=64", "optim.steps=2")
    told = train_openvla(tabletop_data, tmp_path, base, *settings, recipe="openvla_7b_qlora")
    kinds = {name.rsplit("/", 1)[1]: v for name, v in read_state(tmp_path)["tensors"].items()}
    assert kinds["state1"].dtype in (torch.uint8, torch.float32) and "qmap1" in kinds
    assert np.isfinite(told["loss/total"])
    again = shutil.copytree(tmp_path, tmp_path.with_name("again"))
    (again / "run.json").unlink()
    settings = (*settings, "optim.steps=2")
    assert train_openvla(tabletop_data, again, base, *settings, recipe="openvla_7b_qlora")


# -- small students ---------------------------------------------------------------------------
def write_questions(folder: Path) -> Path:
    folder.mkdir()
    for number in range(6):
        shade = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number}.png")
    lines = [
        {"image": f"{n}.png", "question": "put the carrot", "answer": "on the plate"}
        for n in range(6)
    ]
    (folder / "all.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_questions_and_action_tokens_train_an_insulated_backbone(
    tabletop_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = {"path": str(write_questions(tmp_path / "vqa")), "batch_size": 4, "weight": 0.5}
    questions |= {"end_token": "<unk>", "question_tokens": 16, "answer_tokens": 8}
    with (tmp_path / "vqa/all.jsonl").open("a") as file:
        longer = {"image": "0.png", "question": "put the carrot " * 9, "answer": "on the plate"}
        file.write("\n" + json.dumps(longer))
    settings = (
        *(f"vqa={json.dumps(questions)}", "model.head.insulate=true", "loss.tokens=0.3"),
        *("parallel.accumulate=2", "optim.vision_from_step=0", "precision=fp32"),
    )
    run_short(tabletop_data, tmp_path / "whole", *settings)
    assert "left out of the questions: 1 longer than 16 tokens" in capsys.readouterr().err
    described = json.loads((tmp_path / "whole/dataset.json").read_text())
    assert described["questions"]["samples"] == 7
    scalars = read_scalars(tmp_path / "whole")
    names = ("loss/action", "loss/grounding", "loss/tokens", "loss/vqa", "align/cosine_layer_1")
    action, grounding, tokens, vqa, cosine = (scalars[name][-1][1] for name in names)
    total = action + 0.05 * grounding + 0.3 * tokens + 0.5 * vqa - 0.2 * cosine
    assert scalars["loss/total"][-1][1] == pytest.approx(total, rel=1e-4)
    assert read_state(tmp_path / "whole")["position"]["questions"] == {"samples": 12 * 4}
    stopped = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(list_checkpoints(stopped / "checkpoints")[-1])
    (stopped / "model.safetensors").unlink()
    run_short(tabletop_data, stopped, *settings)
    assert_equal(read_weights(stopped), read_weights(tmp_path / "whole"))
    PrismaticVLA.load(stopped)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["loss.tokens=1"], "loss.tokens 1.0 without model.head.insulate"),
        (
            ["model.head.insulate=true", "alignment.weight=0", "loss.grounding=0"],
            "insulate and no other loss",
        ),
        (["alignment.at=encoder", "optim.vision_lr=null"], "encoder with optim.vision_lr null"),
        (["alignment.at=encoder", "optim.vision_lr=0"], "encoder with optim.vision_lr 0.0"),
        (
            ["alignment.at=encoder", "optim.vision_from_step=12"],
            "encoder with optim.vision_from_step 12 of 12 steps",
        ),
        (
            ["loss.displacement=1", "model.head.kind=tokens", "model.head.horizon=1"],
            "loss.displacement 1.0 with model.head.kind tokens",
        ),
        (["model.grounding=null"], "loss.grounding 0.05 without model.grounding"),
        (
            [
                *("alignment.at=encoder", "optim.vision_lr=null", "adapter.kind=lora"),
                'adapter.full=["vision"]',  # which the rate keeps still all the same
            ],
            "encoder with optim.vision_lr null",
        ),
    ],
)
def test_losses_that_reach_nothing_are_refused(
    tabletop_data: Path, tmp_path: Path, settings: list[str], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"(learn|nothing): got .*{told}"):
        run_short(tabletop_data, tmp_path, *settings)


def test_questions_that_do_not_divide_into_the_pieces_are_refused(
    tabletop_data: Path, tmp_path: Path
) -> None:
    questions = {"path": str(write_questions(tmp_path / "vqa")), "batch_size": 6}
    settings = (f"vqa={json.dumps(questions)}", "parallel.accumulate=4", "loss.grounding=0")
    with pytest.raises(ConfigurationError, match=r"vqa\.batch_size: got 6; .*times 4 piece"):
        run_short(tabletop_data, tmp_path / "run", *settings)


def test_pieces_of_a_batch_add_up_to_the_batch(tabletop_data: Path, tmp_path: Path) -> None:
    exact = ("precision=fp32", "optim.steps=4", "optim.vision_from_step=2")
    run_short(tabletop_data, tmp_path / "whole", *exact)
    run_short(tabletop_data, tmp_path / "pieces", *exact, "parallel.accumulate=4")
    whole, pieces = (read_weights(tmp_path / name) for name in ("whole", "pieces"))
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-3, atol=1e-4)
    totals = [read_scalars(tmp_path / n)["loss/total"][-1][1] for n in ("whole", "pieces")]
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
