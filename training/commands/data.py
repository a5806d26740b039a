"""`vla-align data info`: say what a LeRobot dataset holds, without lerobot."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from training.data.collect import summarise
from training.data.reader import LeRobotReader

SUMMARY = "describe a LeRobot v3.0 dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=("info",))
    parser.add_argument("directory", help="the dataset's folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print features, counts, tasks and statistics; return them."""
    reader = LeRobotReader(args.directory)
    lengths = np.asarray(reader.episodes["length"].to_pylist() if len(reader) else [0])
    stats = reader.stats
    tasks = count_tasks(reader)
    result = {
        **summarise(args.directory),
        "codebase_version": reader.info["codebase_version"],
        "fps": reader.schema.fps,
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


def count_tasks(reader: LeRobotReader) -> dict[str, int]:
    """Episodes of every task."""
    counts = dict.fromkeys(reader.tasks, 0)
    if reader.episodes.num_rows:
        for tasks in reader.episodes["tasks"].to_pylist():
            counts[tasks[0]] += 1
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
        print(f"  {episodes:5} x {task}")
    for key in ("action", "observation.state"):
        if key not in result["stats"]:
            continue
        print(f"{key:18} {'mean':>9} {'std':>9} {'q01':>9} {'q99':>9}")
        names = result["features"][key]["names"] or range(len(result["stats"][key]["mean"]))
        for index, name in enumerate(names):
            values = [result["stats"][key][s][index] for s in ("mean", "std", "q01", "q99")]
            print(f"  {name:16} " + " ".join(f"{value:9.4f}" for value in values))
