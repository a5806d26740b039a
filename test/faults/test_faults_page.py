"""The safety page lists every fault that is injected, and its table can be replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_align_ros.bench.catalogue import FAULTS
from vla_align_ros.bench.cli_faults import BEGIN, END, put_table
from vla_align_ros.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def test_the_results_hold_every_fault_of_the_catalogue() -> None:
    results = json.loads((ROOT / "docs/results/runtime_faults.json").read_text())
    assert [row["name"] for row in results["faults"]] == [fault.name for fault in FAULTS]
    assert [row["what"] for row in results["faults"]] == [fault.what for fault in FAULTS]


def test_names_are_unique_and_every_stop_has_a_reason() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.reasons for fault in FAULTS if fault.stops)


def test_the_table_replaces_what_stands_between_the_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = put_table(page, "| new |\n")
    assert once == f"before\n{BEGIN}\n| new |\n{END}\nafter\n"
    assert put_table(once, "| new |\n") == once
    with pytest.raises(ConfigurationError, match="no place for the tables"):
        put_table("a page", "| new |\n")
