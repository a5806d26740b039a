"""`vla-align bench soak`: memory and latency of the policy node over many minutes at full rate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vla_align_ros.share import find_share

SUMMARY = "run the policy node at full rate for minutes; memory and latency must stay flat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how long, which bundle, and where to write."""
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N")
    parser.add_argument("--bundle", type=Path, metavar="B", help="default bundles/tabletop")
    parser.add_argument("--out", type=Path, default=Path("bench_out/soak"), metavar="DIR")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; writes soak.json and plots into --out; `ok` is whether memory and latency stay."""
    from vla_align_ros.bench.neighbours import Neighbours
    from vla_align_ros.bench.plots import draw_course
    from vla_align_ros.bench.soak import soak
    from vla_align_ros.demo.report import describe_machine

    bundle = (args.bundle or find_share() / "bundles" / "tabletop").resolve()
    out = args.out.resolve()
    neighbours = Neighbours()
    report = soak(bundle, out, 60.0 * args.minutes, lambda text: print(text, flush=True))
    report["machine"] = {**describe_machine(), "processors_used": neighbours.describe()}
    (out / "soak.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    minutes = [sample["time_s"] / 60.0 for sample in report["samples"]]
    latency = report["total_ms"]  # of the warm samples but their first, which has none before it
    courses = {
        "rss_mib": (
            *("Resident memory of policy_node", "MiB", minutes),
            [sample["rss_mib"] for sample in report["samples"]],
        ),
        "total_ms": ("Camera stamp to command", "ms", minutes[-len(latency) :], latency),
    }
    for name, course in courses.items():
        (out / f"{name}.svg").write_text(draw_course(*course), encoding="utf-8")
    return report
