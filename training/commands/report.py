"""`vla-align report`: one page about a training run."""

from __future__ import annotations

import argparse
from typing import Any

SUMMARY = "write report.html of a training run: curves, probe, drift, attention"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="folder that `vla-align train --out` fills; may be unfinished")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page, say where it is, return the same."""
    from training.sight.page import write_report

    path = write_report(args.run)
    print(path)
    return {"report": str(path), "bytes": path.stat().st_size}
