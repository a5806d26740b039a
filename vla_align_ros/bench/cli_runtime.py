"""`vla-align bench runtime`: real time of the policy node, beside a naive one, in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vla_align_ros.bench.cli_strategies import write_table as write_strategies
from vla_align_ros.share import find_share

SUMMARY = "measure pictures received, overhead and timer lateness beside a naive node"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how long, which bundle, and where to write."""
    parser.add_argument("--seconds", type=float, default=10.0, metavar="N", help="a node, at 30 Hz")
    parser.add_argument("--bundle", type=Path, metavar="B", help="default bundles/tabletop")
    parser.add_argument("--out", type=Path, default=Path("bench_out/runtime"), metavar="DIR")
    parser.add_argument(
        "--scenes", type=int, default=3, metavar="N", help="of the simulator a strategy; 0 for none"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; writes runtime.json, table.md and plots into --out."""
    from vla_align_ros.bench.handover import compare_strategies
    from vla_align_ros.bench.neighbours import Neighbours
    from vla_align_ros.bench.plots import draw_distribution
    from vla_align_ros.bench.realtime import judge, measure_node
    from vla_align_ros.demo.report import describe_machine

    bundle = (args.bundle or find_share() / "bundles" / "tabletop").resolve()
    out = args.out.resolve()
    neighbours = Neighbours()
    runs = {kind: measure_node(kind, bundle, out, args.seconds) for kind in ("ours", "naive")}
    busy = neighbours.describe()
    report: dict[str, Any] = {
        "seconds": args.seconds,
        **{kind: measured.summary() for kind, measured in runs.items()},
    }
    report["bars"] = judge(report["ours"])
    report["strategies"] = None
    if args.scenes > 0:
        report["strategies"] = compare_strategies(bundle, args.scenes)
    report["machine"] = {**describe_machine(), "processors_used": busy}
    table = write_table(report)
    print(table)
    (out / "runtime.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    plots = {
        "overhead": ("Camera stamp to command at the arm, without inference", "overhead_ms"),
        "lateness": ("Lateness of the 50 Hz command timer while inference runs", "late_ms"),
    }
    for name, (title, figure) in plots.items():
        samples = {kind: getattr(measured, figure) for kind, measured in runs.items()}
        (out / f"{name}.svg").write_text(draw_distribution(title, samples), encoding="utf-8")
    return report


ROWS = (
    ("pictures received / sent", "{frames_received} / {frames_sent}"),
    ("camera stamp to command minus inference, p50 / p99 ms",
     "{overhead_ms_p50} / {overhead_ms_p99}"),
    ("inference alone, p50 / p99 ms", "{infer_ms_p50} / {infer_ms_p99}"),
    ("50 Hz timer late, idle, p50 / p99 ms",
     "{timer_late_idle_ms_p50} / {timer_late_idle_ms_p99}"),
    ("50 Hz timer late, with inference, p50 / p99 ms", "{timer_late_ms_p50} / {timer_late_ms_p99}"),
    ("ticks that never came", "{ticks_missed}"),
    ("processor time of a command's tick, p99 ms", "{command_work_ms_p99}"),
)  # fmt: skip


def write_table(report: dict[str, Any]) -> str:
    """The report's tables, as Markdown."""
    busy = report["machine"]["processors_used"]
    lines = [
        f"Other programs used {busy['others']:.0%} of the machine's processors meanwhile.",
        "",
        "| | policy_node | naive node |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {form.format(**report['ours'])} | {form.format(**report['naive'])} |".replace(
            "None", "-"
        )
        for name, form in ROWS
    ]
    strategies = report["strategies"]
    if strategies is None:
        return "\n".join(lines) + "\n"
    return "\n".join([*lines, "", *write_strategies(strategies)]) + "\n"
