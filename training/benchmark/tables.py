"""Rows and cells of the Markdown tables that are published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def write_head(*cells: str) -> list[str]:
    """The two lines that a table begins with."""
    return [write_row(*cells), "|" + "---|" * len(cells)]


def write_row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def write_rate(figures: Mapping[str, Any]) -> str:
    """A success rate with its interval; a dash where there was no episode."""
    if not figures["episodes"]:
        return "-"
    low, high = figures["interval"]
    return f"{figures['success_rate']:.2f} [{low:.2f}, {high:.2f}]"


def write_comparison(figures: Mapping[str, Any]) -> str:
    """A row for a pair of variants, under the cells of COMPARISON."""
    by_seed = ", ".join(f"{value:+.3f}" for value in figures["differences"].values())
    return write_row(
        f"{figures['better']} over {figures['worse']}",
        f"{figures['difference']:+.3f}",
        by_seed,
        "-" if figures["p_repeats"] is None else f"{figures['p_repeats']:.3f}",
        f"{figures['wins']} / {figures['losses']} of {figures['pairs']}",
        f"{figures['p_value']:.2g}",
    )


COMPARISON = (
    *("is better", "difference, mean", "by training seed", "p, seeds"),
    *("won / lost of episodes", "p, episodes"),
)
