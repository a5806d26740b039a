"""`vla-align evaluate --suite`: resumable, the same in one process or two, one report."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from sample_policy import make_bundle

from training import closed_loop
from training.benchmark import evaluate as front
from training.benchmark import run as runner
from training.benchmark.episode import Record
from training.benchmark.evaluate import Request, evaluate_suite
from training.benchmark.page import save_pictures
from training.benchmark.policies import open_policy, read_spec
from training.benchmark.run import Actor, Task, run_tasks
from training.benchmark.stages import (
    Rules,
    axis_of,
    environment_names,
    nameable_environments,
)
from training.benchmark.store import EpisodeStore
from training.data.video import decode_video
from training.export.restore import denormalize
from training.export.source import RunSource, reference_outputs
from vla_align_ros.cli import main
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.errors import BundleError, ConfigurationError, SimulationError, TrainingError

RULES = Rules("tabletop", max_steps=40)
EXPERT = Actor("expert", None)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("policy"))


def request(**changes: Any) -> Request:
    values = {"rules": RULES, "bundles": [None], "envs": ["none"], "episodes": 2}
    return Request(**{**values, **changes})


def untimed(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.endswith("_ms")} for line in lines]
    return sorted(kept, key=lambda line: (line["env"], line["seed"]))


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    envs = ["none", "distractors"]
    for jobs in (1, 2):
        report = evaluate_suite(request(envs=envs, jobs=jobs, out=tmp_path / str(jobs)))
        assert list(report["envs"]) == envs
        assert all(row["successes"] == row["episodes"] == 2 for row in report["envs"].values())
        assert all(row["step_ms"] > 0.0 for row in report["envs"].values())
    assert untimed(tmp_path / "1") == untimed(tmp_path / "2")


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run_one = runner.Worker.run

    def count(self: runner.Worker, task: Task) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(task.seed)
        return run_one(self, task)

    monkeypatch.setattr(runner.Worker, "run", count)
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(request(episodes=4, out=tmp_path))
    assert ran == [0, 1] and len(untimed(tmp_path)) == 2
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(request(episodes=6, out=tmp_path))
    assert ran == [2, 3]
    monkeypatch.setattr(runner.Worker, "run", run_one)
    report = evaluate_suite(request(episodes=4, out=tmp_path))
    assert report["envs"]["none"]["episodes"] == 4
    assert json.loads((tmp_path / "report.json").read_text())["envs"] == report["envs"]


def test_pictures_of_odd_sides_are_filmed_too(tmp_path: Path) -> None:
    pictures = [np.full((75, 99, 3), level, np.uint8) for level in (20, 200)]
    record = Record("expert", "none", 0, "", True, True, True, 2, 1.0, 1.0, None, pictures)
    save_pictures(tmp_path, record)
    shown = list(decode_video(tmp_path / "pictures/expert_none_0.mp4"))
    assert [picture.shape for picture in shown] == [(74, 98, 3)] * 2
    assert abs(shown[1].mean() - 200) < 3


def test_a_film_that_was_interrupted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(front, "save_pictures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate_suite(request(episodes=1, out=tmp_path))
    report = evaluate_suite(request(episodes=1, out=tmp_path))
    assert report["envs"]["none"]["episodes"] == 1 and len(untimed(tmp_path)) == 1
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["expert_none_0.jpg", "expert_none_0.mp4"]


def test_a_worker_that_dies_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_run_in_worker", _die)
    store = EpisodeStore(tmp_path, RULES, {})
    tasks = [Task(EXPERT, "none", seed, keep=False) for seed in range(2)]
    with pytest.raises(SimulationError, match="worker process died"):
        run_tasks(tasks, store, RULES, assets=None, jobs=2, threads=1, done=lambda record: None)


def test_what_went_through_is_kept_beside_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtOnce(ThreadPoolExecutor):
        """Everything handed out has ended by the time that it is waited for."""

        def __init__(self, max_workers: int, **_: Any) -> None:
            super().__init__(max_workers)

    def run(task: Task) -> Record:
        if task.seed == 0:
            raise SimulationError("broken", got=task.seed)
        return Record("expert", "none", task.seed, "", True, True, True, 1, 1.0, 1.0, None)

    monkeypatch.setattr(runner, "ProcessPoolExecutor", AtOnce)
    monkeypatch.setattr(runner, "_run_in_worker", run)
    monkeypatch.setattr(runner, "wait", lambda running, **_: (wait(running).done, set()))
    store = EpisodeStore(tmp_path, RULES, {})
    tasks = [Task(EXPERT, "none", seed, keep=False) for seed in range(8)]
    with pytest.raises(SimulationError, match="broken"):
        run_tasks(tasks, store, RULES, assets=None, jobs=4, threads=1, done=lambda record: None)
    assert [line["seed"] for line in untimed(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def _die(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_simulators_end_with_the_evaluation_however_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from vla_align_ros.cli import main; main()", "evaluate"]
    words = ["--policy", "expert", "--suite", "tabletop", "--jobs", "2", "--episodes", "500"]
    process = subprocess.Popen([*command, *words, "--out", str(tmp_path)], cwd=ROOT)
    episodes = tmp_path / "episodes.jsonl"
    try:
        wait_until(lambda: episodes.exists() and episodes.stat().st_size > 0, 90.0)
        workers = children_of(process.pid)
        assert len(workers) >= 2
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20.0)


def children_of(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(happened: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end_s, f"not within {limit_s:.0f} s"
        time.sleep(0.1)


def test_an_environment_named_twice_is_run_once() -> None:
    report = evaluate_suite(request(envs=["none", "none"], episodes=1))
    assert report["variants"][0]["envs"]["none"]["episodes"] == 1
    assert report["envs"]["none"]["episodes"] == 1


def test_policies_are_compared_on_the_same_seeds(bundle: Bundle, tmp_path: Path) -> None:
    report = evaluate_suite(request(bundles=[str(bundle.path), None], episodes=3, out=tmp_path))
    assert [policy["policy"] for policy in report["policies"]] == [bundle.id, "expert"]
    assert report["policies"][0]["envs"]["none"]["infer_ms"] > 0.0
    first, second = report["comparisons"]
    assert (first["better"], first["losses"]) == (Path(bundle.path).name, 3)
    assert (second["wins"], second["pairs"], second["rank_biserial"]) == (3, 3, 1.0)
    page = (tmp_path / "report.html").read_text()
    assert bundle.id[:12] in page and "Wilcoxon" in page
    shown = [tmp_path / name.split("'")[0] for name in page.split("<img src='")[1:]]
    assert len(shown) == 2 * front.SAMPLES and all(path.is_file() for path in shown)
    films = [tmp_path / name.split("'")[0] for name in page.split("<a href='")[1:]]
    lines = {(line["policy"], line["seed"]): line for line in untimed(tmp_path)}
    for film, (policy, seed) in zip(
        films, [(p, s) for p in (bundle.id, "expert") for s in range(front.SAMPLES)], strict=True
    ):
        frames = list(decode_video(film))
        assert len(frames) == lines[policy, seed]["steps"] + 1, "a picture a step"


def test_runs_act_as_they_are_and_training_seeds_make_a_variant(
    short: Path, bundle: Bundle, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(short, other, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "seed": 1}))
    with safe_open(other / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    weights = {k: v + 1e-3 for k, v in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata=metadata)
    bundles = [f"mine={short}", f"mine={other}", str(bundle.path)]
    rules = Rules("tabletop", max_steps=3)
    report = evaluate_suite(request(rules=rules, bundles=bundles, out=tmp_path / "out"))
    assert [policy["name"] for policy in report["policies"]] == [
        *("mine", "mine"),
        Path(bundle.path).name,
    ]
    assert len({policy["policy"] for policy in report["policies"]}) == 3
    mine = report["variants"][0]
    assert (mine["name"], len(mine["policies"])) == ("mine", 2)
    assert mine["envs"]["none"]["episodes"] == 4 and len(mine["envs"]["none"]["rates"]) == 2
    assert {row["pairs"] for row in report["comparisons"]} == {4}, "the bundle with each seed"
    assert set(report["comparisons"][0]["differences"]) == {0, 1}
    assert "mine, 2 training seeds" in (tmp_path / "out/report.html").read_text()
    with pytest.raises(ConfigurationError, match="twice"):
        evaluate_suite(request(bundles=[str(short), f"again={short}"]))
    for taken in ([f"other={short}", str(other)], [f"expert={short}"]):
        with pytest.raises(ConfigurationError, match="NAME=FOLDER"):
            evaluate_suite(request(bundles=taken))
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="same training seed"):
        evaluate_suite(request(bundles=bundles))


def test_comparisons_are_of_the_environments_asked_for(bundle: Bundle) -> None:
    asked = {"envs": ["none", "dim_light"], "compared": ["dim_light"], "episodes": 1}
    rules = Rules("tabletop", max_steps=3)
    report = evaluate_suite(request(rules=rules, bundles=[None, str(bundle.path)], **asked))
    assert report["compared"] == ["dim_light"] and set(report["envs"]) == {"none", "dim_light"}
    assert {row["pairs"] for row in report["comparisons"]} == {1}
    with pytest.raises(ConfigurationError, match=r"--compare none dim_light"):
        evaluate_suite(request(**{**asked, "compared": ["moonlight"]}))


def test_a_run_answers_as_training_does(short: Path) -> None:
    source = RunSource.open(short)
    policy = open_policy(short)
    seen = list(iterate_observations(source.inputs, source.processor.spec))
    expected = denormalize(source.processor, reference_outputs(source)["actions"])
    for observation, actions in zip(seen[:3], expected, strict=False):
        np.testing.assert_allclose(policy.infer(observation).actions, actions, atol=1e-5)
    policy.close()


def test_a_run_without_weights_cannot_act(short: Path, tmp_path: Path) -> None:
    shutil.copy(short / "config.json", tmp_path)
    with pytest.raises(TrainingError, match="consolidate"):
        evaluate_suite(request(bundles=[str(tmp_path)]))


def test_the_command_prints_a_line_an_environment_and_json_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--suite", "tabletop", "--envs", "unseen_table", "--episodes", "1", "--json"]
    assert main(["evaluate", "--policy", "expert", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "expert" and lines[1].startswith("  unseen_table         1/1  1.00 [0.21, ")
    row = json.loads(lines[-1])["envs"]["unseen_table"]
    assert {"successes", "episodes", "interval", "step_ms"} <= set(row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "Nothing to run"),
        ({"jobs": 0}, "Nothing to run"),
        ({"seed": -1}, "No episode has this seed: got -1; expected 0 or more"),
        ({"envs": ["moonlight"]}, "No such environment.*moonlight"),
        ({"rules": Rules("libero")}, "No such suite.*put_on_plate, vl_think, tabletop"),
    ],
)
def test_mistakes_are_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        evaluate_suite(request(**changes))


def test_what_the_command_refuses(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate"]) == 1
    assert "Nothing to evaluate" in capsys.readouterr().err
    assert main(["evaluate", str(bundle.path), str(bundle.path)]) == 1
    assert "--suite" in capsys.readouterr().err
    with pytest.raises(BundleError):
        evaluate_suite(request(bundles=[str(tmp_path / "nowhere")]))
    with pytest.raises(SystemExit):
        main(["evaluate", "--policy", "expert", "--suite", "tabletop", "--size", "big"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--suite", "tabletop", "--shift", "dim_light"], "--shift with --suite tabletop"),
        (["--suite", "vl_think", "--swap"], "--swap with --suite vl_think"),
        (["--suite", "tabletop", "--size", "320x240"], "--size with --suite tabletop"),
        (["--out", "somewhere", "--jobs", "8"], "--jobs --out without --suite"),
        (["--envs", "nonsense"], "--envs without --suite"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["evaluate", "--policy", "expert", *words]) == 1
    assert told in capsys.readouterr().err


def test_more_actions_than_a_chunk_has_are_refused_before_any_episode(
    bundle: Bundle, tmp_path: Path
) -> None:
    asked = {"bundles": [None, str(bundle.path)], "out": tmp_path / "out"}
    with pytest.raises(ConfigurationError, match="at most 4, the policy's horizon"):
        evaluate_suite(request(**asked, rules=Rules("tabletop", executed=9)))
    assert not (tmp_path / "out").exists()


def test_of_chunks_that_are_shorter_than_usual_all_is_executed_and_recorded(
    bundle: Bundle, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_loop, "EXECUTED_ACTIONS", 6)
    asked = {"bundles": [str(short), str(bundle.path)], "episodes": 1, "out": tmp_path}
    horizons = [read_spec(path).action.horizon for path in (short, bundle.path)]
    report = evaluate_suite(request(**asked, rules=Rules("tabletop", max_steps=3)))
    assert report["executed"] == min(6, *horizons) == 4
    assert json.loads((tmp_path / "rules.json").read_text())["executed"] == 4
    assert closed_loop.evaluate(str(bundle.path), episodes=1)["executed"] == 4


def test_the_training_distribution_can_be_named_and_is_no_row_of_the_suite() -> None:
    assert nameable_environments("put_on_plate") == ("Main", *environment_names("put_on_plate"))
    assert axis_of("put_on_plate", "Main") == axis_of("tabletop", "none") == "none"
    for suite in ("tabletop", "vl_think"):
        assert nameable_environments(suite) == environment_names(suite)
    with pytest.raises(ConfigurationError, match=r"expected all, or some of Main, Carrot"):
        evaluate_suite(request(rules=Rules("put_on_plate"), envs=["moonlight"]))


def test_without_assets_the_plate_suites_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_ALIGN_ASSETS", raising=False)
    for suite in ("put_on_plate", "vl_think"):
        with pytest.raises(ConfigurationError, match="vla-align assets"):
            evaluate_suite(request(rules=Rules(suite), envs=["all"]))
