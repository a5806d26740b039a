"""`vla-align sight`: teach a bundle to tell strange scenes, measure how well it does, show it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError

SUMMARY = (
    "fit what a policy's familiar scenes look like; measure and show how strange ones are told"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=("fit", "measure", "show"))
    parser.add_argument("path", type=Path, help="fit: a finished run; else: a bundle with sight")
    fit = parser.add_argument_group("fit")
    fit.add_argument("--data", nargs="+", default=[], help="the dataset(s) that the run saw")
    fit.add_argument("--cache", type=Path, help="folder of the caches; default in the data")
    fit.add_argument("--place", default="encoder", help="encoder (default) or layer_<k>")
    fit.add_argument("--scenes", type=int, default=2048, help="frames of each split, at most")
    fit.add_argument(
        "--quantile", type=float, default=0.99, help="share of held-out scenes that is familiar"
    )
    measure = parser.add_argument_group("measure, show")
    measure.add_argument(
        "--shift",
        nargs="+",
        default=["all"],
        help="named shifts, or 'all' (all); a wrong name lists them",
    )
    measure.add_argument("--episodes", type=int, default=50, help="scenes a shift; show: the first")
    measure.add_argument(
        "--out", type=Path, help="also write the result there, as JSON; show: the picture"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what `args.action` names."""
    return {"fit": fit, "measure": measure, "show": show}[args.action](args)


def fit(args: argparse.Namespace) -> dict[str, Any]:
    """Write sight.npz into the run; the next export takes it along."""
    from training.sight.familiarity import fit_familiarity

    if not args.data:
        raise ConfigurationError(
            "There are no scenes to fit to",
            got="no --data",
            expected="the dataset that the run was trained on",
            fix="--data data/tabletop",
        )
    statistics = fit_familiarity(
        args.path,
        args.data,
        place=args.place,
        scenes=args.scenes,
        quantile=args.quantile,
        cache=args.cache,
    )
    known = f"{statistics.quantile:.0%} of {statistics.calibrated} held-out scenes"
    print(f"{statistics.fitted} scenes, {statistics.width} numbers at {statistics.place}")
    print(f"familiar up to a distance of {statistics.threshold:.2f}, as {known} are")
    print("export the run (again): the bundle then has a sight graph")
    return {
        "ok": True,
        "run": str(args.path),
        "place": statistics.place,
        "width": statistics.width,
        "threshold": statistics.threshold,
        "quantile": statistics.quantile,
        "fitted": statistics.fitted,
        "calibrated": statistics.calibrated,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Print and return how far each shift's scenes are from the training's."""
    from training.strange_scenes import measure_familiarity, tell_row

    result = measure_familiarity(args.path, args.episodes, _find_names(args.shift))
    print(f"{'shift':18} {'AUROC':>22} {'beyond threshold':>18}  distance")
    for row in result["rows"]:
        told, flagged = tell_row(row, result["episodes"])
        print(f"{row['shift']:18} {told:>22} {flagged:>18}  {row['distance_p50']:.2f}")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def show(args: argparse.Namespace) -> dict[str, Any]:
    """Write one picture: a scene of each shift, where the words look, how strange it is."""
    from PIL import Image

    from training.strange_scenes import draw_scenes

    out = args.out or Path("sight.png")
    Image.fromarray(draw_scenes(args.path, _find_names(args.shift))).save(out)
    print(out)
    return {"ok": True, "bundle": str(args.path), "picture": str(out)}


def _find_names(asked: list[str]) -> list[str]:
    from vla_align_ros.sim.shifts import SHIFTS

    return list(SHIFTS) if asked == ["all"] else asked
