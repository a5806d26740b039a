"""The second study's tables are of its folder's episodes, split by what fine-tuning showed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("mujoco") is None:  # importing it here would choose how it draws
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from training.benchmark.narrow import BEGIN, END, RESULTS, gather, split_lines, write_tables
from training.benchmark.stages import Rules
from vla_align_ros.pages import put_between

CARROT = "put the carrot on the plate"
WORDS = (CARROT, "put the carrot on the tray", "put the corn on the plate", "put the corn on a mat")
RUN = {"seconds": 10.0, "samples": 64, "val/l1": 0.04, "commit": "c", "machine": "m"}


def write_folder(folder: Path, successes: dict[tuple[str, int], tuple[int, ...]]) -> None:
    """A study whose policy (variant, training seed) had these successes, one a word of WORDS."""
    policies, lines = [], []
    for (variant, repeat), own in successes.items():
        policies.append({"policy": f"{variant}{repeat}", "name": variant, "repeat": repeat})
        for number, success in enumerate(own):
            line = {"policy": policies[-1]["policy"], "env": "none", "seed": 10 + number}
            measured = {"success_end": False, "grasped": False, "steps": 3}
            measured |= {"step_ms": 1.0, "step_cpu_ms": 1.0, "infer_ms": 1.0}
            line |= {"instruction": WORDS[number], "success": bool(success), **measured}
            lines += [line, line, {**line, "seed": 99}, {**line, "env": "dim_light"}]
        if variant != "start":
            run = folder / "runs" / variant / f"seed_{repeat}"
            run.mkdir(parents=True)
            (run / "run.json").write_text(json.dumps(RUN))
            (run / "config.json").write_text(json.dumps({"data": {"instructions": [CARROT]}}))
    (folder / "evaluation").mkdir()
    report: dict[str, Any] = {"policies": policies, "episodes": 4, "seed": 10}
    (folder / "evaluation/report.json").write_text(json.dumps(report))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "evaluation/episodes.jsonl").write_text(text)
    rules = json.dumps({**asdict(Rules("tabletop")), "assets": {}})
    (folder / "evaluation/rules.json").write_text(rules)


def test_the_object_decides_the_part_not_the_receptacle() -> None:
    parts = split_lines([{"instruction": text} for text in WORDS], [CARROT])
    assert [len(parts[part]) for part in ("shown", "other", "exact")] == [2, 2, 1]
    assert split_lines([{"instruction": CARROT}], [])["other"], "nothing was shown"


def test_what_was_forgotten_is_compared_by_training_seed(tmp_path: Path) -> None:
    write_folder(
        tmp_path,
        {
            ("start", 0): (1, 1, 1, 1),
            **{("default", seed): (1, 1, 0, 0) for seed in range(5)},
            **{("align", seed): (1, 1, 1, 0) for seed in range(5)},
        },
    )
    results = gather(tmp_path)
    assert results is not None and results["instructions"] == [CARROT]
    assert [v["name"] for v in results["variants"]] == ["start", "default", "align"]
    align = results["variants"][2]
    assert align["other"]["rates"] == {str(seed): 0.5 for seed in range(5)}
    assert align["other"]["episodes"] == align["shown"]["episodes"] == 10, "no other environment"
    (other,) = [row for row in results["comparisons"]["other"] if row["better"] == "align"]
    assert other["difference"] == 0.5 and other["p_repeats"] == pytest.approx(1 / 32)
    (shown,) = [row for row in results["comparisons"]["shown"] if row["better"] == "align"]
    assert shown["difference"] == 0.0 and shown["p_repeats"] == 1.0
    tables = write_tables(results)
    assert "| align over default | +0.500 | +0.500, +0.500, +0.500, +0.500, +0.500 |" in tables
    assert "| `align/seed_4` | 64 | 10 | 0.0400 |" in tables


def test_before_its_evaluation_there_is_nothing_to_publish(tmp_path: Path) -> None:
    assert gather(tmp_path) is None


def test_the_published_page_shows_the_published_figures() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page, results = (docs / "results.md").read_text(), json.loads((docs / RESULTS).read_text())
    assert put_between(page, BEGIN, END, write_tables(results) + "\n") == page
