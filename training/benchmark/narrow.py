"""The second study of docs/study.md, and what repeats it: what a narrow fine-tuning forgets.

Read from NARROW's folder of scripts/study: its runs, their episodes in the training distribution,
split by whether the instruction names an object that the fine-tuning showed, and their diagnosis.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.benchmark.figures import compare, pool
from training.benchmark.plot import draw_rates
from training.benchmark.probes import gather_sight, write_probes
from training.benchmark.store import EpisodeStore
from training.benchmark.tables import (
    COMPARISON,
    write_comparison,
    write_head,
    write_rate,
    write_row,
)
from training.files import read_json_if_there
from vla_align_ros.sim.catalogue import OBJECTS


@dataclass(frozen=True)
class Study:
    """Where a study's figures and tables are published. A narrow one's name is its folder, too.

    `seeds` are the training seeds that were judged; later ones in its folder do not change it.
    """

    name: str
    stem: str = "study_{name}"
    seeds: tuple[int, ...] | None = None

    @property
    def begin(self) -> str:
        """The mark on the page behind which the tables stand."""
        return f"<!-- {self.name}: written by scripts/study publish -->"

    @property
    def end(self) -> str:
        """The mark that ends them."""
        return f"<!-- end of {self.name} -->"

    @property
    def results(self) -> str:
        """The file of figures, from the page's folder."""
        return f"results/{self.stem.format(name=self.name)}.json"

    @property
    def plot(self) -> str:
        """The picture of its rates, from the page's folder."""
        return f"images/{self.stem.format(name=self.name)}.svg"


STUDIES = (Study("narrow"), Study("narrow2", seeds=(5, 6, 7, 8, 9)), Study("narrow3"))
PARTS = {
    "other": "names another object",
    "shown": "names the object shown",
    "exact": "is the instruction shown",
}
"""The plan's two parts, and of the second the episodes whose receptacle was shown, too."""
DRAWN = {"other": "another object", "shown": "the object shown", "exact": "as it was shown"}
BASELINE, START = "default", "start"
TESTED = tuple(
    (name, BASELINE) for name in ("align", "align_strong", "freeze")
)  # probes side by side
COST = ("seconds", "samples", "val/l1", "commit", "machine")


def gather(folder: Path, seeds: Sequence[int] | None = None) -> dict[str, Any] | None:
    """All that is published of a narrow study; None before it was evaluated.

    Of the networks that were trained with `seeds` alone, where they are given.
    """
    report = read_json_if_there(folder / "evaluation" / "report.json")
    if report is None:
        return None
    runs = {
        str(path.parent.relative_to(folder / "runs")): path.parent
        for path in sorted((folder / "runs").glob("*/seed_*/run.json"))
    }
    instructions = _instructions(runs.values())
    lines = _read_lines(EpisodeStore.open(folder / "evaluation"), report, seeds)
    split = {name: split_lines(own, instructions) for name, own in lines.items()}
    return {
        "instructions": instructions,
        "episodes": report["episodes"],
        "seed": report["seed"],
        "variants": [
            {"name": name, **{part: _summarise(own) for part, own in parts.items()}}
            for name, parts in split.items()
        ],
        "comparisons": {
            part: [
                {"better": name, "worse": BASELINE, **compare(parts[part], split[BASELINE][part])}
                for name, parts in split.items()
                if name != BASELINE and BASELINE in split
            ]
            for part in PARTS
        },
        **gather_sight(read_json_if_there(folder / "diagnosis" / "diagnosis.json"), TESTED),
        "runs": [
            {"name": name, **{key: run[key] for key in COST}}
            for name, path in runs.items()
            if (run := read_json_if_there(path / "run.json")) is not None
        ],
    }


def split_lines(
    lines: Sequence[Mapping[str, Any]], instructions: Sequence[str]
) -> dict[str, list[Mapping[str, Any]]]:
    """Episodes by PARTS, by whether their instruction names an object that `instructions` name."""
    shown = {name for name in OBJECTS for text in instructions if name in text.split()}
    parts: dict[str, list[Mapping[str, Any]]] = {part: [] for part in PARTS}
    for line in lines:
        parts["shown" if shown & set(line["instruction"].split()) else "other"].append(line)
        if line["instruction"] in instructions:
            parts["exact"].append(line)
    return parts


def write_tables(results: Mapping[str, Any]) -> str:
    """The tables of a narrow study, in Markdown."""
    lines = write_head("variant", *PARTS.values(), "by training seed, of another object")
    for variant in results["variants"]:
        rates = [f"{value:.2f}" for value in variant["other"]["rates"].values()]
        cells = [write_rate(variant[part]) for part in PARTS]
        lines.append(write_row(variant["name"], *cells, ", ".join(rates)))
    for part, told in PARTS.items():
        lines += ["", *write_head(f"{told}: {COMPARISON[0]}", *COMPARISON[1:])]
        lines += [write_comparison(row) for row in results["comparisons"][part] if row["pairs"]]
    lines += [
        "",
        *write_probes(results),
        *write_head("run", "samples", "seconds", "held-out action error, L1"),
    ]
    for run in results["runs"]:
        cost = (f"{run['samples']}", f"{run['seconds']:.0f}", f"{run['val/l1']:.4f}")
        lines.append(write_row(f"`{run['name']}`", *cost))
    return "\n".join(lines)


def draw(results: Mapping[str, Any]) -> str:
    """The success rates of a narrow study's variants, by PARTS, as one SVG."""
    variants = [
        {
            "name": variant["name"],
            "envs": {
                DRAWN[part]: {**variant[part], "rates": list(variant[part]["rates"].values())}
                for part in PARTS
            },
        }
        for variant in results["variants"]
    ]
    axes = dict.fromkeys(DRAWN.values(), "the instruction names")
    return draw_rates({"variants": variants, "axes_of_envs": axes})


def _instructions(runs: Iterable[Path]) -> list[str]:
    """What the fine-tunings showed; the same in each, as scripts/study sets it."""
    found = {
        tuple(json.loads((run / "config.json").read_text())["data"]["instructions"]) for run in runs
    }
    return sorted(text for texts in found for text in texts)


def _read_lines(
    store: EpisodeStore, report: Mapping[str, Any], trained: Sequence[int] | None
) -> dict[str, list[dict[str, Any]]]:
    """The report's episodes by variant, with the training seed as "repeat"; the start's always."""
    seeds = range(report["seed"], report["seed"] + report["episodes"])
    found: dict[str, list[dict[str, Any]]] = {}
    for policy in report["policies"]:
        if trained is not None and policy["name"] != START and policy["repeat"] not in trained:
            continue
        lines = store.select((policy["policy"], "none", seed) for seed in seeds)
        own = found.setdefault(policy["name"], [])
        own += [{**line, "repeat": policy["repeat"]} for line in lines]
    return found


def _summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Success of a variant's networks together, and of each by training seed."""
    pooled = pool(lines)
    keys = ("successes", "episodes", "success_rate", "interval")
    rates = {}
    for repeat in sorted({line["repeat"] for line in lines}):
        own = [bool(line["success"]) for line in lines if line["repeat"] == repeat]
        rates[str(repeat)] = sum(own) / len(own)
    return {**{key: pooled[key] for key in keys}, "rates": rates}
