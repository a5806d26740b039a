"""`vla-align bench training`: what a step costs with and without alignment."""

from __future__ import annotations

import argparse
from typing import Any

SUMMARY = "time training steps without alignment, with the teacher online, with cached features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--recipe", required=True, help="an aligned recipe, e.g. smol_align")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each kind (20)")
    parser.add_argument("--batch-size", type=int, help="samples a step (the recipe's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, return the figures."""
    from training.bench import VARIANTS, bench_training
    from training.recipes import find_recipe
    from training.settings import override

    config = override(find_recipe(args.recipe), args.set)
    result = bench_training(
        config, args.steps, batch_size=args.batch_size, device=args.device, progress=not args.json
    )
    print(
        f"{result['recipe']}: {result['parameters'] / 1e6:.1f} M parameters, batch "
        f"{result['batch_size']}, {result['precision']} on {result['machine']} ({result['device']})"
    )
    print(f"  {'':14} {'median ms':>10} {'p90 ms':>10} {'samples/s':>10} {'ratio':>7}")
    for name in VARIANTS:
        figures = [result[f"{name}_{key}"] for key in ("ms", "p90_ms", "samples_per_s")]
        ratio = result.get(f"{name}_ratio", 1.0)
        print(f"  {name:14} " + " ".join(f"{f:10.1f}" for f in figures) + f" {ratio:7.3f}")
    return result
