"""`vla-align teacher`: list the vision teachers; compute one's features ahead of training."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.verbs import Verb, add_verbs, run_verb

SUMMARY = "list vision teachers, or cache one's features of a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command does, each with its own arguments."""
    add_verbs(
        parser,
        {
            "list": Verb(
                "which teachers there are, and how each sees a picture",
                lambda parser: None,
                list_teachers,
            ),
            "cache": Verb(
                "compute and keep a teacher's features of every frame, going on where that was"
                " stopped",
                _add_cache,
                fill_cache,
            ),
        },
    )


def _add_cache(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", nargs="+", action="extend", help="LeRobot data set(s)")
    add("--teacher", help="name, e.g. dinov2:facebook/dinov2-large")
    add("--layer", type=int, help="hidden state; default the teacher's own output")
    add("--revision", help="commit, branch or tag of the teacher's repository")
    add("--remote-code", action="store_true", help="run the code that the repository brings")
    add("--recipe", help="take everything that is not given here from this recipe, as a run would")
    add(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe",
    )
    add("--image-size", type=int, help="the student's, in px (224)")
    add("--grid", type=int, help="the student's patches a side (image size / 14)")
    add("--precision", choices=("bf16", "fp32"), help="of the teacher (bf16)")
    add("--camera", help="which camera, where a data set has several")
    add("--cache", type=Path, help="folder of the caches; default in the data")
    add("--device", help="where the teacher computes (cuda if there is one)")


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """Do what was asked for."""
    return run_verb(args)


def list_teachers(_: argparse.Namespace) -> dict[str, Any]:
    """Print the table of teachers and return it."""
    from training.alignment.teachers import describe_teachers

    teachers = describe_teachers()
    for row in teachers:
        missing = "" if row["installed"] else "  (not installed)"
        print(f"{row['form']:24} {row['pixels']:20} {row['note']}{missing}")
        print(f"{'':24} --set teacher.name={row['example']}")
    return {"teachers": teachers}


def fill_cache(args: argparse.Namespace) -> dict[str, Any]:
    """Compute what is missing and return what was done."""
    import torch

    from training.alignment.teachers import build_teacher
    from training.teacher_cache import RecordedPictures, open_teacher_store

    plan = _plan(args)
    if not args.data:
        raise ConfigurationError(
            "There is no data", got="no --data", expected="a data set", fix="pass --data DIR"
        )
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pictures = RecordedPictures(
        args.data, plan.data, transform=plan.transform, cache_dir=args.cache
    )
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
    from training.teacher_cache import CachePlan

    if args.recipe is not None:
        from training.recipes import find_recipe
        from training.settings import override

        config = override(find_recipe(args.recipe), args.set)
        teacher = _choose_teacher(args, config.teacher)
        data = _choose_pictures(args, config.data)
        plan = CachePlan.of_run(dataclasses.replace(config, teacher=teacher, data=data))
    elif args.teacher is None or args.set:
        raise ConfigurationError(
            "Nothing says which teacher",
            got="--set without --recipe" if args.set else "neither --teacher nor --recipe",
            expected="--teacher NAME, or --recipe NAME with or without --set",
            fix="`vla-align teacher list` shows the names",
        )
    else:
        from training.alignment.teachers import TeacherConfig
        from training.data.config import DataConfig

        data = _choose_pictures(args, DataConfig())
        teacher = _choose_teacher(args, TeacherConfig())
        plan = CachePlan(teacher, data, data.image_size // 14, "bf16")
    return dataclasses.replace(
        plan, grid=args.grid or plan.grid, precision=args.precision or plan.precision
    )


def _choose_teacher(args: argparse.Namespace, teacher: Any) -> Any:
    """The teacher, changed by the options; what was said of another one is not said of this."""
    if args.teacher is not None:
        teacher = type(teacher)(args.teacher)
    given = {"layer": args.layer, "revision": args.revision}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if args.remote_code:
        changes["remote_code"] = True
    return dataclasses.replace(teacher, **changes)


def _choose_pictures(args: argparse.Namespace, data: Any) -> Any:
    """How the data are read, changed by the options."""
    if args.image_size is not None:
        data = dataclasses.replace(data, image_size=args.image_size)
    if args.camera is not None:
        data = dataclasses.replace(data, cameras=(args.camera,))
    return data
