"""scripts/study asks for what docs/study.md plans, and stops when something fails."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.recipes import find_recipe
from training.settings import flatten, override
from vla_align_ros.cli import build_parser, find_commands

ROOT = Path(__file__).resolve().parents[1]
# In place of `vla-align`: notes what it is asked for, and leaves a finished run.
RECORDER = f"""#!{sys.executable}
import json, pathlib, sys
words = sys.argv[1:]
with open({{calls!r}}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if {{failing!r}} in words:
    sys.exit(1)
if words[0] == "train" and {{finish!r}}:
    out = pathlib.Path(words[words.index("--out") + 1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").touch()
"""


def run_study(
    folder: Path, *words: str, failing: str = "none", finish: bool = True, **variables: str
) -> tuple[int, list[list[str]]]:
    """Exit status, and what `vla-align` was asked for."""
    program, calls = folder / "vla-align", folder / "calls"
    calls.write_text("")
    program.write_text(RECORDER.format(calls=str(calls), failing=failing, finish=finish))
    program.chmod(0o755)
    own = {"OUT": str(folder / "out"), "VLA_ALIGN": str(program), **variables}
    done = subprocess.run([ROOT / "scripts/study", *words], env={**os.environ, **own}, timeout=60)
    return done.returncode, [json.loads(line) for line in calls.read_text().splitlines()]


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
    assert len(runs) == 5 + 5 + 3 * 3
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
    }
    changed = {key for key, value in runs["default", "seed_4"].items() if value != default[key]}
    assert changed == {"seed"}


def test_every_finished_run_is_evaluated_in_the_planned_scenes(tmp_path: Path) -> None:
    _, calls = run_study(tmp_path)
    args = parse(calls[-2])
    assert (args.suite, args.episodes, args.seed, args.execute) == ("tabletop", 128, 1000, 4)
    assert len(args.bundle) == 20 and len(args.compare) == 8
    assert parse(calls[-1]).command == "diagnose"


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
