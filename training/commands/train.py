"""`vla-align train`: train a recipe on LeRobot data, or continue the run that is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "train a policy from a recipe, aligned or not; continues an interrupted run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments (the same as `torchrun -m training.train`)."""
    parser.add_argument("--recipe", required=True, help="name of a recipe, e.g. tabletop_align")
    parser.add_argument(
        "--data", required=True, nargs="+", action="extend", help="LeRobot data set folder(s)"
    )
    parser.add_argument("--out", required=True, help="folder of the run; an existing one goes on")
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe: optim.lr=1e-4",
    )
    parser.add_argument("--cache", type=Path, help="folder of the caches; default in the data")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and return the summary of the run."""
    from training.train import train

    return train(args.recipe, args.data, args.out, settings=args.set, cache=args.cache)
