"""`vla-align train`: train a recipe on LeRobot data, or continue the run that is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError

SUMMARY = "train a policy from a recipe, aligned or not; continues an interrupted run"
# What a dry run finds of a checkpoint that does not fit.
MISFITS = ("missing_keys", "unexpected_keys", "mismatched_shapes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments (the same as `torchrun -m training.train`)."""
    parser.add_argument("--recipe", required=True, help="name of a recipe, e.g. tabletop_align")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        help="LeRobot data sets: FOLDER or OWNER/NAME[@REVISION], each with :WEIGHT or without",
    )
    parser.add_argument("--out", help="folder of the run; an existing one goes on")
    parser.add_argument(
        "--base",
        help="start from an OpenVLA checkpoint (folder or repository) or a finished run",
    )
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe: optim.lr=1e-4",
    )
    parser.add_argument("--cache", type=Path, help="folder of the caches; default in the data")
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="train without episodes whose videos are damaged (the same as data.skip_broken=true)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only check the tensors and print parameters and memory a GPU; needs no data",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and return the summary of the run, or of the run that it would be."""
    settings = [*args.set, *(["data.skip_broken=true"] if args.skip_broken else [])]
    if args.dry_run:
        from training.preview import preview

        result = preview(args.recipe, base=args.base, settings=settings)
        print_preview(result)
        return {**result, "ok": not any(result.get(key) for key in MISFITS)}
    missing = [name for name in ("data", "out") if not getattr(args, name)]
    if missing:
        raise ConfigurationError(
            "Training needs data and a folder for the run",
            got="no --" + " and no --".join(missing),
            expected="--data DIR --out RUN",
            fix="give both, or --dry-run",
        )
    from training.train import train

    return train(
        args.recipe, args.data, args.out, base=args.base, settings=settings, cache=args.cache
    )


def print_preview(result: dict[str, Any]) -> None:
    """Print what a run would be: parameters, tensors that do not fit, memory a GPU by layout."""
    print(f"{result['recipe']}: {result['parameters']:,} parameters")
    for key in MISFITS:
        for name in result.get(key, []):
            print(f"{key.replace('_', ' ')}: {name}")
    print("GB a GPU, where")
    for name, value in result["assumptions"].items():
        print(f"  {name.replace('_', ' ')}: {value}")
    for name, memory_gb in result["memory_gb"].items():
        print(f"{name:16} {memory_gb:8.2f}")
