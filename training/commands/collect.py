"""`vla-align collect`: record the scripted expert, with recovery starts, as a LeRobot dataset."""

from __future__ import annotations

import argparse
import time
from typing import Any

from training.commands.evaluate import parse_size
from training.data.collect import collect
from training.data.collect_settings import ENVIRONMENTS, CollectSettings
from vla_align_ros.errors import DataError

SUMMARY = "record demonstrations of the scripted expert as a LeRobot v3.0 dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--env", choices=ENVIRONMENTS, default="tabletop")
    parser.add_argument("--episodes", type=int, required=True, help="episodes in the end")
    parser.add_argument("--out", required=True, help="the dataset's folder; continued if it exists")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    parser.add_argument("--jobs", type=int, default=1, help="processes that simulate")
    parser.add_argument(
        "--shift", default="none", help="named shift of the table-top; a wrong name lists them"
    )
    parser.add_argument("--assets", help="put_on_plate: folder that `vla-align assets` describes")
    parser.add_argument(
        "--size", type=parse_size, metavar="WxH", help="put_on_plate: picture (640x480)"
    )
    parser.add_argument(
        "--render", choices=["cpu", "gpu"], default="cpu", help="put_on_plate: who draws"
    )
    parser.add_argument(
        "--policy", help="bundle that drives the unrecorded run-up (DAgger); the expert takes over"
    )
    parser.add_argument(
        "--record-frames",
        metavar="LOW:HIGH",
        help="record only so many frames an episode (many scenes, short clips); default: all",
    )
    parser.add_argument("--episodes-per-file", type=int, default=50, help="size of a shard")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Collect, print the summary, return it."""
    settings = CollectSettings(
        env=args.env,
        seed=args.seed,
        shift=args.shift,
        record_frames=parse_range(args.record_frames),
        policy=args.policy,
        size_px=args.size,
        assets=args.assets,
        render_backend=args.render,
    )
    started_s = time.monotonic()
    summary = collect(
        settings,
        args.out,
        args.episodes,
        jobs=args.jobs,
        episodes_per_file=args.episodes_per_file,
    )
    summary["seconds"] = round(time.monotonic() - started_s, 1)
    for name, value in summary.items():
        print(f"{name:10} {value}")
    return summary


def parse_range(text: str | None) -> tuple[int, int] | None:
    """Read "4" as (4, 4), "2:6" as (2, 6), None as None; anything else raises DataError."""
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        bounds = (int(low), int(high or low))
    except ValueError:
        bounds = (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise DataError(
            "Bad --record-frames",
            got=text,
            expected="LOW:HIGH with 1 <= LOW <= HIGH, or one number",
            fix="for example --record-frames 2:6",
        )
    return bounds
