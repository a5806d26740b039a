"""Folders of scripts/study as its programs leave them, and rows of a diagnosis, for tests."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

CARROT = "put the carrot on the plate"
WORDS = (CARROT, "put the carrot on the tray", "put the corn on the plate", "put the corn on a mat")
RUN = {"seconds": 10.0, "samples": 64, "val/l1": 0.04, "commit": "c", "machine": "m"}


def write_folder(folder: Path, successes: dict[tuple[str, int], tuple[int, ...]]) -> None:
    """A study whose policy (variant, training seed) had these successes, one a word of WORDS."""
    from training.benchmark.stages import Rules  # needs the extra [sim]

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


def network(run: str, accuracy: float, when: str = "after") -> dict[str, Any]:
    """What a diagnosis tells of a network whose probes all found `accuracy`."""
    probe = {"accuracy": accuracy, "interval": [accuracy - 0.04, accuracy + 0.04]}
    likeness = {"pictures": 0.5, "scenes": 0.9}
    return {
        "run": run,
        "when": when,
        "layer": 2,
        "probe": {"encoder": probe, "layer_2": probe},
        "cka_before": {"encoder": likeness, "layer_2": likeness},
        "cka_teacher": {},
    }
