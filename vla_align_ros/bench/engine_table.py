"""Figures and the table of engines measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def summarise_rows(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn raw rows into figures; the first row is what `speedup` compares with.

    A speed-up is the median, over the rounds, of the ratio of the two rows' medians in one round,
    so that a round in which the machine was busy counts once and for both.
    """
    first = _round_medians(measured[0], 0)
    first_busy = _round_medians(measured[0], 1)
    rows = []
    for row in measured:
        times_ms = 1e3 * np.array([pair[0] for turn in row["rounds"] for pair in turn])
        ratios = first / _round_medians(row, 0)
        p50, p90, p99 = np.quantile(times_ms, (0.5, 0.9, 0.99))
        rows.append(
            {
                **{key: row[key] for key in ("label", "backend", "precision")},
                "inferences": len(times_ms),
                **{"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)},
                "cpu_ms": float(1e3 * np.median([p[1] for turn in row["rounds"] for p in turn])),
                "speedup": float(np.median(ratios)),
                "speedup_quartiles": [float(q) for q in np.quantile(ratios, (0.25, 0.75))],
                "cpu_speedup": float(np.median(first_busy / _round_medians(row, 1))),
                "first_ms": 1e3 * row["first"][0],
                "first_cpu_ratio": row["first"][1] / max(_busy(row), 1e-9),
                "load_s": row["load_s"],
                "warm_up_s": row["warm_up_s"],
                "memory_mb": row["memory_mb"],
                "size_mb": row["size_mb"],
                "proved": None if row["proof"] is None else bool(row["proof"]["ok"]),
                "gates": row["proof"],
            }
        )
    return rows


def find_best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the fastest row whose gates are passed, without those that run torch."""
    proved = [row for row in rows if row["proved"] and not row["backend"].startswith("torch")]
    return max(proved, key=lambda row: float(row["speedup"]), default=None)


def write_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| engine | precision | p50 ms | p90 | p99 | CPU ms | speed-up | CPU speed-up "
        "| first / median | load s | memory MB | size MB | gates |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        peak = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        cells = [
            row["label"],
            row["precision"],
            *(f"{row[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "cpu_ms")),
            f"{row['speedup']:.2f}",
            f"{row['cpu_speedup']:.2f}",
            f"{row['first_cpu_ratio']:.2f}",
            f"{row['load_s']:.1f}",
            peak,
            f"{row['size_mb']:.0f}",
            {None: "-", True: "passed", False: "FAILED"}[row["proved"]],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _round_medians(row: Mapping[str, Any], which: int) -> Any:
    return np.maximum([np.median([p[which] for p in turn]) for turn in row["rounds"]], 1e-9)


def _busy(row: Mapping[str, Any]) -> float:
    return float(np.median([pair[1] for turn in row["rounds"] for pair in turn]))
