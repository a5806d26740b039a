"""`vla-align data`: describe, check, convert or time LeRobot data, without lerobot."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.collect import summarise
from training.data.config import AugmentConfig, DataConfig
from training.data.reader import LeRobotReader
from training.data.schema import CHUNK_KEY
from training.settings import override
from vla_align_ros.errors import ConfigurationError, DataError
from vla_align_ros.verbs import Verb, add_verbs, run_verb

SUMMARY = "describe a LeRobot dataset, check its videos, convert RLDS data to it, time loading it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command does, each with its own arguments."""
    add_verbs(
        parser,
        {
            "info": Verb("features, counts, tasks and statistics", _name_data, show_info),
            "check": Verb("decode every picture, list damaged episodes", _add_check, check),
            "convert": Verb("convert RLDS data to LeRobot v3.0", _add_convert, convert),
            "bench": Verb("time loading it", _add_bench, bench),
        },
    )


def _name_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", help="a LeRobot dataset")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    _name_data(parser)
    parser.add_argument("--cache", type=Path, help="folder of the caches; default in the data")
    parser.add_argument("--camera", nargs="+", default=[], help="names to look for, in this order")


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_reading(parser)
    parser.add_argument(
        "--quick", action="store_true", help="count frames without decoding the pictures"
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    paths = "path(s) below the step, as in features.json"
    add = parser.add_argument
    add("directory", help="a TFDS folder")
    add("--from", dest="source", choices=("rlds",), default="rlds")
    add("--out", type=Path, help="the new dataset; an existing one is continued")
    add("--fps", type=int, help="rate of the recording in Hz; RLDS does not say")
    add("--split", default="train", help="split of the TFDS folder (train)")
    add("--image", nargs="+", default=[], help=f"pictures: {paths}")
    add("--action", nargs="+", default=[], dest="actions", help=f"joined: {paths}")
    add("--state", nargs="+", default=[], help=f"joined: {paths}")
    add(
        "--state-names",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of its values, as the robot supplies them: x y z roll pitch yaw gripper",
    )
    add("--instruction", help="path of the text")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_reading(parser)
    add = parser.add_argument
    add("--workers", nargs="+", type=int, default=[0, 1, 2])
    add("--batch-size", type=int, default=16)
    add("--image-size", type=int, default=224, help="model input in px (224)")
    add("--augment", action="store_true", help="with OpenVLA's augmentation")
    add("--decode", choices=("once", "online"), default="online")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="data.KEY=VALUE",
        help="how the data are read, as of `train`: 'data.action_names=[...]', data.gripper=...",
    )


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """Do what was asked for."""
    return run_verb(args)


def show_info(args: argparse.Namespace) -> dict[str, Any]:
    """Print features, counts, tasks and statistics; return them."""
    reader = LeRobotReader(args.directory)
    lengths = np.asarray(reader.episodes["length"].to_pylist() if len(reader) else [0])
    stats = reader.stats
    tasks = count_tasks(reader)
    result = {
        **summarise(args.directory),
        "codebase_version": reader.info["codebase_version"],
        "fps": reader.info["fps"],
        "robot_type": reader.schema.robot_type,
        "episode_length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
        },
        "task_episodes": tasks,
        "features": reader.info["features"],
        "stats": stats,
    }
    print_info(result)
    return result


def check(args: argparse.Namespace) -> dict[str, Any]:
    """Decode every picture of the camera, look at the numbers, and list damaged episodes."""
    from training.data.health import check_numbers, check_videos
    from training.data.selection import find_camera
    from training.data.sources import open_source

    reader, _ = open_source(args.directory, args.camera)
    camera = find_camera(reader.schema, args.camera, str(reader.root))
    keys = DataConfig()
    broken = check_numbers(reader, [keys.action_key, CHUNK_KEY, keys.state_key])
    for number, reason in check_videos(
        reader, camera, args.cache, decode=not args.quick, progress=True
    ).items():
        broken[number] = "; ".join(filter(None, (reason, broken.get(number))))
    broken = dict(sorted(broken.items()))
    for number, reason in broken.items():
        print(f"episode {number}: {reason}")
    print(f"{camera}: {len(broken)} of {reader.episodes.num_rows} episodes are damaged")
    return {
        "ok": not broken,
        "camera": camera,
        "episodes": reader.episodes.num_rows,
        "broken": {str(number): reason for number, reason in broken.items()},
    }


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """Convert an RLDS folder to LeRobot v3.0."""
    from training.data.convert import convert_rlds, find_mapping
    from training.data.rlds import RldsFolder

    if args.out is None or not args.fps or args.fps < 1:
        raise ConfigurationError(
            "The conversion lacks settings",
            got=f"--out {args.out} --fps {args.fps}",
            expected="a folder and the recording's rate in Hz",
            fix="for example --out data/bridge --fps 5",
        )
    folder = RldsFolder(args.directory, args.split)
    mapping = find_mapping(
        folder,
        images=args.image,
        action=args.actions,
        state=args.state,
        instruction=args.instruction,
        state_names=args.state_names,
    )
    for option, value in asdict(mapping).items():
        print(f"{option:12} {value if isinstance(value, str) else ', '.join(value)}")
    convert_rlds(folder, args.out, mapping, fps=args.fps)
    result = summarise(args.out)
    print(f"{result['out']}: {result['episodes']} episodes, {result['frames']} frames")
    return result


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure samples a second for each number of workers."""
    from training.data.bench import bench_loader

    if min(args.workers) < 0 or args.batch_size < 1:
        raise ConfigurationError(
            "The measurement cannot be made",
            got=f"--workers {args.workers} --batch-size {args.batch_size}",
            expected="workers of 0 or more, a batch of 1 or more",
            fix="correct the options",
        )
    config = replace(
        DataConfig(),
        image_size=args.image_size,
        cameras=tuple(args.camera),
        augment=AugmentConfig(enabled=args.augment),
        decode=args.decode,
    )
    config = override(config, [_data_setting(setting) for setting in args.set])
    result = bench_loader(
        [args.directory],
        config,
        workers=args.workers,
        batch_size=args.batch_size,
        cache_dir=args.cache,
    )
    for count, speed in result["samples_per_s"].items():
        print(f"{count} workers: {speed:8.1f} samples/s")
    return result


def _data_setting(setting: str) -> str:
    """A setting of a run's `data`, without that prefix."""
    if not setting.startswith("data."):
        raise ConfigurationError(
            "Not a setting of the data",
            got=repr(setting),
            expected="data.KEY=VALUE",
            fix="for example data.gripper=signed_closed",
        )
    return setting.removeprefix("data.")


def count_tasks(reader: LeRobotReader) -> dict[str, int]:
    """Episodes of every task; those without one have an empty text."""
    counts = dict.fromkeys(reader.tasks, 0)
    if reader.episodes.num_rows:
        for tasks in reader.episodes["tasks"].to_pylist():
            task = (tasks and tasks[0]) or ""
            if task and task not in counts:
                raise DataError(
                    f"The tasks of {reader.root} disagree",
                    got=str(tasks),
                    expected="texts that the table of tasks lists",
                    fix="download or collect the data set again",
                )
            counts[task] = counts.get(task, 0) + 1
    return counts


def print_info(result: dict[str, Any]) -> None:
    """Print the dataset's description for people."""
    print(f"{result['out']}: LeRobot {result['codebase_version']}, {result['fps']} Hz")
    length = result["episode_length"]
    print(
        f"{result['episodes']} episodes, {result['frames']} frames"
        f" ({length['min']} to {length['max']} an episode, median {length['median']:g})"
    )
    for name in ("starts", "dropped"):
        if name in result:
            print(f"{name}: {result[name]}")
    print("features")
    for name, feature in result["features"].items():
        print(f"  {name:32} {feature['dtype']:8} {feature['shape']}")
    print("tasks")
    for task, episodes in result["task_episodes"].items():
        print(f"  {episodes:5} x {task or '(no instruction)'}")
    for key in ("action", "observation.state"):
        if key not in result["stats"]:
            continue
        print(f"{key:18} {'mean':>9} {'std':>9} {'q01':>9} {'q99':>9}")
        names = feature_names(result["features"][key], len(result["stats"][key]["mean"]))
        for index, name in enumerate(names):
            values = [
                result["stats"][key].get(s, [float("nan")] * len(names))[index]
                for s in ("mean", "std", "q01", "q99")
            ]
            print(f"  {name:16} " + " ".join(f"{value:9.4f}" for value in values))


def feature_names(feature: dict[str, Any], count: int) -> list[str]:
    """Names of a feature's `count` values, or their numbers."""
    from training.data.layout import read_names

    names = read_names(feature.get("names")) or ()
    return list(names) if len(names) == count else [str(number) for number in range(count)]
