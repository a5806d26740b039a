"""`vla-align evaluate`: closed-loop success of a bundle, in and out of distribution."""

from __future__ import annotations

import argparse
from typing import Any

SUMMARY = "run a bundle in closed loop in the simulator and report success with its interval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", help="policy bundle")
    parser.add_argument("--shift", nargs="+", default=["none"], help="named shifts, or 'all'")
    parser.add_argument("--episodes", type=int, default=50, help="episodes a shift")
    parser.add_argument("--seed", type=int, default=0, help="first seed; seeds are consecutive")
    parser.add_argument(
        "--execute", type=int, default=2, metavar="K", help="actions executed of each chunk"
    )
    parser.add_argument(
        "--swap",
        action="store_true",
        help="name the other object and judge the first: a policy that follows words fails",
    )
    parser.add_argument("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate every shift in turn; print and return the table."""
    from training.closed_loop import evaluate
    from vla_align_ros.sim.shifts import SHIFTS, find_shift

    names = list(SHIFTS) if args.shift == ["all"] else args.shift
    rows = [
        evaluate(
            args.bundle,
            shift=find_shift(name).name,
            episodes=args.episodes,
            seed=args.seed,
            executed=args.execute,
            swap=args.swap,
            threads=args.threads,
        )
        for name in names
    ]
    for row in rows:
        low, high = row["success_interval"]
        print(
            f"{row['shift']:18} {row['successes']:3d}/{row['episodes']}  "
            f"{row['success_rate']:.2f} [{low:.2f}, {high:.2f}]"
        )
    return {"rows": rows}
