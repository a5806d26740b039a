"""`vla-align bench strategies`: what each strategy of chunk execution does to the arm's motion."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.share import find_share

SUMMARY = "compare the strategies of chunk execution in the simulator, under a given latency"
COLUMNS = {
    "handover_step_mm_s_p50": "step at hand-over mm/s, p50",
    "handover_step_mm_s_p99": "p99",
    "jerk_rms_m_s3": "jerk rms m/s3",
    "jerk_p99_m_s3": "jerk p99 m/s3",
}
REACTIONS = {"words": "reaction to words s", "moved_object": "to a moved object s"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which bundle, how many scenes and episodes, how slow, and where to write."""
    parser.add_argument("--bundle", type=Path, metavar="B", help="default bundles/tabletop")
    parser.add_argument("--scenes", type=int, default=10, metavar="N", help="for the motion")
    parser.add_argument("--episodes", type=int, default=0, metavar="N", help="for success; 0: none")
    parser.add_argument(
        "--latency-ms", type=float, default=100.0, metavar="MS", help="of an inference, simulated"
    )
    parser.add_argument(
        "--replan-ms", type=float, metavar="MS", help="between plans of an episode; default: node's"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_out/strategies"), metavar="DIR")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; writes strategies.json and table.md into --out.

    Raises:
        ConfigurationError: without a scene.
    """
    replan_ms = 0.0 if args.replan_ms is None else args.replan_ms
    if args.scenes < 1 or min(args.episodes, args.latency_ms, replan_ms) < 0:
        raise ConfigurationError(
            "Nothing to compare",
            got=f"{args.scenes} scenes, {args.episodes} episodes, {args.latency_ms:g} ms of "
            f"latency, a plan every {replan_ms:g} ms",
            expected="a scene or more, and none of the others below 0",
            fix="correct --scenes, --episodes, --latency-ms or --replan-ms",
        )
    from vla_align_ros.bench.handover import compare_strategies

    bundle = (args.bundle or find_share() / "bundles" / "tabletop").resolve()
    report = compare_strategies(
        bundle,
        args.scenes,
        args.latency_ms / 1e3,
        lambda text: print(text, flush=True),
        episodes=args.episodes,
        replan_s=None if args.replan_ms is None else args.replan_ms / 1e3,
    )
    table = "\n".join(write_table(report)) + "\n"
    print(table)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "strategies.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    return report


def write_table(report: Mapping[str, Any]) -> list[str]:
    """Lines of the strategies' table, as Markdown."""
    rows = {name: row for name, row in report.items() if isinstance(row, dict)}
    counted = all("successes" in row for row in rows.values())
    heads = ["strategy", *COLUMNS.values(), *REACTIONS.values(), *(["success"] if counted else [])]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, row in rows.items():
        cells = [str(row[key]) for key in COLUMNS]
        cells += [str(row[f"reaction_to_{what}_s"]["median"]) for what in REACTIONS]
        if counted:
            low, high = row["success_interval"]
            cells.append(f"{row['successes']}/{row['episodes']} [{low:.2f}, {high:.2f}]")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines
