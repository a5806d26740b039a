"""`vla-align doctor`: tell in one screen what this machine can run, and what mends the rest."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from vla_align_ros.commands.engine_checks import check_engines
from vla_align_ros.commands.findings import Finding
from vla_align_ros.commands.robot_checks import (
    check_bundle,
    check_graph,
    check_profile,
    check_robot,
)
from vla_align_ros.commands.shared_memory import check_left_overs, check_room
from vla_align_ros.extras import EXTRA_OF_MODULE, install_hint
from vla_align_ros.share import DISTRO_OF_RCLPY

SUMMARY = "report what this machine can run and how to add what it lacks"

PYTHON_RANGE = ((3, 10), (3, 14))  # from, up to but without
GL_FIX = {
    "egl": "apt-get install libegl1 libgl1-mesa-dri",
    "osmesa": "apt-get install libosmesa6",
}
GL_PROBE = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current()"
PROBE_LIMIT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what of a robot is to be looked at; without any, what runs on the graph."""
    parser.add_argument("--bundle", type=Path, metavar="B", help="open it, and time its engine")
    parser.add_argument("--robot", metavar="R", help="robot by name, or path of its file")
    parser.add_argument("--policy", nargs="*", default=[], metavar="NODE", help="running policies")
    parser.add_argument("--camera", nargs="*", default=[], metavar="TOPIC", help="measure its rate")
    parser.add_argument(
        "--commands", nargs="*", default=[], metavar="TOPIC", help="see that a controller listens"
    )
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for a rate (3)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print every finding; `ok` is False where the base install or what was asked for fails."""
    findings = [
        check_python(),
        *(check_module("base", name) for name, extra in EXTRA_OF_MODULE.items() if not extra),
        check_ros(),
        check_rclpy(),
        *check_engines(),
        *(check_module("training", name) for name in ("torch", "transformers", "pyarrow", "av")),
        *(check_module("export", name) for name in ("onnx", "onnxscript")),
        *(check_module("simulation", name) for name in ("mujoco", "trossen_arm_sim")),
        *(check_rendering(name) for name in GL_FIX),
        check_gpu(),
    ]
    findings += _look_at_robot(args)
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(section)
        print(f"  {'ok' if finding.ok else '--':2}  {finding.name:16} {finding.found}")
        if not finding.ok and finding.fix:
            print(f"      {'':16} {finding.fix}")
    vital = {"base"}
    vital |= {"policy"} if args.bundle else set()
    vital |= {"robot"} if args.robot else set()
    asked = {name for names in _asked_of_graph(args).values() for name in names}
    answered = asked <= {finding.name for finding in findings}
    return {
        "ok": answered and all(f.ok for f in findings if f.section in vital or f.name in asked),
        "findings": [asdict(finding) for finding in findings],
    }


def _look_at_robot(args: argparse.Namespace) -> list[Finding]:
    """The checks of `robot_checks`: the bundle and robot that were named, and the graph."""
    findings: list[Finding] = []
    bundle = None
    if args.bundle is not None:
        found, bundle = check_bundle(args.bundle)
        findings += found
    if args.robot is not None:
        findings += check_robot(args.robot, bundle)
    words = [w for kind, names in _asked_of_graph(args).items() for w in (f"--{kind}", *names)]
    graph = check_graph(words, args.seconds)
    return [*findings, check_profile(), check_room(), check_left_overs(), *graph]


def _asked_of_graph(args: argparse.Namespace) -> dict[str, list[str]]:
    """The nodes and topics that were named, by option, in full as the graph has them."""
    return {
        kind: [name if name.startswith("/") else f"/{name}" for name in getattr(args, kind)]
        for kind in ("policy", "camera", "commands")
    }


def check_python() -> Finding:
    """Check that this interpreter is one the package supports."""
    first, after = PYTHON_RANGE
    ok = first <= sys.version_info[:2] < after
    found = f"{platform.python_version()} at {sys.executable}"
    return Finding("base", "python", ok, found, "" if ok else "use Python 3.10 to 3.13")


def check_module(section: str, name: str) -> Finding:
    """Look a module up without importing it."""
    if importlib.util.find_spec(name) is None:
        return Finding(section, name, False, "not installed", install_hint(name) or "")
    return Finding(section, name, True, describe_version(name))


def check_ros() -> Finding:
    """Say whether a ROS 2 installation is sourced in this shell."""
    distro = os.environ.get("ROS_DISTRO", "")
    if distro:
        return Finding("ros", "ROS 2", True, f"{distro}, sourced")
    return Finding("ros", "ROS 2", True, "none sourced; the wheels serve, without ros2 launch")


def check_rclpy() -> Finding:
    """Name the client library, and the distribution that its version belongs to."""
    finding = check_module("ros", "rclpy")
    if not finding.ok:
        return finding
    distro = DISTRO_OF_RCLPY.get(finding.found.partition(".")[0], "an untried distribution")
    return Finding("ros", "rclpy", True, f"{finding.found} ({distro})")


def check_rendering(backend: str) -> Finding:
    """Open a MuJoCo off-screen context of one kind ("egl", "osmesa") in a process of its own."""
    name = f"{backend} rendering"
    if importlib.util.find_spec("mujoco") is None:
        return Finding("simulation", name, False, "not tried: no mujoco")
    try:
        probe = subprocess.run(
            [sys.executable, "-c", GL_PROBE],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("simulation", name, False, f"no answer in {PROBE_LIMIT_S:.0f} s")
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["it crashed"])[-1]
        return Finding("simulation", name, False, reason, GL_FIX[backend])
    return Finding("simulation", name, True, "works")


def check_gpu() -> Finding:
    """Name NVIDIA's GPUs and driver; without one everything runs on the CPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        ctypes.CDLL("libcuda.so.1")
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("gpu", "NVIDIA", False, f"none ({error}); the CPU serves")
    return Finding("gpu", "NVIDIA", True, "; ".join(answer.stdout.strip().splitlines()))


def describe_version(module: str) -> str:
    """Return the version of the distribution that brought a module."""
    names = packages_distributions().get(module, [])
    return version(names[0]) if names else "present, of unknown version"
