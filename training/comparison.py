"""Compares the runs of a sweep: means over seeds with intervals, for people and for programs."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.files import replace_atomically
from training.sweep_tables import Row

CONFIDENCE = 0.95
NAME = "comparison"
PREFERRED = "val/"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a sweep: status is "done", "failed", "stopped" or "waiting"."""

    row: str
    seed: int
    status: str
    folder: str
    settings: tuple[str, ...]
    metrics: dict[str, float]
    error: str | None = None

    def describe(self) -> str:
        """One line on how it went."""
        if self.status == "failed":
            return f"FAILED: {self.error}"
        seconds = self.metrics.get("seconds")
        return self.status if seconds is None else f"{self.status} in {seconds:.0f} s"


def write_comparison(
    out: Path,
    recipe: str,
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    *,
    reference: str | None = None,
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """Write comparison.json, .md and .csv into `out`; returns what the first holds.

    reference: the row that the others are compared with, seed by seed; the first by default.
    metrics: columns of the .md; by default what the runs measured on held-out data.
    """
    reference = reference or rows[0].name
    comparison = compare(recipe, rows, outcomes, reference)
    columns = [*metrics] or [name for name in comparison["metrics"] if name.startswith(PREFERRED)]
    texts = {
        "json": json.dumps(comparison, indent=2) + "\n",
        "md": to_markdown(comparison, columns),
        "csv": None,
    }
    for suffix, text in texts.items():
        with replace_atomically(out / f"{NAME}.{suffix}") as temporary:
            if text is None:
                _write_csv(temporary, comparison["metrics"], outcomes)
            else:
                temporary.write_text(text)
    return comparison


def compare(
    recipe: str, rows: Sequence[Row], outcomes: Sequence[Outcome], reference: str
) -> dict[str, Any]:
    """Per row and metric: mean, standard deviation and interval over seeds, and the difference.

    The difference to `reference` is paired: only seeds that both rows have finished count.
    """
    done = {(o.row, o.seed): o.metrics for o in outcomes if o.status == "done"}
    names = list(dict.fromkeys(name for metrics in done.values() for name in metrics))
    described = []
    for row in rows:
        own = {seed: metrics for (name, seed), metrics in done.items() if name == row.name}
        others = {seed: done[reference, seed] for seed in own if (reference, seed) in done}
        described.append(
            {
                "name": row.name,
                "settings": list(row.settings),
                "paper_success": row.paper,
                "seeds": sorted(own),
                "metrics": {n: summarize([m[n] for m in own.values() if n in m]) for n in names},
                "difference": {
                    n: summarize(
                        [own[s][n] - m[n] for s, m in others.items() if n in m and n in own[s]]
                    )
                    for n in names
                    if row.name != reference
                },
            }
        )
    return {
        "recipe": recipe,
        "reference": reference,
        "metrics": names,
        "rows": described,
        "runs": [asdict(outcome) for outcome in outcomes],
        "failed": [asdict(o) for o in outcomes if o.status == "failed"],
    }


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, standard deviation and Student's 95 % interval of the mean; None where unknown."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"n": 0, "mean": None, "sd": None, "interval": None}
    mean = statistics.fmean(finite)
    if len(finite) == 1:
        return {"n": 1, "mean": mean, "sd": None, "interval": None}
    sd = statistics.stdev(finite)
    half = t_quantile(len(finite) - 1) * sd / math.sqrt(len(finite))
    return {"n": len(finite), "mean": mean, "sd": sd, "interval": [mean - half, mean + half]}


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| < t) = confidence for Student's distribution, by bisection."""
    low, high = 0.0, 1e4
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < confidence else (low, middle)
    return high


def _t_inside(t: float, freedom: int) -> float:
    """P(|T| < t), by the finite series for whole degrees of freedom (A & S 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(is_odd + 1, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2.0 / math.pi * (angle + sine * total) if is_odd else sine * total


def to_markdown(comparison: dict[str, Any], columns: Sequence[str]) -> str:
    """The comparison for people."""
    rows, reference = comparison["rows"], comparison["reference"]
    has_paper = any(row["paper_success"] for row in rows)
    head = ["variant", "runs", *columns, *(["paper S / V / E"] if has_paper else [])]
    means = [
        [
            row["name"],
            str(len(row["seeds"])),
            *(_show(row["metrics"].get(name)) for name in columns),
            *([_show_paper(row["paper_success"])] if has_paper else []),
        ]
        for row in rows
    ]
    differences = [
        [row["name"], *(_show(row["difference"].get(name), sign="+") for name in columns)]
        for row in rows
        if row["name"] != reference
    ]
    parts = [
        f"# Comparison of {comparison['recipe']}",
        "Mean over seeds [95 % interval of the mean, Student's t]; one run alone has none.",
        _table(head, means),
    ]
    if has_paper:
        parts.append(
            "Paper: success of OpenVLA-7B on the Semantic, Vision and Execution axes "
            "(arXiv 2510.25616), another student and another measure: to compare orders with."
        )
    if differences:
        parts += [
            f"## Difference to `{reference}`",
            "Paired by seed. An interval that holds 0 shows no difference.",
            _table(["variant", *columns], differences),
        ]
    unfinished = [run for run in comparison["runs"] if run["status"] != "done"]
    if unfinished:
        parts += [
            "## Runs that are not in the table",
            "\n".join(
                f"* {run['row']}, seed {run['seed']}: {run['status']}"
                + (f": {run['error']}" if run["error"] else "")
                for run in unfinished
            ),
        ]
    parts += ["## Settings", "\n".join(_show_settings(row) for row in rows)]
    return "\n\n".join(parts) + "\n"


def _show(summary: dict[str, Any] | None, sign: str = "") -> str:
    if summary is None or summary["mean"] is None:
        return ""
    text = f"{summary['mean']:{sign}.4g}"
    if summary["interval"] is not None:
        text += " [{:{sign}.4g}, {:{sign}.4g}]".format(*summary["interval"], sign=sign)
    return text


def _show_paper(paper: Sequence[float] | None) -> str:
    return " / ".join(f"{value:.3f}" for value in paper) if paper else ""


def _show_settings(row: dict[str, Any]) -> str:
    return f"* {row['name']}: " + (" ".join(f"`{s}`" for s in row["settings"]) or "the recipe's")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _write_csv(path: Path, metrics: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", "status", *metrics, "folder", "settings", "error"])
        for o in outcomes:
            values = [o.metrics.get(name, "") for name in metrics]
            settings = " ".join(o.settings)
            writer.writerow([o.row, o.seed, o.status, *values, o.folder, settings, o.error or ""])
