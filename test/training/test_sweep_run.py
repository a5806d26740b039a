"""A sweep runs, goes on, stops and survives a cell that fails, with real training runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_run import SHORT, needs_teacher
from torch.distributed.run import get_args_parser

from training.checkpoint import list_checkpoints
from training.recipes import find_recipe
from training.settings import override
from training.sweep import LOCK_FILE, SweepPlan, _lock, expand_axes, make_cells, run_sweep
from training.sweep_cells import CellRunner
from vla_align_ros.errors import ConfigurationError, TrainingError

WAIT_S = 600.0
STEPS = ("optim.steps=4", "optim.vision_from_step=3", "evaluate_every=4", "checkpoint_every=4")
VLA_ALIGN = [
    *(sys.executable, "-c"),
    "import sys; from vla_align_ros.cli import main; sys.exit(main(sys.argv[1:]))",
]


@pytest.fixture(autouse=True)
def one_thread_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@needs_teacher
def test_a_failing_cell_is_named_and_the_others_run_and_are_kept(
    tabletop_data: Path, tmp_path: Path
) -> None:
    rows = expand_axes(["alignment.layers=[1],[9],[2]"])
    plan = SweepPlan("debug_cpu", (str(tabletop_data),), rows, settings=STEPS)
    told: list[str] = []
    result = run_sweep(plan, tmp_path, jobs=2, tell=told.append)
    assert not result["ok"] and not result["complete"]
    (failed,) = result["failed"]
    assert failed["row"] == "alignment.layers=[9]"
    assert "got alignment layers (9,); expected numbers from 0 to 2" in failed["error"]
    assert "fix: --set alignment.layers=[1]" in failed["error"]
    assert len(told) == 4 and any("FAILED: got alignment layers (9,)" in line for line in told)
    runs = {run["row"]: run for run in result["runs"]}
    for layer in (1, 2):
        run = runs[f"alignment.layers=[{layer}]"]
        summary = json.loads((Path(run["folder"]) / "run.json").read_text())
        assert run["status"] == "done" and run["metrics"]["val/l1"] == summary["val/l1"]
        config = json.loads((Path(run["folder"]) / "config.json").read_text())
        expected = override(find_recipe("debug_cpu"), [*STEPS, f"alignment.layers=[{layer}]"])
        assert config == json.loads(json.dumps(expected.to_dict()))
    assert runs["alignment.layers=[1]"]["metrics"] != runs["alignment.layers=[2]"]["metrics"]

    # The same sweep without the impossible row: what is finished is taken as it is.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    fewer = SweepPlan("debug_cpu", (str(tabletop_data),), (rows[0], rows[2]), settings=STEPS)
    result = run_sweep(fewer, tmp_path, tell=told.append)
    assert result["ok"] and result["complete"] and told[-1].startswith("2 runs, 2 of them finished")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")} == before
    assert (tmp_path / "comparison.md").read_text().count("\n| alignment.layers=") == 3

    other = SweepPlan("debug_cpu", (str(tabletop_data),), rows, settings=("optim.steps=5",))
    with pytest.raises(TrainingError, match=r"holds another sweep: got settings=\['optim.steps=5"):
        run_sweep(other, tmp_path)


@needs_teacher
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_sweep_with_its_runs_saved_and_it_goes_on_from_there(
    tabletop_data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    steps = 200_000
    arguments = ["sweep", "--recipe", "debug_cpu", "--data", str(tabletop_data), "--out"]
    command = [*arguments, str(tmp_path), "--axis", "alignment.weight=0,0.2", "--json", "--set"]
    settings = [*SHORT, f"optim.steps={steps}", f"evaluate_every={steps}", "checkpoint_every=20"]
    sweep = subprocess.Popen(
        [*VLA_ALIGN, *command, *settings], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    first = tmp_path / "runs/alignment.weight=0/seed_0"
    deadline_s = time.monotonic() + WAIT_S
    while not list_checkpoints(first / "checkpoints"):
        assert sweep.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    sweep.send_signal(number)
    printed, _ = sweep.communicate(timeout=WAIT_S)
    if number == signal.SIGINT:
        assert sweep.returncode == 128 + signal.SIGINT
        result = json.loads((tmp_path / "comparison.json").read_text())
    else:
        assert sweep.returncode == 0
        result = json.loads(printed.splitlines()[-1])
        assert result["ok"] and not result["complete"]
    assert [run["status"] for run in result["runs"]] == ["stopped", "stopped"]
    saved = list_checkpoints(first / "checkpoints")[-1].name
    assert not (tmp_path / "runs/alignment.weight=0.2").exists()  # never started
    step = int(saved.rpartition("_")[2])
    assert 20 <= step < steps

    # Nothing holds the lock any more, so the same sweep can be taken up.
    with _lock(tmp_path):
        pass


def test_a_run_that_outlives_a_killed_sweep_keeps_another_one_out(tmp_path: Path) -> None:
    with _lock(tmp_path) as lock:
        run = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=(lock.fileno(),),
        )
    plan = SweepPlan("debug_cpu", ("data",), expand_axes(["optim.lr=1"]))
    with pytest.raises(TrainingError, match=r"A sweep already runs in .*or by a run that outlived"):
        run_sweep(plan, tmp_path)
    run.communicate()
    with _lock(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_ranks_that_are_stopped_have_time_to_save_and_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SweepPlan("debug_cpu", ("data",), expand_axes(["optim.lr=1"]))
    (cell,) = make_cells(plan, tmp_path)
    with (tmp_path / "lock").open("w") as lock:
        runner = CellRunner("debug_cpu", plan.data, None, 1, 2, lock.fileno())
        launched = runner._build_command(cell)
        assert launched[1:3] == ["-m", "torch.distributed.run"]
        given = get_args_parser().parse_args(launched[3:])
        assert given.shutdown_timeout == 600 and given.nproc_per_node == "2"
        # As torchrun ends when it is told to: with 1.
        ends = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); print('ready', flush=True)"
        command = [sys.executable, "-c", f"import signal, sys; {ends}; signal.pause()"]
        monkeypatch.setattr(runner, "_build_command", lambda cell: command)
        with ThreadPoolExecutor() as pool:
            outcome = pool.submit(runner.run, cell)
            deadline_s = time.monotonic() + WAIT_S
            while not (cell.log.exists() and "ready" in cell.log.read_text()):
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            runner.stop(signal.SIGTERM)
    assert (outcome.result().status, outcome.result().error) == ("stopped", None)


@needs_teacher
def test_a_run_that_is_killed_is_named_with_its_signal(
    tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's out-of-memory killer sends SIGKILL; here the run does it to itself."""
    killer = tmp_path / "sitecustomize.py"
    killer.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plan = SweepPlan("debug_cpu", (str(tabletop_data),), expand_axes(["optim.steps=4"]))
    result = run_sweep(plan, tmp_path / "out", tell=lambda line: None)
    assert result["failed"][0]["error"].startswith("killed by SIGKILL")
    assert "killed by SIGKILL" in (tmp_path / "out/comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Nothing to compare: got neither --axis nor --table"),
        (["--axis", "optim.lr=1", "--seeds", "1,1"], "Wrong value for --seeds: got '1,1'"),
        (["--axis", "optim.lr=1", "--seeds", "a"], "Wrong value for --seeds: got 'a'"),
        (["--axis", "optim.lr=1", "--jobs", "0"], "Wrong value for --jobs: got 0"),
        (["--table", "paper"], "No such --table: got 'paper'; expected one of paper_baselines"),
        (["--table", "paper_losses", "--reference", "l2"], "No such row: got 'l2'"),
        (["--axis", "optim.rate=1"], "cannot be configured: No such setting: got optim.rate"),
    ],
)
def test_wrong_usage_is_one_clear_error_and_runs_nothing(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    from training.commands import sweep

    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    required = ["--recipe", "debug_cpu", "--data", "d", "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigurationError) as error:
        sweep.run(parser.parse_args([*required, *arguments]))
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == []
