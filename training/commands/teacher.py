"""`vla-align teacher`: list the vision teachers; compute one's features ahead of training."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError

SUMMARY = "list vision teachers, or cache one's features of a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "action",
        choices=("list", "cache"),
        help="list: which teachers there are, and how each sees a picture; cache: compute and keep"
        " one's features of every frame, going on where that was stopped",
    )
    parser.add_argument("--data", nargs="+", action="extend", help="LeRobot data set(s)")
    parser.add_argument("--teacher", help="name, e.g. dinov2:facebook/dinov2-large")
    parser.add_argument("--layer", type=int, help="hidden state; default the teacher's own output")
    parser.add_argument("--revision", help="commit, branch or tag of the teacher's repository")
    parser.add_argument(
        "--remote-code", action="store_true", help="run the code that the repository brings"
    )
    parser.add_argument(
        "--recipe", help="take everything that is not given here from this recipe, as a run would"
    )
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe",
    )
    parser.add_argument("--image-size", type=int, help="the student's, in px (224)")
    parser.add_argument("--grid", type=int, help="the student's patches a side (image size / 14)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="of the teacher (bf16)")
    parser.add_argument("--camera", help="which camera, where a data set has several")
    parser.add_argument("--cache", type=Path, help="folder of the caches; default in the data")
    parser.add_argument("--device", help="where the teacher computes (cuda if there is one)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table of teachers, or fill the cache; return what was done."""
    return _list() if args.action == "list" else _cache(args)


def _list() -> dict[str, Any]:
    from training.alignment.teachers import describe_teachers

    teachers = describe_teachers()
    for row in teachers:
        missing = "" if row["installed"] else "  (not installed)"
        print(f"{row['form']:24} {row['pixels']:20} {row['note']}{missing}")
        print(f"{'':24} --set teacher.name={row['example']}")
    return {"teachers": teachers}


def _cache(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from training.alignment.teachers import build_teacher
    from training.teacher_cache import RecordedPictures, open_teacher_store

    plan = _plan(args)
    if not args.data:
        raise ConfigurationError(
            "There is no data", got="no --data", expected="a data set", fix="pass --data DIR"
        )
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pictures = RecordedPictures(args.data, plan.data, cache_dir=args.cache)
    teacher = build_teacher(plan.teacher, plan.dtype, device)
    started_s = time.monotonic()
    store = open_teacher_store(pictures, teacher, plan.grid, args.cache)
    seconds = time.monotonic() - started_s
    result = {
        "teacher": plan.teacher.name,
        "layer": plan.teacher.layer,
        "fingerprint": teacher.fingerprint,
        "width": teacher.width,
        "grid": plan.grid,
        "precision": plan.precision,
        "frames": len(pictures),
        "computed": store.computed,
        "seconds": seconds,
        "frames_per_s": store.computed / max(seconds, 1e-9),
        "gigabytes": sum(path.stat().st_size for path in store.paths) / 1e9,
        "files": [str(path) for path in store.paths],
    }
    print(
        f"{result['frames']} frames, {store.computed} of them computed in {seconds:.1f} s"
        f" on {device}: {plan.grid} x {plan.grid} features of width {teacher.width},"
        f" {result['gigabytes']:.3f} GB"
    )
    for path in store.paths:
        print(f"  {path}")
    return result


def _plan(args: argparse.Namespace) -> Any:
    """What the cache depends on: the recipe's if one is given, changed by the other options."""
    import dataclasses

    from training.alignment.teachers import TeacherConfig
    from training.data.config import DataConfig
    from training.teacher_cache import CachePlan

    if args.recipe is not None:
        from training.recipes import find_recipe
        from training.settings import override

        plan = CachePlan.of_run(override(find_recipe(args.recipe), args.set))
    elif args.teacher is None or args.set:
        raise ConfigurationError(
            "Nothing says which teacher",
            got="--set without --recipe" if args.set else "neither --teacher nor --recipe",
            expected="--teacher NAME, or --recipe NAME with or without --set",
            fix="`vla-align teacher list` shows the names",
        )
    else:
        size = args.image_size or 224
        plan = CachePlan(TeacherConfig(), DataConfig(image_size=size), size // 14, "bf16")
    data, teacher = plan.data, plan.teacher
    if args.image_size is not None:
        data = dataclasses.replace(data, image_size=args.image_size)
    if args.camera is not None:
        data = dataclasses.replace(data, cameras=(args.camera,))
    if args.teacher is not None:
        teacher = TeacherConfig(args.teacher)  # what the recipe says of its own is not of this one
    given = {"layer": args.layer, "revision": args.revision}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if args.remote_code:
        changes["remote_code"] = True
    teacher = dataclasses.replace(teacher, **changes)
    return CachePlan(teacher, data, args.grid or plan.grid, args.precision or plan.precision)
