"""What cannot be trained is refused in one sentence, and nothing that exists is harmed."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from lab_data import correct_tasks
from tiny_data import write_dataset
from tiny_run import (
    SHORT,
    assert_equal,
    assert_same_run,
    hash_files,
    make_parts,
    needs_teacher,
    read_state,
    run_short,
)

from training import checkpoint
from training.commands.train import add_arguments, run
from training.files import hold_alone
from training.model import PrismaticVLA
from training.optimizers import main_rate
from training.parallel import Ranks
from training.recipes import find_recipe
from training.settings import override
from training.train import train
from training.trainer import Trainer
from vla_align_ros.errors import ConfigurationError, DataError, TrainingError

pytestmark = [needs_teacher, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_checkpoint(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    parts = make_parts(tabletop_data, *SHORT)
    run = Trainer(parts, tmp_path, progress=False)
    batch, drawn = parts.load, list[list[int]]()

    def poison(indices: Any, **options: Any) -> Any:
        values = batch(indices, **options)
        if "passes" in options:  # a batch to train on, loaded ahead of its step
            drawn.append(indices.tolist())
            if len(drawn) == 6 and what == "loss":
                values["actions"][0, 0, 0] = float("nan")
        return values

    monkeypatch.setattr(parts, "load", poison)
    queries = parts.objective.model.action_queries
    assert queries is not None
    if what == "gradient":
        queries.register_hook(lambda grad: grad * float("inf") if run.step == 5 else grad)
    with pytest.raises(
        TrainingError, match=f"The {what} is not finite at step 5.*{tmp_path}"
    ) as told:
        run.run()
    if what == "loss":
        assert f"on samples {sorted(drawn[5])}" in str(told.value)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000004", "step_00000005"]  # the state before the bad step
    assert all(
        torch.isfinite(value).all()
        for value in read_state(tmp_path)["tensors"].values()
        if value.is_floating_point()
    )
    monkeypatch.undo()
    run_short(tabletop_data, tmp_path)
    assert_same_run(tmp_path, short)


def test_another_run_does_not_go_into_the_same_folder(
    tabletop_data: Path, short: Path, tmp_path: Path
) -> None:
    before = hash_files(short)
    with pytest.raises(TrainingError, match=r"got optim\.lr=0\.001; expected optim\.lr=0\.0005"):
        run_short(tabletop_data, short, "optim.lr=1e-3")
    with pytest.raises(TrainingError, match=r"got recipe=tabletop_align.* more; expected .*debug"):
        train("tabletop_align", [tabletop_data], short, progress=False)
    with pytest.raises(TrainingError, match="holds another run: got fingerprint="):
        train("debug_cpu", [tabletop_data, tabletop_data], short, settings=SHORT, progress=False)
    assert hash_files(short) == before


def test_a_run_goes_on_with_its_work_shared_and_watched_otherwise(
    tabletop_data: Path, short: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(short, tmp_path / "out")
    shutil.rmtree(max((out / "checkpoints").iterdir()))  # back to step 8
    (out / "run.json").unlink()
    others = ("parallel.strategy=fsdp", "parallel.device=cpu", "memory.checkpointing=true")
    others += ("data.workers=0", "data.decode_cache_gb=1", "threads=0", "watch.scenes=3")
    run_short(tabletop_data, out, *others, "evaluate_every=6", "checkpoint_every=5")
    states = [read_state(run)["tensors"] for run in (out, short)]
    assert_equal(*states)
    stored = json.loads((out / "config.json").read_text())
    assert stored["parallel"]["strategy"] == "fsdp" and stored["data"]["workers"] == 0
    assert stored["evaluate_every"] == 6 and stored["watch"]["scenes"] == 3
    with pytest.raises(TrainingError, match=r"got precision=fp32; expected precision=bf16"):
        run_short(tabletop_data, out, *others, "precision=fp32")


def test_a_tower_that_is_never_let_go_is_told_and_trains_all_the_same(
    tabletop_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("optim.steps=2", "optim.vision_from_step=2")
    run_short(tabletop_data, tmp_path, *few)
    assert capsys.readouterr().err.count("warning: optim.vision_from_step 2 of 2 steps") == 1
    assert not override(find_recipe("debug_cpu"), SHORT).warnings()
    config = override(find_recipe("tabletop_align"), ["optim.steps=400"])
    config.check()
    assert config.warnings()


def test_a_rate_that_never_reaches_its_peak_is_told() -> None:
    settings = ["optim.warmup_steps=5", "optim.vision_from_step=0"]
    reached = override(find_recipe("debug_cpu"), [*settings, "optim.steps=5"])
    assert not reached.warnings()
    (told,) = override(find_recipe("debug_cpu"), [*settings, "optim.steps=4"]).warnings()
    assert told == (
        "optim.warmup_steps 5 of 4 steps: the rate rises to 80% of optim.lr 0.0005 and no further"
    )
    assert main_rate(reached.optim, 3) == pytest.approx(0.8 * reached.optim.lr)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("training.files.fcntl.flock", refuse)
    with hold_alone(tmp_path / ".run.lock", TrainingError("held", got="it", expected="not")):
        assert "no lock, so start nothing twice there" in capsys.readouterr().err


def test_a_second_start_in_the_folder_is_refused_and_harms_nothing(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, told = checkpoint.dcp.save, list[str]()

    def start_again(*args: Any, **options: Any) -> Any:
        saved = save(*args, **options)
        with pytest.raises(TrainingError) as refused:
            run_short(tabletop_data, tmp_path)
        told.append(str(refused.value))
        return saved

    monkeypatch.setattr(checkpoint.dcp, "save", start_again)
    run_short(tabletop_data, tmp_path)
    assert len(told) == 3 and f"A run already trains in {tmp_path}" in told[0]
    assert_same_run(tmp_path, short)


def test_another_word_in_the_data_is_another_run(
    tabletop_data: Path, short: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tabletop_data, tmp_path / "data")
    correct_tasks(data, lambda text: text.replace("put", "lay"))
    out = shutil.copytree(short, tmp_path / "out")
    with pytest.raises(TrainingError, match="holds another run: got meaning="):
        run_short(data, out)


def test_other_weights_of_a_mixture_are_another_run(
    tabletop_data: Path, short: Path, tmp_path: Path
) -> None:
    few = (*SHORT, "optim.steps=2", "optim.vision_from_step=1")

    def start(weight: int) -> None:
        roots = [f"{tabletop_data}:{weight}", str(tabletop_data)]
        train("debug_cpu", roots, tmp_path / "out", settings=few, progress=False)

    start(2)
    with pytest.raises(TrainingError, match=r"got weights=\[3\.0, 1\.0\]; expected .*\[2\.0, 1"):
        start(3)


def test_a_run_that_an_older_version_described_goes_on(
    tabletop_data: Path, short: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(short, tmp_path / "out")
    described = json.loads((out / "dataset.json").read_text())
    older = {k: v for k, v in described.items() if k not in ("meaning", "weights")}
    (out / "dataset.json").write_text(json.dumps(older))
    run_short(tabletop_data, out)
    assert json.loads((out / "dataset.json").read_text()) == described


def test_a_refused_start_leaves_the_folder_to_the_corrected_one(
    tabletop_data: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_dataset(data, 20)  # without the simulator's labels
    with pytest.raises(TrainingError, match=r"no labels for grounding.*--set loss\.grounding=0"):
        run_short(data, out)
    assert not (out / "config.json").exists()
    few = ("loss.grounding=0", "optim.steps=2", "optim.vision_from_step=1")
    assert run_short(data, out, *few)["step"] == 2.0
    with pytest.raises(DataError, match=r"Cannot read.*vla-align collect"):
        run_short(tmp_path / "nowhere", tmp_path / "other")
    with pytest.raises(TrainingError, match="No episode is held out"):
        run_short(tabletop_data, tmp_path / "other", "data.validation=1e-9")
    with pytest.raises(
        ConfigurationError, match=r"got data\.image_size 70 px; expected.*\[56\].*image_size=56"
    ):
        run_short(tabletop_data, tmp_path / "other", "data.image_size=70")
    with pytest.raises(DataError, match="fills no batch"):
        run_short(tabletop_data, tmp_path / "other", "optim.batch_size=4096")
    with pytest.raises(DataError, match=r"No data set has this name: got data\.grippers of 'b'"):
        run_short(tabletop_data, tmp_path / "other", 'data.grippers={"b": "signed_open"}')
    correct_tasks(data, lambda text: "")
    expected = r"No frame is left.*got (\d+) frames, of them \1 unlabelled frames.*meta/tasks"
    with pytest.raises(TrainingError, match=expected):
        run_short(data, tmp_path / "other", *few)
    assert not (tmp_path / "other" / "checkpoints").exists()
    assert run_short(tabletop_data, tmp_path / "other", *few[1:])["step"] == 2.0


def test_every_set_and_data_option_counts(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = "--recipe r --out o --data a b --data c --set seed=1 threads=2 --set seed=3"
    args = parser.parse_args(text.split())
    assert args.data == ["a", "b", "c"] and args.set == ["seed=1", "threads=2", "seed=3"]
    assert override(find_recipe("debug_cpu"), args.set).seed == 3
    assert parser.parse_args(["--recipe", "r", "--out", "o", "--data", "a"]).set == []


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(
    tabletop_data: Path, tmp_path: Path
) -> None:
    parts = make_parts(tabletop_data, *SHORT)
    with pytest.raises(TrainingError, match="batch 8 on 3 ranks, in 1 piece"):
        Trainer(parts, tmp_path, ranks=Ranks(0, 3), progress=False)
    with pytest.raises(TrainingError, match="batch 8 on 1 ranks, in 3 piece"):
        thirds = make_parts(tabletop_data, *SHORT, "parallel.accumulate=3")
        Trainer(thirds, tmp_path, progress=False)


@pytest.mark.parametrize("given", [[], ["--data", "a"], ["--out", "b"]])
def test_training_without_data_or_folder_is_refused_before_anything(given: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigurationError, match="needs data and a folder for the run: got no --"):
        run(parser.parse_args(["--recipe", "debug_cpu", *given]))


def test_a_dry_run_needs_no_data_and_counts_what_would_train(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--recipe", "debug_cpu", "--dry-run", "--set", 'model.llm.config={"model_type":']
    options[-1] += '"llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,'
    options[-1] += '"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}'
    told = run(parser.parse_args(options))
    network = PrismaticVLA(override(find_recipe("debug_cpu"), options[-1:]).model)
    assert told["parameters"] == sum(p.numel() for p in network.parameters())
    assert told["missing_keys"] == told["unexpected_keys"] == [] and told["ok"]
    assert told["memory_gb"].keys() >= {"full", "lora", "qlora_nf4", "full_fsdp_8"}
    printed = capsys.readouterr().out
    assert f"{told['parameters']:,} parameters" in printed
    assert all(f"\n{name} " in printed for name in told["memory_gb"])


def test_a_dry_run_of_a_checkpoint_that_does_not_fit_ends_as_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"recipe": "r", "parameters": 1, "assumptions": {}, "memory_gb": {}}
    found["mismatched_shapes"] = ["head.weight"]
    monkeypatch.setattr("training.preview.preview", lambda *_, **__: found)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--recipe", "debug_cpu", "--dry-run"]))["ok"] is False
    assert "mismatched shapes: head.weight" in capsys.readouterr().out


def test_a_command_says_nothing_of_kernels_that_a_library_would_fetch() -> None:
    """A processor with AVX512-BF16 shows it; on another one the logger alone is looked at."""
    pytest.importorskip("bitsandbytes.backends.cpu.ops", reason="needs bitsandbytes' own name")
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    command = [sys.executable, "-c", "from vla_align_ros.cli import main; main()", "train"]
    command += ["--recipe", "debug_cpu"]
    told = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert "parameters" in told.stdout
    assert "kernels" not in told.stderr
