"""`vla-align sight`: teach a bundle to tell strange scenes, measure how well it does, show it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.verbs import Verb, add_verbs, run_verb

PICTURES = (".png", ".jpg", ".jpeg")
SUMMARY = (
    "fit what a policy's familiar scenes look like; measure and show how strange ones are told"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command does, each with its own arguments."""
    add_verbs(
        parser,
        {
            "fit": Verb("fit a finished run's familiar scenes, for its next export", _add_fit, fit),
            "measure": Verb(
                "tell how well a bundle's strange scenes are told", _add_measure, measure
            ),
            "show": Verb("draw where a bundle looks, a scene of each shift", _add_show, show),
        },
    )


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, metavar="run", help="a finished run")
    add("--data", nargs="+", default=[], help="the dataset(s) that the run saw")
    add("--cache", type=Path, help="folder of the caches; default in the data")
    add("--place", default="encoder", help="encoder (default) or layer_<k>")
    add("--scenes", type=int, default=2048, help="frames of each split, at most (2048)")
    add("--quantile", type=float, default=0.99, help="share of held-out scenes that is familiar")


def _add_shifts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="bundle", help="a bundle with sight")
    parser.add_argument(
        "--shift",
        nargs="+",
        default=["all"],
        help="named shifts, or 'all' (all); a wrong name lists them",
    )


def _add_measure(parser: argparse.ArgumentParser) -> None:
    _add_shifts(parser)
    parser.add_argument("--episodes", type=int, default=50, help="scenes a shift (50)")
    parser.add_argument("--out", type=Path, help="also write the result there, as JSON")


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_shifts(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("sight.png"), help="the picture (sight.png)"
    )


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """Do what was asked for."""
    return run_verb(args)


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
    from training.files import replace_atomically
    from training.strange_scenes import measure_familiarity, tell_row

    if args.out is not None:
        _make_room(args.out)
    result = measure_familiarity(args.path, args.episodes, _find_names(args.shift))
    print(f"{'shift':18} {'AUROC':>22} {'beyond threshold':>18}  distance")
    for row in result["rows"]:
        told, flagged = tell_row(row, result["episodes"])
        print(f"{row['shift']:18} {told:>22} {flagged:>18}  {row['distance_p50']:.2f}")
    if args.out is not None:
        with replace_atomically(args.out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def show(args: argparse.Namespace) -> dict[str, Any]:
    """Write one picture: a scene of each shift, where the words look, how strange it is."""
    from PIL import Image

    from training.strange_scenes import draw_scenes

    _make_room(args.out, PICTURES)
    Image.fromarray(draw_scenes(args.path, _find_names(args.shift))).save(args.out)
    print(args.out)
    return {"ok": True, "bundle": str(args.path), "picture": str(args.out)}


def _make_room(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Make the folder of a result before it is worked for; refuse what is no file's name of one."""
    if path.is_dir() or (suffixes and path.suffix.lower() not in suffixes):
        raise ConfigurationError(
            "The result cannot be written there",
            got=f"--out {path}",
            expected="a file" + (f" of {' or '.join(suffixes)}" if suffixes else ", and no folder"),
            fix="give another name",
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _find_names(asked: list[str]) -> list[str]:
    from vla_align_ros.sim.shifts import SHIFTS

    return list(SHIFTS) if asked == ["all"] else asked
