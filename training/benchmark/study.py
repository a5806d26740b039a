"""From the folders of scripts/study to what is published of it: figures, a plot and tables.

``python -m training.benchmark.study OUT PAGE`` reads OUT/evaluation, OUT/diagnosis (where it is)
and OUT/runs, writes study.json into results/ and study_success.svg into images/ beside PAGE, and
the tables between PAGE's marks; of OUT/narrow, where it was evaluated, the same (see `narrow`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.benchmark import narrow
from training.benchmark.figures import signed_rank_p
from training.benchmark.plot import draw_rates
from training.benchmark.tables import (
    COMPARISON,
    write_comparison,
    write_head,
    write_rate,
    write_row,
)
from training.files import replace_atomically
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.pages import put_between

BEGIN, END = "<!-- study: written by scripts/study publish -->", "<!-- end of study -->"
RESULTS, PLOT = "results/study.json", "images/study_success.svg"
KEPT = ("successes", "episodes", "success_rate", "interval", "rates")
COST = ("seconds", "samples", "samples_per_s", "val/l1", "commit", "machine", "trained_parameters")
TESTED = (("align", "default"), ("align_lite", "default"))  # better, worse: what the plan tests
BASELINE = "default"
START = "start"


def gather(out: Path) -> dict[str, Any]:
    """All figures of a study that are published; ConfigurationError before it was evaluated."""
    report = _read(out / "evaluation" / "report.json")
    if report is None:
        raise ConfigurationError(
            "The study has no evaluation yet",
            got=f"no report.json in {out / 'evaluation'}",
            expected="an evaluation that went through",
            fix="scripts/study evaluate",
        )
    sight = _sight(_read(out / "diagnosis" / "diagnosis.json"))
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
        "sight": sight,
        "sight_tests": [
            test
            for better, worse in TESTED
            for place in dict.fromkeys(place for row in sight for place in row["probe"])
            if (test := _test_sight(sight, place, better, worse))["differences"]
        ],
        "runs": [
            {"name": str(path.parent.relative_to(out / "runs")), **{k: run[k] for k in COST}}
            for path in sorted((out / "runs").glob("**/run.json"))
            if (run := _read(path)) is not None
            if path.parent.name == START or path.parent.name.startswith("seed_")
        ],
    }


def write_tables(results: Mapping[str, Any]) -> str:
    """The tables of a study, in Markdown."""
    return "\n".join(
        [*_success(results), *_comparisons(results), *_probes(results), *_cost(results)]
    )


def put_tables(page: str, tables: str) -> str:
    """Replace what stands between the marks of a page; ConfigurationError without them."""
    return put_between(page, BEGIN, END, f"{tables}\n")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _sight(diagnosis: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row a network after training: variant, training seed, probe and likenesses by place."""
    if diagnosis is None:
        return []
    rows = []
    for network in diagnosis["networks"]:
        if network["when"] != "after":
            continue
        variant, _, seed = network["run"].partition("/seed_")
        rows.append(
            {
                "variant": variant.rpartition("/")[2],
                "seed": int(seed) if seed else None,
                "layer": network["layer"],
                **{key: network[key] for key in ("probe", "cka_before", "cka_teacher")},
            }
        )
    return rows


def _test_sight(
    rows: Sequence[Mapping[str, Any]], place: str, better: str, worse: str
) -> dict[str, Any]:
    """Differences of the probe's accuracy by training seed, and the plan's test of them."""
    found: dict[str, dict[int, float]] = {better: {}, worse: {}}
    for row in rows:
        if row["variant"] in found and row["seed"] is not None:
            found[row["variant"]][row["seed"]] = row["probe"][place]["accuracy"]
    seeds = sorted(found[better].keys() & found[worse].keys())
    differences = {str(seed): found[better][seed] - found[worse][seed] for seed in seeds}
    return {
        "place": place,
        "better": better,
        "worse": worse,
        "differences": differences,
        "p_repeats": signed_rank_p(list(differences.values())),
    }


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
    told = [write_comparison(figures) for figures in rows if figures["worse"] == BASELINE]
    return [*write_head(*COMPARISON), *told, ""]


def _probes(results: Mapping[str, Any]) -> list[str]:
    rows = results["sight"]
    if not rows:
        return []
    places = ("encoder", f"layer_{rows[0]['layer']}")
    lines = write_head(
        *("network", "probe, encoder", "probe, middle layer"),
        *("CKA with the start, encoder", "the same, middle layer", "CKA with the teacher, middle"),
    )
    for row in rows:
        name = row["variant"] if row["seed"] is None else f"{row['variant']}, seed {row['seed']}"
        probes = [
            f"{row['probe'][p]['accuracy']:.2f} "
            f"[{row['probe'][p]['interval'][0]:.2f}, {row['probe'][p]['interval'][1]:.2f}]"
            for p in places
        ]
        # Before its own training the start was no start yet.
        likenesses = [
            "-" if row["seed"] is None else f"{row['cka_before'][p]['pictures']:.2f}"
            for p in places
        ]
        taught = row["cka_teacher"].get(places[1])
        lines.append(
            write_row(name, *probes, *likenesses, "-" if taught is None else f"{taught:.2f}")
        )
    lines += ["", *write_head("probe, is better", "place", "by training seed", "p, seeds")]
    for test in results["sight_tests"]:
        by_seed = ", ".join(f"{value:+.3f}" for value in test["differences"].values())
        pair = f"{test['better']} over {test['worse']}"
        lines.append(write_row(pair, f"`{test['place']}`", by_seed, f"{test['p_repeats']:.3f}"))
    return [*lines, ""]


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


def publish(out: Path, page: Path) -> None:
    """Write figures and plot beside `page`, and the tables into it."""
    results, second = gather(out), narrow.gather(out / "narrow")
    text = put_tables(page.read_text(encoding="utf-8"), write_tables(results))
    files = [
        (page.parent / RESULTS, json.dumps(results, indent=1) + "\n"),
        (page.parent / PLOT, draw_rates(results)),
    ]
    if second is not None:
        tables = narrow.write_tables(second)
        text = put_between(text, narrow.BEGIN, narrow.END, f"{tables}\n")
        files.append((page.parent / narrow.RESULTS, json.dumps(second, indent=1) + "\n"))
    for path, content in [*files, (page, text)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
