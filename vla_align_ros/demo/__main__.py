"""`python -m vla_align_ros.demo`: run the graph, judge it, write it up. See scripts/demo."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.demo.follow import Progress
from vla_align_ros.demo.graph import Child, Graph, graph_environment, ros_distro
from vla_align_ros.demo.page import write_page
from vla_align_ros.demo.pictures import write_contact_sheet, write_film
from vla_align_ros.demo.report import RunFacts, build_report, write_json
from vla_align_ros.demo.table import print_table
from vla_align_ros.demo.wiring import demo_nodes
from vla_align_ros.errors import ConfigurationError, VlaAlignError
from vla_align_ros.ros.recording import read_json_lines
from vla_align_ros.share import find_share
from vla_align_ros.sim.shifts import SHIFTS, find_shift

FRESH_SEEDS_FROM = 1_000_000_000  # beyond evaluations; data sets draw from 2**31 on
SEEDS_A_RUN = 10_000
POLL_S = 0.2
START_LIMIT_S = 120.0
EPISODE_LIMIT_S = 120.0  # a watchdog far beyond the operator's own time limit
WRITTEN = ("report.json", "report.html", "demo.mp4", "contact_sheet.png", "events.jsonl")
RECORDS = ("episodes.jsonl", "diagnostics.jsonl")
FOLDERS = ("episodes", "logs")
FIRST_LOGS = ("launch.log", "sim_node.log")  # one of them lies in the logs of every run
FILM_RATE_HZ = 5.0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="A simulated WidowX, the shipped policy and an operator on real ROS 2 topics.",
    )
    parser.add_argument("--episodes", type=positive, default=20, metavar="N", help="default 20")
    parser.add_argument("--seed", type=natural, default=0, metavar="S", help="which fresh scenes")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), metavar="DIR")
    parser.add_argument("--bundle", type=Path, metavar="B", help="default bundles/tabletop")
    parser.add_argument(
        "--shift", default="none", metavar="NAME", help=f"distribution shift: {', '.join(SHIFTS)}"
    )
    parser.add_argument(
        "--swap", action="store_true", help="name the other object; the first must be left alone"
    )
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """An integer above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
    return value


def natural(text: str) -> int:
    """An integer that `FRESH_SEEDS_FROM` leaves room for."""
    value = int(text)
    if not 0 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 to 100000")
    return value


def run_graph(options: argparse.Namespace, bundle: Path, out: Path, share: Path) -> str:
    """Start the processes, follow them to the operator's end; returns who started them."""
    first_seed = FRESH_SEEDS_FROM + options.seed * SEEDS_A_RUN
    logs = out / "logs"
    with Graph(logs, graph_environment(share, logs)) as graph:
        started_by, operator = start_nodes(graph, options, bundle, out, share, first_seed)
        print(f"logs in {logs}", flush=True)
        progress = Progress(out, options.episodes)
        deadline_s = time.monotonic() + START_LIMIT_S + EPISODE_LIMIT_S * options.episodes
        while operator.process.poll() is None:
            graph.check(may_end=operator)
            progress.update()
            if time.monotonic() > deadline_s:
                raise operator.blame(
                    "does not end", got="a run without progress", expected="an end"
                )
            time.sleep(POLL_S)
        progress.update()
        graph.check(may_end=operator)
        done = len(read_json_lines(out / "episodes.jsonl"))
        if done < options.episodes:
            raise operator.blame(
                "ended early", got=f"{done} episodes", expected=f"{options.episodes}"
            )
    return started_by


def start_nodes(
    graph: Graph, options: argparse.Namespace, bundle: Path, out: Path, share: Path, first_seed: int
) -> tuple[str, Child]:
    """Start by `ros2 launch` where ROS 2 is sourced, else one process a node.

    Returns who started the nodes, and the child whose end is the end of the demonstration.
    """
    arguments: dict[str, Any] = {
        "bundle": bundle,
        "out": out,
        "episodes": options.episodes,
        "first_seed": first_seed,
        "shift": options.shift,
        "swap": options.swap,
    }
    ros2 = shutil.which("ros2")
    if os.environ.get("AMENT_PREFIX_PATH") and ros2 is not None:
        print(f"starting the graph by ros2 launch (ROS 2 {ros_distro()})", flush=True)
        words = [
            f"{name}:={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in arguments.items()
        ]
        command = [ros2, "launch", str(share / "launch" / "sim.launch.py"), *words]
        return "ros2 launch", graph.start("launch", command)
    print(f"starting the graph: 4 processes (ROS 2 {ros_distro()} from wheels)", flush=True)
    children = [
        graph.start(node.executable, node.command(share)) for node in demo_nodes(**arguments)
    ]
    return "processes (wheels)", children[-1]


def prepare_folder(out: Path) -> None:
    """Make the folder, without what an earlier run wrote into it.

    Raises:
        ConfigurationError: if it cannot be made, or holds files of those names that are another's.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _refuse_others_files(out)
        for name in (*WRITTEN, *RECORDS):
            (out / name).unlink(missing_ok=True)
    except OSError as cause:
        raise ConfigurationError(
            "--out cannot be written", got=cause, expected="a folder", fix="choose another one"
        ) from cause
    for folder in FOLDERS:
        shutil.rmtree(out / folder, ignore_errors=True)


def _refuse_others_files(out: Path) -> None:
    """See that what would be removed stands alone, or beside the logs of an earlier run."""
    present = {entry.name for entry in out.iterdir()}
    ours = present & {*WRITTEN, *RECORDS, *FOLDERS}
    if ours and ours != present and not any((out / "logs" / log).exists() for log in FIRST_LOGS):
        raise ConfigurationError(
            "--out is no folder of a demonstration",
            got=f"{out} with {', '.join(sorted(ours))}, which would be removed, and other files",
            expected="a new folder, or that of an earlier run",
            fix="choose another one",
        )


def write_up(facts: RunFacts, out: Path) -> dict[str, Any]:
    """Write report.json, the film, the contact sheet and the page; returns the report."""
    episodes = read_json_lines(out / "episodes.jsonl")
    events = read_json_lines(out / "events.jsonl")
    ready_s = next(event["stamp_s"] for event in events if event["event"] == "ready")
    diagnostics = read_json_lines(out / "diagnostics.jsonl")
    report = build_report(facts, episodes, diagnostics, ready_s)
    write_json(report, out / "report.json")
    write_film(out, episodes, FILM_RATE_HZ)
    write_contact_sheet(out, episodes)
    write_page(report, out)
    return report


def run(options: argparse.Namespace) -> bool:
    """The whole demonstration; True if the graph ran and the bar was met."""
    find_shift(options.shift)
    share = find_share()
    folder = options.bundle or share / "bundles" / "tabletop"
    if not os.path.isdir(folder):
        raise ConfigurationError(
            "No policy", got=str(folder), expected="a bundle's folder", fix="pass --bundle"
        )
    bundle, out = folder.resolve(), options.out.resolve()
    bundle_id = Bundle.open(bundle).id
    prepare_folder(out)
    started_s = time.monotonic()
    started_by = run_graph(options, bundle, out, share)
    facts = RunFacts(
        bundle_id=bundle_id,
        bundle=folder.name,
        seed=options.seed,
        first_episode_seed=FRESH_SEEDS_FROM + options.seed * SEEDS_A_RUN,
        shift=options.shift,
        swap=options.swap,
        ros_distro=ros_distro(),
        started_by=started_by,
        planned_episodes=options.episodes,
        wall_s=round(time.monotonic() - started_s, 1),
    )
    print("writing the report", flush=True)
    report = write_up(facts, out)
    print_table(report)
    print(f"  {out / 'report.html'}")
    return bool(report["passed"])


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 passed, 1 the graph did not run or the bar was missed, 130 interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return 0 if run(parse_arguments(argv)) else 1
    except VlaAlignError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
