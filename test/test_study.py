"""scripts/study asks for what docs/study.md plans, and stops when something fails.

scripts/gpu_study does the same in steps on machines that keep nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.recipes import find_recipe
from training.settings import flatten, override
from vla_align_ros.cli import build_parser, find_commands
from vla_align_ros.sim.put_on_plate.environments import PUT_ON_PLATE

ROOT = Path(__file__).resolve().parents[1]
# In place of `vla-align`: notes what it is asked for; leaves finished runs, an episode a policy.
RECORDER = f"""#!{sys.executable}
import json, pathlib, sys, time
words = sys.argv[1:]
with open({{calls!r}}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if {{failing!r}} in words:
    sys.exit(1)
out = pathlib.Path(words[words.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
if words[0] == "train" and {{finish!r}}:
    (out / "model.safetensors").touch()
    (out / "dataset.json").write_text({{data!r}})
    (out / "checkpoints").mkdir(exist_ok=True)
if words[0] == "evaluate":
    (out / "rules.json").write_text("rules")
    for word in words[1:]:
        if "=" in word:
            with open(out / "episodes.jsonl", "a") as file:
                file.write("an episode of " + word + "\\n")
            time.sleep({{slow!r}})
"""


def run_script(
    name: str,
    folder: Path,
    *words: str,
    failing: str = "none",
    finish: bool = True,
    data: str = "data",
    slow: float = 0.0,
    **variables: str,
) -> tuple[int, list[list[str]], str]:
    """Exit status, what `vla-align` was asked for, and what the script complained of."""
    program, calls = folder / "vla-align", folder / "calls"
    calls.write_text("")
    program.write_text(
        RECORDER.format(calls=str(calls), failing=failing, finish=finish, data=data, slow=slow)
    )
    program.chmod(0o755)
    own = {"OUT": str(folder / "out"), "VLA_ALIGN": str(program), **variables}
    done = subprocess.run(
        [ROOT / "scripts" / name, *words],
        env={**os.environ, **own},
        timeout=60,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    return done.returncode, asked, done.stderr


def run_study(folder: Path, *words: str, **options: Any) -> tuple[int, list[list[str]]]:
    return run_script("study", folder, *words, **options)[:2]


def parse(call: list[str]) -> argparse.Namespace:
    return build_parser(find_commands(), call[0]).parse_args(call)


def settings_of(call: list[str]) -> tuple[str, dict[str, object]]:
    """The run's folder, and its whole configuration, flat."""
    args = parse(call)
    return Path(args.out).name, flatten(override(find_recipe(args.recipe), args.set).to_dict())


def test_the_variants_differ_in_what_the_plan_says(tmp_path: Path) -> None:
    status, calls = run_study(tmp_path)
    assert status == 0
    trained = [call for call in calls if call[0] == "train"]
    assert "--base" not in trained[0] and all("--base" in call for call in trained[1:])
    runs = {}
    for call in trained[1:]:
        folder = Path(call[call.index("--out") + 1])
        runs[folder.parent.name, folder.name] = settings_of(call)[1]
    assert len(runs) == 5 + 5 + 3 * 3 + 5
    default = runs["default", "seed_0"]
    differing = {
        name: {key for key, value in found.items() if value != default.get(key)} - {"recipe"}
        for (name, seed), found in runs.items()
        if seed == "seed_0"
    }
    assert differing == {
        "default": set(),
        "freeze": {"optim.vision_lr", "optim.vision_from_step"},
        "align": {"alignment.weight"},
        "align_encoder": {"alignment.weight", "alignment.at"},
        "align_strong": {"alignment.weight"},
        "align_lite": {"alignment.weight", "teacher.name"},
    }
    changed = {key for key, value in runs["default", "seed_4"].items() if value != default[key]}
    assert changed == {"seed"}


def test_every_finished_run_is_evaluated_in_the_planned_scenes(tmp_path: Path) -> None:
    _, calls = run_study(tmp_path)
    args = parse(calls[-2])
    assert (args.suite, args.episodes, args.seed, args.execute) == ("tabletop", 128, 1000, 4)
    assert len(args.bundle) == 25 and len(args.compare) == 8
    assert parse(calls[-1]).command == "diagnose"


@pytest.mark.parametrize(
    ("narrow", "where", "trained"),
    [("1", "narrow", 24), ("2", "narrow2", 26), ("3", "narrow3", 10)],
)
def test_the_narrow_study_shows_one_instruction_and_asks_for_all(
    tmp_path: Path, narrow: str, where: str, trained: int
) -> None:
    status, calls, said = run_script("study", tmp_path, failing="nothing", NARROW=narrow)
    assert status == 0, said
    fine_tuned = [call for call in calls if call[0] == "train"][1:]
    assert len(fine_tuned) == trained
    out = tmp_path / "out"
    for call in fine_tuned:
        assert parse(call).base == str(out / "runs/start")
        assert Path(parse(call).out).parents[1] == out / where / "runs"
        settings = settings_of(call)[1]
        assert settings["data.instructions"] == ("put the carrot on the plate",)
        assert settings["optim.lr"] == 3e-4
        assert settings["optim.vision_lr"] in (1.5e-4, None), "freeze has none"
    seeds = {settings_of(call)[1]["seed"] for call in fine_tuned}
    assert seeds == set({"1": range(5), "2": range(5, 12), "3": range(8, 13)}[narrow])
    args = parse(calls[-2])
    assert args.envs == ["none"] and len(args.bundle) == trained + 1
    assert (args.episodes, args.seed, args.out) == (128, 1000, out / where / "evaluation")


def test_the_benchmark_has_a_start_of_its_own_and_the_paper_s_environments(
    tmp_path: Path,
) -> None:
    status, calls, said = run_script("study", tmp_path, failing="nothing", BENCHMARK="1")
    assert status == 0, said
    trained = [call for call in calls if call[0] == "train"]
    assert all(parse(call).data == ["data/put_on_plate"] for call in trained)
    start, default = settings_of(trained[0])[1], settings_of(trained[1])[1]
    assert (start["optim.steps"], start["optim.lr"]) == (3000, 1.5e-3)
    assert start["loss.displacement"] == default["loss.displacement"] == 0.25
    assert start["optim.vision_lr"] is None
    assert (default["optim.lr"], default["optim.vision_lr"]) == (1e-4, 5e-5)
    args = parse(calls[-2])
    assert (args.suite, args.size, args.execute) == ("put_on_plate", (320, 240), 4)
    assert args.episodes == 64 and len(args.bundle) == 1 + 2 * 5 + 3 * 3
    assert set(args.compare) < set(args.envs) and len(args.compare) == 8
    assert set(args.envs) == {"Main", *(env.name for env in PUT_ON_PLATE)}
    shown = "put carrot on plate"
    _, calls, said = run_script(
        "study", tmp_path, failing="nothing", BENCHMARK="1", NARROW="1", SEEDS="0"
    )
    assert settings_of(calls[1])[1]["data.instructions"] == (shown,), said
    assert parse(calls[-2]).envs == ["Main"]


@pytest.mark.parametrize(("parallel", "most"), [("1", 3), ("2", 19)])
def test_a_run_that_fails_ends_the_study(tmp_path: Path, parallel: str, most: int) -> None:
    """With several at once some may begin before the failure is seen: here they take no time."""
    out = str(tmp_path / "out/runs/align/seed_0")
    status, calls = run_study(tmp_path, failing=out, PARALLEL=parallel)
    assert status != 0
    assert len(calls) <= most and {call[0] for call in calls} == {"train"}


def test_a_run_that_is_stopped_ends_the_study(tmp_path: Path) -> None:
    status, calls = run_study(tmp_path, finish=False)
    assert status != 0 and len(calls) == 1


def test_no_time_is_no_run(tmp_path: Path) -> None:
    run_study(tmp_path, "train", SEEDS="0")
    status, calls = run_study(tmp_path, "train", SEEDS="0", STUDY_ENDS="1")
    assert status != 0 and not calls


def count(calls: list[list[str]]) -> Counter[str]:
    return Counter(call[0] for call in calls)


def go_round(folder: Path, turn: int, **options: Any) -> list[list[str]] | None:
    """One pack, step and merge; what the step asked for, None when nothing was left to do."""
    carried, new = str(folder / f"carried_{turn}"), str(folder / f"new_{turn}")
    status, _, _ = run_script("gpu_study", folder, "pack", carried, **options)
    if status == 3:
        return None
    assert status == 0
    status, calls, complaint = run_script("gpu_study", folder, "step", carried, new, **options)
    assert status == 0, complaint
    assert run_script("gpu_study", folder, "merge", new, **options)[0] == 0
    return calls


def test_steps_of_a_gpu_add_up_to_the_study(tmp_path: Path) -> None:
    """The recorder takes no time, so that all fits one step; a second finds nothing left."""
    calls = go_round(tmp_path, 0)
    assert calls is not None
    assert calls[0][0] == "collect"
    trained = {call[call.index("--out") + 1] for call in calls if call[0] == "train"}
    assert len(trained) == 25 and count(calls)["evaluate"] == 25
    assert go_round(tmp_path, 1) is None
    episodes = (tmp_path / "out/evaluation/episodes.jsonl").read_text().splitlines()
    assert len(episodes) == len(set(episodes)) == 25
    runs = list((tmp_path / "out/runs").rglob("model.safetensors"))
    assert len(runs) == 25 and not list((tmp_path / "out/runs").rglob("checkpoints"))
    _, calls = run_study(tmp_path, "evaluate")
    assert len(parse(calls[0]).bundle) == 25


def test_a_step_cut_off_among_episodes_is_followed_by_the_rest_of_them(tmp_path: Path) -> None:
    few: dict[str, Any] = {"VARIANTS": "align", "SEEDS": "0"}
    (tmp_path / "out").mkdir()
    assert run_study(tmp_path, "train", **few)[0] == 0
    calls = go_round(tmp_path, 0, slow=60.0, STUDY_ENDS=str(int(time.time()) + 8), **few)
    assert calls is not None and count(calls) == {"evaluate": 1}
    kept = (tmp_path / "out/evaluation/episodes.jsonl").read_text().splitlines()
    assert len(kept) == 1
    calls = go_round(tmp_path, 1, **few)
    assert calls is not None and count(calls) == {"evaluate": 1}
    assert (tmp_path / "out/runs/align/seed_0/evaluated").exists()


def test_a_step_that_fails_says_so_and_keeps_what_was_done(tmp_path: Path) -> None:
    carried, new = str(tmp_path / "carried"), tmp_path / "new"
    run_script("gpu_study", tmp_path, "pack", carried)
    failing = str(new / "runs/align/seed_0")
    status, calls, complaint = run_script(
        "gpu_study", tmp_path, "step", carried, str(new), failing=failing
    )
    assert status == 1 and "status" in complaint
    assert calls[-1][0] == "train" and (new / "runs/default/seed_0/evaluated").exists()


def test_runs_on_other_data_are_not_merged(tmp_path: Path) -> None:
    assert go_round(tmp_path, 0, VARIANTS="default", SEEDS="0") is not None
    carried, new = str(tmp_path / "carried"), str(tmp_path / "new")
    one = {"VARIANTS": "align", "SEEDS": "0"}
    run_script("gpu_study", tmp_path, "pack", carried, **one)
    assert run_script("gpu_study", tmp_path, "step", carried, new, data="other", **one)[0] == 0
    status, _, complaint = run_script("gpu_study", tmp_path, "merge", new, **one)
    assert status == 1 and "other data" in complaint
    assert not (tmp_path / "out/runs/align").exists()


def test_what_is_too_large_to_travel_is_refused(tmp_path: Path) -> None:
    run_study(tmp_path, "train", SEEDS="none of them")
    (tmp_path / "out/runs/start/model.safetensors").write_bytes(bytes(65 << 20))
    status, _, complaint = run_script("gpu_study", tmp_path, "pack", str(tmp_path / "carried"))
    assert status == 1 and "64 may travel" in complaint


@pytest.mark.parametrize("other", ["BENCHMARK", "NARROW"])
def test_only_the_first_study_travels(tmp_path: Path, other: str) -> None:
    words, folder = ("pack", str(tmp_path / "carried")), tmp_path / "carried"
    status, _, complaint = run_script("gpu_study", tmp_path, *words, **{other: "1"})
    assert status == 1 and "there is scripts/study" in complaint and not folder.exists()


@pytest.mark.parametrize("words", [(), ("pack",), ("step", "one"), ("fly", "away")])
def test_a_wrong_use_of_the_gpu_study_explains_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    status, _, complaint = run_script("gpu_study", tmp_path, *words)
    assert status == 2 and "scripts/gpu_study pack DIR" in complaint
