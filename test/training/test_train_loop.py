"""A run can be stopped, killed and shared among ranks, and is the same run; it says what it did."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import numpy as np
import torch
from tiny_run import (
    SHORT,
    assert_equal,
    assert_same_run,
    hash_files,
    make_parts,
    needs_teacher,
    read_scalars,
    read_state,
    read_weights,
    run_short,
)

from training import train as train_module
from training import trainer
from training.commands import consolidate as consolidate_command
from training.config import RunConfig
from training.consolidate import consolidate, drop_weights
from training.evaluate import OfflineEvaluator
from training.golden_inputs import GOLDEN_INPUTS, choose_frames, write_golden_inputs
from training.measurements import build_watch
from training.model import PrismaticVLA
from training.parallel import Ranks
from training.recipes import find_recipe
from training.run_folder import Run
from training.train import count_trained, find_commit, train
from training.trainer import Trainer
from vla_align_ros.errors import TrainingError

pytestmark = [needs_teacher, pytest.mark.usefixtures("one_thread")]
VLA_ALIGN = [
    *(sys.executable, "-c"),
    "import sys; from vla_align_ros.cli import main; sys.exit(main(sys.argv[1:]))",
]
WAIT_S = 600.0


def start_debug(root: Path, out: Path) -> subprocess.Popen[str]:
    command = ["train", "--recipe", "debug_cpu", "--data", str(root), "--out", str(out), "--json"]
    return subprocess.Popen(
        [*VLA_ALIGN, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def debug_run(
    tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """debug_cpu from the command line: the run's folder and the last line of the output."""
    out = tmp_path_factory.mktemp("debug") / "run"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed, errors = start_debug(tabletop_data, out).communicate(timeout=WAIT_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(printed.splitlines()[-1])
    assert "Traceback" not in errors
    summary["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return out, summary


# -- a whole run ------------------------------------------------------------------------------
def test_debug_cpu_takes_less_than_a_minute_and_learns(
    debug_run: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = debug_run
    assert summary["cpu_s"] < 60.0  # of processor time: this machine may be shared
    state = read_state(out)
    assert state["step"] == 40 and [row["step"] for row in state["history"]] == [20.0, 40.0]
    losses = read_scalars(out)["loss/total"]
    assert [step for step, _ in losses] == [20, 40] and losses[1][1] < losses[0][1]
    assert summary["val/l1"] == state["history"][-1]["val/l1"] < state["history"][0]["val/l1"]


def test_a_run_says_what_it_was_and_what_it_took(debug_run: tuple[Path, dict[str, Any]]) -> None:
    out, summary = debug_run
    written = json.loads((out / "run.json").read_text())
    assert {key: summary[key] for key in written} == written
    assert written["recipe"] == "debug_cpu" and written["commit"] == find_commit()
    assert f"{os.cpu_count()} cores" in written["machine"]
    assert (written["steps"], written["samples"]) == (40, 320)
    assert written["samples_per_s"] == pytest.approx(320 / written["seconds"])
    assert written["parameters"] == sum(w.numel() for w in read_weights(out).values())
    config = RunConfig.from_dict(json.loads((out / "config.json").read_text()))
    assert config == find_recipe("debug_cpu")
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset == written["dataset"] and dataset["frames"] > 30


def test_a_tower_that_stays_frozen_counts_as_frozen(tabletop_data: Path, tmp_path: Path) -> None:
    counts = {}
    for rate in ("3e-5", "null"):
        parts = make_parts(tabletop_data, f"optim.vision_lr={rate}", "watch.every_steps=0")
        counts[rate] = count_trained(Trainer(parts, tmp_path / rate, progress=False))
    vision = sum(p.numel() for p in parts.objective.model.vision.parameters())
    every = sum(p.numel() for p in parts.objective.model.parameters())
    assert counts == {"3e-5": every, "null": every - vision}


def test_the_commit_is_the_one_that_git_names() -> None:
    here = Path(__file__).resolve().parents[2]
    asked = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    found = find_commit()
    if asked.returncode:
        assert found is None
    else:
        assert found is not None and found.removesuffix("+") == asked.stdout.strip()


def test_scalars_are_in_tensorboards_event_files(short: Path) -> None:
    scalars = read_scalars(short)
    history = read_state(short)["history"]
    for name in set(history[0]) - {"step"}:
        assert [step for step, _ in scalars[name]] == [3, 6, 9, 12]
        assert [value for _, value in scalars[name]] == pytest.approx([h[name] for h in history])
    assert {"val/first_frame_displacement_m", "val/first_frame_blind_m"} <= set(scalars)
    parts = ("loss/total", "loss/action", "loss/grounding", "align/cosine_layer_1")
    total, action, grounding, cosine = (scalars[name][-1][1] for name in parts)
    assert total == pytest.approx(action - 0.2 * cosine + 0.05 * grounding, abs=1e-5)
    assert scalars["optim/grad_norm"][-1][1] > 0.0


def test_the_wait_for_data_is_told_a_step_however_many_there_were(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(short, tmp_path / "out")
    run = Trainer(make_parts(tabletop_data, *SHORT), out, progress=False)
    run._resume()  # behind step 12, having waited for nothing
    told = list[float]()
    monkeypatch.setattr(run.progress, "log", lambda _, values: told.append(values["data/wait_ms"]))
    for run.step, run.loader.waited_s in ((20, 0.8), (40, 2.8), (45, 3.3)):
        run._log({"loss/total": torch.zeros(())})
    assert told == pytest.approx([100.0, 100.0, 100.0])


# -- the same run after a stop ----------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_or_preempted_run_continues_to_the_same_run(
    tabletop_data: Path,
    debug_run: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed = tmp_path / "killed"
    process = start_debug(tabletop_data, killed)
    deadline_s = time.monotonic() + WAIT_S
    while not (killed / "checkpoints/step_00000020").exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=WAIT_S)
    assert not (killed / "run.json").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and read_state(killed)["step"] == 20
    else:
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        if number == signal.SIGINT:  # a script around it ends, too
            assert process.returncode == 128 + signal.SIGINT
        else:
            told = json.loads(printed.splitlines()[-1])
            assert process.returncode == 0 and told["stopped"] == name
        step = read_state(killed)["step"]
        assert 20 < step < 40
        assert f"{killed}: {name} after step {step} of 40, which is saved; the same" in printed
    capsys.readouterr()
    train("debug_cpu", [tabletop_data], killed, progress=False)
    told = f"{killed}: 40 steps are done; `vla-align export {killed} --out BUNDLE` comes next\n"
    assert capsys.readouterr().out == told
    assert_same_run(killed, debug_run[0])


@pytest.mark.parametrize("at", [5, 10])
def test_a_stopped_run_equals_the_uninterrupted_one(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    step = Trainer._train_step

    def stop(self: Trainer) -> Any:
        if self.step == at:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_short(tabletop_data, tmp_path)
    assert read_state(tmp_path)["step"] == at - at % 4
    torch.manual_seed(99)  # what the new process did before must not matter
    run_short(tabletop_data, tmp_path)
    assert_same_run(tmp_path, short)


def test_random_numbers_go_on_where_they_stopped(
    tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = find_recipe("debug_cpu").model.llm.config
    dropout = "model.llm.config=" + json.dumps({**(llm or {}), "attention_dropout": 0.2})
    run_short(tabletop_data, tmp_path / "whole", dropout)
    run_short(tabletop_data, tmp_path / "stopped", dropout)
    shutil.rmtree(max((tmp_path / "stopped/checkpoints").iterdir()))  # back to step 8
    run_short(tabletop_data, tmp_path / "stopped", dropout)
    assert_equal(*(read_weights(tmp_path / name) for name in ("whole", "stopped")))


@pytest.mark.parametrize("where", ["consolidate", "save_checkpoint"])
def test_a_run_that_dies_while_writing_its_end_is_finished(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner: Any = trainer if where == "save_checkpoint" else train_module
    original, calls = getattr(owner, where), []

    def die_at_the_end(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3 or where == "consolidate":
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, die_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            run_short(tabletop_data, tmp_path)
    run_short(tabletop_data, tmp_path)
    assert_same_run(tmp_path, short)


@pytest.mark.parametrize("left", ["all", "weights"])
def test_a_run_that_was_consolidated_on_its_way_ends_with_its_last_weights(
    tabletop_data: Path, short: Path, tmp_path: Path, left: str
) -> None:
    stopped = shutil.copytree(short, tmp_path / "stopped")
    shutil.rmtree(max((stopped / "checkpoints").iterdir()))  # back to step 8
    (stopped / "run.json").unlink()
    consolidate(stopped)
    if left == "weights":  # killed between the two files
        (stopped / "model.json").unlink()
    run_short(tabletop_data, stopped)
    assert_equal(read_weights(stopped), read_weights(short))
    PrismaticVLA.load(stopped)


def test_a_run_that_goes_on_is_no_longer_read_from_what_was_consolidated_on_its_way(
    tabletop_data: Path,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = shutil.copytree(short, tmp_path / "stopped")
    shutil.rmtree(max((stopped / "checkpoints").iterdir()))  # back to step 8
    (stopped / "run.json").unlink()
    consolidate(stopped)
    halfway = dict(Run.open(stopped).load_after().state_dict())
    assert_equal(halfway, dict(PrismaticVLA.load(stopped).state_dict()))

    def die(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "consolidate", die)
    with pytest.raises(KeyboardInterrupt):
        run_short(tabletop_data, stopped)
    assert "removed model.safetensors, model.json of" in capsys.readouterr().err
    newest = dict(Run.open(stopped).load_after().state_dict())
    assert_equal(newest, dict(PrismaticVLA.load(short).state_dict()))


@pytest.mark.parametrize("finished", [False, True])
def test_what_a_finished_run_left_is_never_removed(tmp_path: Path, finished: bool) -> None:
    (tmp_path / "openvla").mkdir()
    (tmp_path / "openvla/adapter_config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    if finished:
        (tmp_path / "run.json").write_text("{}")
    drop_weights(tmp_path)
    assert (tmp_path / "openvla").exists() is finished and (tmp_path / "config.json").exists()


def test_weights_of_an_earlier_step_go_into_another_folder(short: Path, tmp_path: Path) -> None:
    before = hash_files(short)
    for out in (None, short):
        with pytest.raises(TrainingError, match=r"got step 8 for .*give --out DIR"):
            consolidate(short, out, step=8)
    assert hash_files(short) == before
    told = consolidate(short, tmp_path / "out", step=8)
    assert told["step"] == 8 and PrismaticVLA.load(tmp_path / "out")
    consolidate(short, step=12)  # the newest
    assert hash_files(short) == before


def test_a_measurement_that_fails_costs_no_step(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = OfflineEvaluator.measure, list[int]()

    def fail_at_the_end(self: OfflineEvaluator, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 4:  # after steps 3, 6 and 9: after step 12, the last
            raise MemoryError
        return measure(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(OfflineEvaluator, "measure", fail_at_the_end)
        with pytest.raises(MemoryError):
            run_short(tabletop_data, tmp_path)
    assert read_state(tmp_path)["step"] == 12
    run_short(tabletop_data, tmp_path)
    assert_same_run(tmp_path, short)


def test_measuring_draws_no_random_number(tabletop_data: Path, tmp_path: Path) -> None:
    parts = make_parts(tabletop_data, "watch.every_steps=1", "evaluate_every=1")
    write_golden_inputs(parts.data, parts.processor, tmp_path / GOLDEN_INPUTS)
    run = Trainer(parts, tmp_path, progress=False)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    kept = list[int]()
    with run.progress.open(0):
        for step in (0, 1):
            run.measurements.take_if_due(step, lambda: kept.append(1))
    assert len(kept) == 3  # the sight twice, and an evaluation
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_a_run_s_attention_is_drawn_of_different_episodes(
    tabletop_data: Path, tmp_path: Path
) -> None:
    parts = make_parts(tabletop_data, "watch.scenes=16", "watch.attention_scenes=3")
    write_golden_inputs(parts.data, parts.processor, tmp_path / GOLDEN_INPUTS)
    watch = build_watch(parts, tmp_path, Ranks())
    assert watch is not None
    of = parts.data.episode[choose_frames(parts.data)]
    assert len(of) > len(set(of[:3].tolist())) < 3  # the first scenes are of one or two episodes
    assert len(set(of[watch.drawn].tolist())) == 3


def test_a_finished_run_stays_as_it_is(
    tabletop_data: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at it later, with newer code on another machine, has not trained it."""
    before = hash_files(short)
    monkeypatch.setattr(train_module, "find_commit", lambda: "a later commit")
    monkeypatch.setattr(train_module, "describe_machine", lambda: "another machine")
    again = run_short(tabletop_data, short)
    after = hash_files(short)
    fixed = [name for name in before if not name.startswith("tensorboard")]
    assert {name: after[name] for name in fixed} == {name: before[name] for name in fixed}
    assert again == json.loads((short / "run.json").read_text())


def test_consolidate_says_where_the_weights_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"run": "r", "step": 8, "weights": "r/model.safetensors"}
    monkeypatch.setattr("training.consolidate.consolidate", lambda *_, **__: told)
    parser = argparse.ArgumentParser()
    consolidate_command.add_arguments(parser)
    assert consolidate_command.run(parser.parse_args(["r"])) == told
    assert capsys.readouterr().out == "r/model.safetensors: step 8\n"
