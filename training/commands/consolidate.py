"""`vla-align consolidate`: one file of weights from a run's sharded checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "put a run's newest checkpoint together into one model, finished or not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, help="folder for the weights; default the run's own")
    parser.add_argument(
        "--lora",
        choices=("merged", "apart"),
        default="merged",
        help="fold the adapter into OpenVLA's weights, or write it apart for peft",
    )
    parser.add_argument(
        "--step", type=int, help="which checkpoint; default the newest, and an older needs --out"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the weights, say where they are, return the same."""
    from training.consolidate import consolidate

    result = consolidate(args.run, args.out, step=args.step, lora=args.lora)
    print(f"{result['weights']}: step {result['step']}")
    return result
