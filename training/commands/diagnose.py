"""`vla-align diagnose`: what training did to the sight of one run or several, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "compare the sight of runs: attention, probes, drift, t-SNE, before and after training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `vla-align train`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--after-only", action="store_true", help="not as training found them")
    parser.add_argument(
        "--pictures", help="folder of labelled pictures, one folder a kind; default: drawings"
    )
    parser.add_argument(
        "--per-label", type=int, default=16, help="pictures of a kind (%(default)s)"
    )
    parser.add_argument("--views", type=int, default=1, help="times each is shown (%(default)s)")
    parser.add_argument("--labels", nargs="+", default=[], help="kinds to map; default: some")
    parser.add_argument(
        "--label-count", type=int, default=6, help="so many, without --labels (%(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=16, help="held-out scenes (%(default)s)")
    parser.add_argument("--drawn", type=int, default=3, help="of them with attention (%(default)s)")
    parser.add_argument(
        "--solver",
        choices=("logistic", "sgd"),
        default="logistic",
        help="of the probe; sgd: paper's",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page, say where it is, return its figures."""
    from training.diagnose import DiagnoseRequest, diagnose
    from training.diagnose.command import PAGE

    result = diagnose(
        DiagnoseRequest(
            args.runs,
            args.out,
            before=not args.after_only,
            pictures=args.pictures,
            per_label=args.per_label,
            views=args.views,
            labels=tuple(args.labels),
            label_count=args.label_count,
            scenes=args.scenes,
            drawn=args.drawn,
            solver=args.solver,
        )
    )
    page = args.out / PAGE
    print(page)
    return {"ok": True, "page": str(page), **result}
