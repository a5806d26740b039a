"""Holds the documents to what is there: links, pictures, and figures that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read_results(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((ROOT / "docs/results" / f"{name}.json").read_text())
    return values


def tell_success(row: dict[str, Any]) -> str:
    low, high = row["success_interval"]
    return (
        f"{row['successes']}/{row['episodes']}, {row['success_rate']:.2f} [{low:.2f}, {high:.2f}]"
    )


def find_row(page: str, *keys: str) -> str:
    rows = [line for line in page.splitlines() if all(key in line for key in keys)]
    assert len(rows) == 1, f"{keys}: {rows}"
    return rows[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    targets = [t.split("#")[0] for t in LINK.findall(page.read_text()) if "://" not in t]
    missing = [t for t in targets if t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_is_left_open(page: Path) -> None:
    assert not re.findall(r"\bRESULT_[A-Z_0-9]+|\bTBD\b|\bTODO\b", page.read_text())


def test_the_readme_shows_the_shifts_as_measured() -> None:
    page, results = (ROOT / "README.md").read_text(), read_results("tabletop_shifts")
    assert len(results["rows"]) >= 12
    for row in results["rows"]:
        assert tell_success(row) in find_row(page, f"| `{row['shift']}` |")


def test_the_readme_shows_the_demonstration_as_measured() -> None:
    page, demo, swap = (
        (ROOT / "README.md").read_text(),
        read_results("tabletop_demo")["report"],
        read_results("tabletop_swap")["report"],
    )
    assert tell_success(demo) in find_row(page, "./scripts/demo --episodes 50`")
    told = {"episodes": swap["episodes"], **swap["told"]}
    assert tell_success(told) in find_row(page, "./scripts/demo --episodes 50 --swap`")
    assert tell_success(swap) in find_row(page, "the object *not* named")


def test_the_safety_page_shows_the_faults_as_measured() -> None:
    page, results = (ROOT / "docs/safety.md").read_text(), read_results("runtime_faults")
    assert results["ok"] is True
    assert len(results["faults"]) >= 30
    for fault in results["faults"]:
        assert fault["ok"], fault["name"]
        row = find_row(page, f"| {fault['what']} |")
        for key in ("detection_s", "bar_s", "stop_s"):
            assert fault[key] is None or f" {1e3 * fault[key]:.0f} |" in row


def test_the_benchmarks_page_shows_the_node_as_measured() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    run, soak = read_results("runtime"), read_results("runtime_soak")
    strategies = read_results("runtime_strategies")["strategies"]
    for title, key in (
        ("| camera stamp to command, without inference, p50 ms |", "overhead_ms_p50"),
        ("| the same, p99 ms |", "overhead_ms_p99"),
        ("| 50 Hz timer late while inference runs, p99 ms |", "timer_late_ms_p99"),
    ):
        for kind in ("ours", "naive"):
            assert f" {run[kind][key]:.1f} |" in find_row(page, title)
    pictures = find_row(page, "| pictures received / sent |")
    for kind in ("ours", "naive"):
        assert f"{run[kind]['frames_received']}/{run[kind]['frames_sent']}" in pictures
    for name, value in run["bars"].items():
        row = {
            "frames_lost": "| pictures lost with the profile |",
            "overhead_ms_p99": "| camera stamp to command minus inference, p99 |",
            "timer_late_added_ms_p99": "| lateness of the 50 Hz timer that inference adds, p99 |",
            "command_work_ms_p99": "| Python work of a command's tick, p99 |",
        }[name]
        assert ("**not met**" in find_row(page, row)) == (not value["met"])
    for name in ("queue", "newest", "ensemble", "blend"):
        jerk = strategies[name]["jerk_rms_m_s3"]
        assert f"| {jerk} |" in find_row(page, f"| `{name}` | ")
    assert f"memory grew by {soak['rss_growth_mib']:.2f} MiB" in page
    assert f"{soak['latency_ratio']:.2f} times as long" in page


def test_results_are_of_the_shipped_bundle_and_meet_the_bar() -> None:
    bundle = json.loads((ROOT / "bundles/tabletop/manifest.json").read_text())["id"]
    demo, swap = (read_results(name)["report"] for name in ("tabletop_demo", "tabletop_swap"))
    assert {demo["bundle_id"], swap["bundle_id"]} == {bundle}
    assert {row["bundle_id"] for row in read_results("tabletop_shifts")["rows"]} == {bundle}
    assert bundle[:12] in (ROOT / "README.md").read_text()
    assert demo["success_rate"] >= 0.8 and swap["success_rate"] < 0.2


@pytest.mark.parametrize("suite", ["put_on_plate", "vl_think"])
def test_the_benchmarks_page_shows_the_expert_as_measured(suite: str) -> None:
    page, results = (ROOT / "docs/benchmarks.md").read_text(), read_results(f"{suite}_expert")
    assert [policy["policy"] for policy in results["policies"]] == ["expert"]
    for name, row in results["envs"].items():
        told = tell_success({**row, "success_interval": row["interval"]})
        shown = find_row(page, f"| `{name}` |")
        assert told in shown and f"| {row['successes_end']}/{row['episodes']} |" in shown
        assert row["success_rate"] >= 0.9


def test_the_page_of_sight_tells_what_was_measured() -> None:
    page, results = (ROOT / "docs/sight.md").read_text(), read_results("sight_shifts")
    assert len(results["rows"]) >= 12 and results["episodes"] == 60
    for row in results["rows"]:
        told = "-"
        if row["auroc"] is not None:
            low, high = row["auroc_interval"]
            told = f"{row['auroc']:.2f} [{low:.2f}, {high:.2f}]"
        line = f"| `{row['shift']}` | {row['axis']} | {told} | {row['flagged']}/60 |"
        assert line in page, line


def test_the_robot_page_tells_how_often_planning_was_measured() -> None:
    page, rows = (ROOT / "docs/robot.md").read_text(), read_results("tabletop_replan")["rows"]
    often, rare = ([row for row in rows if row["replan_period_s"] == s] for s in (0.0, 0.4))
    first = [row["successes"] for row in often if row["episodes"] == 20]
    assert f"succeeded in {first[0]} and {first[1]} with an inference" in page
    assert f"succeeded in {rare[0]['successes']} of the {rare[0]['episodes']}" in page
    readme = (ROOT / "README.md").read_text()
    assert f"{sum(first)} of {20 * len(first)}\n" in readme
    assert {row["bundle_id"] for row in rows} == {
        read_results("tabletop_bundles")["rows"][0]["bundle_id"]
    }
