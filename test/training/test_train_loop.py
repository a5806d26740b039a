"""A run can be stopped, killed and shared among ranks, and is the same run; it says what it did."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from tiny_run import (
    assert_equal,
    assert_same_run,
    hash_files,
    needs_teacher,
    read_scalars,
    read_state,
    read_weights,
    run_short,
)

from training import setup_run, trainer
from training.config import RunConfig
from training.recipes import find_recipe
from training.train import find_commit, train
from training.trainer import Trainer

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


# -- the same run after a stop ----------------------------------------------------------------
def test_a_killed_run_continues_to_the_same_run(
    tabletop_data: Path, debug_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    process = start_debug(tabletop_data, killed)
    deadline_s = time.monotonic() + WAIT_S
    while not (killed / "checkpoints/step_00000020.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "run.json").exists() and read_state(killed)["step"] == 20
    train("debug_cpu", [tabletop_data], killed, progress=False)
    assert_same_run(killed, debug_run[0])


@pytest.mark.parametrize("at", [5, 10])
def test_a_stopped_run_equals_the_uninterrupted_one(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    step = Trainer._train_step

    def stop(self: Trainer, forward: Any) -> Any:
        if self.step == at:
            raise KeyboardInterrupt
        return step(self, forward)

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
    max((tmp_path / "stopped/checkpoints").iterdir()).unlink()  # back to step 8
    run_short(tabletop_data, tmp_path / "stopped", dropout)
    assert_equal(*(read_weights(tmp_path / name) for name in ("whole", "stopped")))


@pytest.mark.parametrize("where", ["PrismaticVLA.save", "save_checkpoint"])
def test_a_run_that_dies_while_writing_its_end_is_finished(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner: Any = trainer if where == "save_checkpoint" else setup_run.PrismaticVLA
    name = where.rpartition(".")[2]
    original, calls = getattr(owner, name), []

    def die_at_the_third(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run_short(tabletop_data, tmp_path)
    run_short(tabletop_data, tmp_path)
    assert_same_run(tmp_path, short)


def test_a_finished_run_stays_as_it_is(tabletop_data: Path, short: Path) -> None:
    before = hash_files(short)
    told = json.loads((short / "run.json").read_text())
    again = run_short(tabletop_data, short)
    after = hash_files(short)
    fixed = [name for name in before if not name.startswith(("tensorboard", "run.json"))]
    assert {name: after[name] for name in fixed} == {name: before[name] for name in fixed}
    assert again["seconds"] == pytest.approx(told["seconds"], rel=0.5)
    assert again["samples_per_s"] > 0.5 * told["samples_per_s"]


# -- several ranks ----------------------------------------------------------------------------
DRIVER = """
    import os, sys, torch
    from training import train
    from training.trainer import Trainer
    kept, run = sys.argv.pop(), Trainer.run

    def run_and_keep(self):
        result = run(self)
        torch.save(self.objective.state_dict(), kept + os.environ["RANK"])
        return result

    Trainer.run = run_and_keep
    train.main()
"""


def test_two_ranks_train_the_batch_of_one(tabletop_data: Path, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    settings = ["precision=fp32", "optim.steps=8", "optim.vision_from_step=4"]
    cache = tmp_path / "cache"  # empty: both ranks want to fill it
    options = ["--recipe", "debug_cpu", "--data", str(tabletop_data), "--cache", str(cache)]
    ranks = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(tmp_path / "driver.py"), *options, "--out", str(tmp_path / "two")),
            *("--set", *settings, str(tmp_path / "rank")),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ranks.returncode == 0, ranks.stderr
    first, second = (torch.load(tmp_path / f"rank{k}", weights_only=True) for k in (0, 1))
    assert_equal(dict(first), dict(second))
    one = train(
        *("debug_cpu", [tabletop_data], tmp_path / "one"),
        settings=settings,
        cache=cache,
        progress=False,
    )
    two = json.loads((tmp_path / "two/run.json").read_text())
    assert two["samples"] == one["samples"] == 64
    assert two["val/l1"] == pytest.approx(one["val/l1"], rel=1e-3)
    alone, shared = read_weights(tmp_path / "one"), read_weights(tmp_path / "two")
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=2e-4)
    assert len(list(cache.iterdir())) == 3
