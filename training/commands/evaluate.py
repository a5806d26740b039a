"""`vla-align evaluate`: closed-loop success of policies, in and out of distribution."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.contract.spec import EXECUTED_ACTIONS
from vla_align_ros.errors import ConfigurationError

OF_SUITES = ("envs", "compare", "jobs", "out", "assets", "size", "render")
OF_SHIFTS = ("shift", "swap")
SUMMARY = "run policies in closed loop in a simulator and report success with its interval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "bundle",
        nargs="*",
        help="a policy bundle; with --suite several, or finished runs, each as FOLDER or "
        "NAME=FOLDER: those of one name are training seeds of one variant",
    )
    parser.add_argument("--policy", choices=["expert"], help="the scripted expert in their place")
    parser.add_argument("--episodes", type=int, default=50, help="episodes an environment or shift")
    parser.add_argument("--seed", type=int, default=0, help="first seed; seeds are consecutive")
    parser.add_argument(
        "--execute",
        type=int,
        metavar="K",
        help=f"actions executed of each chunk ({EXECUTED_ACTIONS}, or all of the shortest chunk)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of the policy's inference")
    suite = parser.add_argument_group("a suite of environments")
    suite.add_argument("--suite", help="put_on_plate, vl_think or tabletop")
    suite.add_argument("--envs", nargs="+", metavar="ENV", help="some, with blanks, or 'all' (all)")
    suite.add_argument(
        "--compare",
        nargs="+",
        metavar="ENV",
        help="the environments that policies are compared in, paired; all of --envs by default",
    )
    suite.add_argument("--jobs", type=int, help="simulators side by side (1)")
    suite.add_argument(
        "--out",
        type=Path,
        help="keep episodes, report.json and report.html; continues what is there",
    )
    suite.add_argument("--assets", help="folder that `vla-align assets` describes")
    suite.add_argument("--size", type=parse_size, metavar="WxH", help="picture (640x480)")
    suite.add_argument("--render", choices=["cpu", "gpu"], help="who draws (cpu)")
    shifts = parser.add_argument_group("without --suite: the table-top's shifts, one bundle")
    shifts.add_argument(
        "--shift", nargs="+", help="named shifts, or 'all' (none); a wrong name lists them"
    )
    shifts.add_argument(
        "--swap",
        action="store_true",
        help="name the other object and judge the first: a policy that follows words fails",
    )


def parse_size(text: str) -> tuple[int, int]:
    """Read "320x240"."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 320x240") from None
    return width, height


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a suite, or the table-top's shifts; print and return the table."""
    if not args.bundle and args.policy is None:
        raise ConfigurationError(
            "Nothing to evaluate", got="no policy", expected="bundles, or --policy expert"
        )
    _refuse_idle(args)
    if args.suite is not None:
        return run_suite(args)
    if len(args.bundle) != 1 or args.policy is not None:
        raise ConfigurationError(
            "One bundle at a time",
            got=f"{len(args.bundle)} bundles" + (" and --policy" if args.policy else ""),
            expected="one bundle, or --suite NAME",
            fix="add --suite put_on_plate, vl_think or tabletop",
        )
    return run_shifts(args)


def _refuse_idle(args: argparse.Namespace) -> None:
    """Refuse options that this way of evaluating does not look at."""
    suite = args.suite is not None
    idle = list(OF_SHIFTS if suite else OF_SUITES)
    if args.suite == "tabletop":
        idle += ["size", "render", "assets"]
    given = [f"--{name}" for name in idle if getattr(args, name) not in (None, False)]
    if given:
        raise ConfigurationError(
            "Options that would do nothing",
            got=" ".join(
                [*given, *(["with --suite", args.suite] if suite else ["without --suite"])]
            ),
            expected="options of one way to evaluate",
            fix="leave them out" if suite else "add --suite NAME, or leave them out",
        )


def run_suite(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate policies, and the expert if asked, over a suite."""
    from training.benchmark.evaluate import Request, evaluate_suite
    from training.benchmark.stages import Rules
    from vla_align_ros.sim.put_on_plate.environments import FULL_SIZE_PX

    report = evaluate_suite(
        Request(
            Rules(args.suite, args.execute, args.size or FULL_SIZE_PX, args.render or "cpu"),
            [*args.bundle, *([None] if args.policy else [])],
            args.envs or ["all"],
            args.episodes,
            args.seed,
            1 if args.jobs is None else args.jobs,
            args.threads,
            args.assets,
            args.out,
            args.compare or ["all"],
        )
    )
    for policy in report["policies"]:
        known = policy["bundle"] is not None
        print(f"{policy['name']} ({policy['policy'][:12]})" if known else policy["name"])
        for name, row in policy["envs"].items():
            low, high = row["interval"]
            print(
                f"  {name:18} {row['successes']:3d}/{row['episodes']}  {row['success_rate']:.2f} "
                f"[{low:.2f}, {high:.2f}]  at the end {row['successes_end']}  "
                f"{row['step_ms']:.1f} ms/step"
            )
    for row in report["comparisons"]:
        if not row["pairs"]:
            print(f"{row['better']} over {row['worse']}: nothing in common to compare")
            continue
        print(
            f"{row['better']} over {row['worse']}: {row['difference']:+.3f}, "
            f"p {row['p_value']:.2g} ({row['pairs']} pairs)"
            + _tell_repeats(row["differences"], row["p_repeats"])
        )
    return report


def _tell_repeats(differences: Mapping[int, float], p_value: float | None) -> str:
    """What the training seeds say one by one, where there are several."""
    from training.benchmark.figures import tell_p

    if len(differences) < 2:
        return ""
    told = ", ".join(f"{value:+.3f}" for value in differences.values())
    return f"; by training seed {told}, p {tell_p(p_value)}"


def run_shifts(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate every shift of the table-top in turn."""
    from training.closed_loop import evaluate
    from vla_align_ros.sim.shifts import SHIFTS, find_shift

    asked = args.shift or ["none"]
    names = [find_shift(name).name for name in (SHIFTS if asked == ["all"] else asked)]
    rows = [
        evaluate(
            args.bundle[0],
            shift=name,
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
