"""From the folders of scripts/study to what is published of it: figures, a plot and tables.

``python -m training.benchmark.study OUT PAGE [NAME]`` reads OUT/evaluation, OUT/diagnosis (where
it is) and OUT/runs, writes figures into results/ and a plot into images/ beside PAGE, and the
tables between PAGE's marks; beside the first study those in `narrow.STUDIES`. What was not
evaluated under OUT stays as it was published. NAME is one of WIDE, the first if none is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.benchmark import narrow
from training.benchmark.plot import draw_rates
from training.benchmark.probes import gather_sight, write_probes
from training.benchmark.tables import (
    COMPARISON,
    write_comparison,
    write_head,
    write_rate,
    write_row,
)
from training.files import read_json_if_there, replace_atomically
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.pages import put_between

FIRST = narrow.Study("study", "study")
WIDE = {study.name: study for study in (FIRST, narrow.Study("plate"))}
KEPT = ("successes", "episodes", "success_rate", "interval", "rates")
COST = ("seconds", "samples", "samples_per_s", "val/l1", "commit", "machine", "trained_parameters")
TESTED = (("align", "default"), ("align_lite", "default"))  # better, worse: what the plan tests


def gather(out: Path) -> dict[str, Any] | None:
    """All figures that are published of a study under OUT; None before it was evaluated."""
    report = read_json_if_there(out / "evaluation" / "report.json")
    if report is None:
        return None
    return {
        **{
            key: report[key] for key in ("episodes", "seed", "executed", "axes_of_envs", "compared")
        },
        "variants": [
            {
                "name": variant["name"],
                "envs": {
                    env: {key: row[key] for key in KEPT} for env, row in variant["envs"].items()
                },
            }
            for variant in report["variants"]
        ],
        "comparisons": [row for row in report["comparisons"] if row["pairs"]],
        **gather_sight(read_json_if_there(out / "diagnosis" / "diagnosis.json"), TESTED),
        "runs": [
            {"name": str(path.parent.relative_to(out / "runs")), **{k: run[k] for k in COST}}
            for path in sorted((out / "runs").glob("**/run.json"))
            if (run := read_json_if_there(path)) is not None
            if path.parent.name == narrow.START or path.parent.name.startswith("seed_")
        ],
    }


def write_tables(results: Mapping[str, Any]) -> str:
    """The tables of a study, in Markdown."""
    return "\n".join(
        [*_success(results), *_comparisons(results), *write_probes(results), *_cost(results)]
    )


def _success(results: Mapping[str, Any]) -> list[str]:
    variants, axes = results["variants"], results["axes_of_envs"]
    lines = write_head("environment", "axis", *(variant["name"] for variant in variants))
    for env, axis in axes.items():
        mark = " *" if env in results["compared"] else ""
        cells = [write_rate(variant["envs"][env]) for variant in variants]
        lines.append(write_row(f"`{env}`{mark}", axis, *cells))
    return [*lines, ""]


def _comparisons(results: Mapping[str, Any]) -> list[str]:
    rows = results["comparisons"]  # every pair, in both directions
    told = [write_comparison(figures) for figures in rows if figures["worse"] == narrow.BASELINE]
    return [*write_head(*COMPARISON), *told, ""] if told else []


def _cost(results: Mapping[str, Any]) -> list[str]:
    lines = write_head("run", "samples", "seconds", "samples a second", "held-out action error, L1")
    for run in results["runs"]:
        lines.append(
            write_row(
                f"`{run['name']}`",
                f"{run['samples']}",
                f"{run['seconds']:.0f}",
                f"{run['samples_per_s']:.1f}",
                f"{run['val/l1']:.4f}",
            )
        )
    return lines


def publish(out: Path, page: Path, study: narrow.Study = FIRST) -> None:
    """Write figures and plot beside `page`, and the tables into it.

    ConfigurationError where no study was evaluated.
    """
    text, files = page.read_text(encoding="utf-8"), []
    if (results := gather(out)) is not None:
        text = put_between(text, study.begin, study.end, f"{write_tables(results)}\n")
        files += [(study.results, _write(results)), (study.plot, draw_rates(results))]
    for other in narrow.STUDIES if study == FIRST else ():
        if (found := narrow.gather(out / other.name, other.seeds)) is not None:
            tables = narrow.write_tables(found)
            text = put_between(text, other.begin, other.end, f"{tables}\n")
            files += [(other.results, _write(found)), (other.plot, narrow.draw(found))]
    if not files:
        raise ConfigurationError(
            "No study has an evaluation yet",
            got=f"no report.json in {out / 'evaluation'}, nor in a narrow study's",
            expected="an evaluation that went through",
            fix="scripts/study evaluate",
        )
    for name, content in [*files, (page.name, text)]:
        path = page.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _write(results: Mapping[str, Any]) -> str:
    return json.dumps(results, indent=1) + "\n"


if __name__ == "__main__":
    out, page, *name = sys.argv[1:]
    publish(Path(out), Path(page), WIDE[name[0]] if name else FIRST)
