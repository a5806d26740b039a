"""`vla-align bench faults`: every injected fault and the time until the arm stands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vla_align_ros.pages import put_between
from vla_align_ros.share import find_share

BEGIN = "<!-- faults: written by vla-align bench faults -->"
END = "<!-- end of faults -->"
SUMMARY = "inject every fault into running processes and measure the time until the arm stands"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, which faults, and where to write."""
    parser.add_argument("--bundle", type=Path, metavar="B", help="default bundles/tabletop")
    parser.add_argument("--out", type=Path, default=Path("bench_out/faults"), metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="FAULT", help="these alone, by name")
    parser.add_argument(
        "--into", type=Path, metavar="MD", help="if all pass, put the table into this page"
    )
    parser.add_argument("--list", action="store_true", help="print the names and what they are")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the faults; writes faults.json and faults.md into --out."""
    from vla_align_ros.bench.faults import find_faults, run_faults, tell_outcome, write_table
    from vla_align_ros.demo.report import describe_machine

    faults = find_faults(args.only)
    if args.list:
        for fault in faults:
            print(f"{fault.name:26} {fault.what}")
        return {"ok": True, "faults": [fault.name for fault in faults]}
    bundle = args.bundle or find_share() / "bundles" / "tabletop"
    out = args.out.resolve()
    report = run_faults(
        bundle.resolve(), out, args.only, lambda outcome: print(tell_outcome(outcome), flush=True)
    )
    report["machine"] = describe_machine()
    (out / "faults.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    table = write_table(report)
    (out / "faults.md").write_text(table, encoding="utf-8")
    if args.into is not None and report["ok"]:
        args.into.write_text(put_table(args.into.read_text(encoding="utf-8"), table), "utf-8")
    return report


def put_table(page: str, table: str) -> str:
    """Replace what stands between the marks of a page; ConfigurationError without them."""
    return put_between(page, BEGIN, END, table)
