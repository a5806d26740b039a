"""`vla-align sweep`: run a table of variants of a recipe, and compare them."""

from __future__ import annotations

import argparse
from typing import Any

SUMMARY = "train a table of variants, each an ordinary run, and write one comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--recipe", required=True, help="recipe that all variants start from")
    parser.add_argument(
        "--data", required=True, nargs="+", action="extend", help="as `vla-align train`"
    )
    parser.add_argument("--out", required=True, help="folder of the sweep; an existing one goes on")
    parser.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="vary a setting; several axes give every combination",
    )
    parser.add_argument(
        "--table",
        metavar="NAME",
        help="one of the paper's: paper_baselines, paper_losses, paper_projectors, paper_layers, "
        "paper_lambda",
    )
    parser.add_argument("--seeds", default="0", help="0,1,2: every variant with each of them")
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe for all of them: optim.steps=500",
    )
    parser.add_argument("--cache", help="folder of the caches; default in the data")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="ranks of a run, by torchrun")
    parser.add_argument("--reference", metavar="ROW", help="compare with this row, not the first")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        help="column of comparison.md, may be repeated; default: all of val/",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sweep; the comparison is printed and returned."""
    from training.recipes import find_recipe
    from training.settings import override
    from training.setup_model import find_base
    from training.sweep import SweepPlan, expand_axes, run_sweep
    from training.sweep_tables import find_table

    _check(args)
    seeds = _parse_seeds(args.seeds)
    base = find_base(override(find_recipe(args.recipe), args.set))
    rows = find_table(args.table, base.model.llm) if args.table is not None else ()
    plan = SweepPlan(
        recipe=args.recipe,
        data=tuple(args.data),
        rows=expand_axes(args.axis, rows),
        seeds=seeds,
        settings=tuple(args.set),
        cache=args.cache,
    )
    result = run_sweep(
        plan,
        args.out,
        jobs=args.jobs,
        nproc=args.nproc_per_node,
        reference=args.reference,
        metrics=args.metric,
    )
    print((result["out"] / "comparison.md").read_text())
    return result


def _check(args: argparse.Namespace) -> None:
    from vla_align_ros.errors import ConfigurationError

    if not args.axis and args.table is None:
        raise ConfigurationError(
            "Nothing to compare",
            got="neither --axis nor --table",
            expected="at least one of them",
            fix="for example --axis alignment.weight=0,0.2 or --table paper_losses",
        )
    for name, value in (("--jobs", args.jobs), ("--nproc-per-node", args.nproc_per_node)):
        if value < 1:
            raise ConfigurationError(
                f"Wrong value for {name}", got=value, expected="1 or more", fix=f"correct {name}"
            )


def _parse_seeds(text: str) -> tuple[int, ...]:
    from vla_align_ros.errors import ConfigurationError

    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigurationError(
            "Wrong value for --seeds",
            got=repr(text),
            expected="different whole numbers from 0 on, with commas between",
            fix="for example --seeds 0,1,2",
        )
    return seeds
