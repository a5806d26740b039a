"""What the doctor looks at on a robot: middleware, bundle, engine, the robot's file, the graph."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from vla_align_ros.commands.findings import Finding, judge
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.errors import ConfigurationError, VlaAlignError
from vla_align_ros.extras import EXTRA_OF_MODULE, install_hint
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.share import CAMERA_PROFILE, PROFILE_VARIABLES, find_share, tell_path

LEAST_SEGMENT = 4 * 640 * 480 * 3  # four pictures of the usual size
TIMED = 10
PROBE_LIMIT_S = 60.0
ACTIONS = ("gripper_command", "parallel_gripper_command")


def check_profile() -> Finding:
    """Look for a Fast DDS profile with a segment that holds pictures, in this shell."""
    middleware = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    if "fastrtps" not in middleware:
        return Finding("graph", "DDS profile", True, f"{middleware}: no profile of Fast DDS needed")
    path = next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), None)
    fix = f"in the camera's shell: export {PROFILE_VARIABLES[0]}={tell_path(CAMERA_PROFILE)}"
    if path is None:
        found = "none in this shell; raw pictures above 512 KiB get lost, if it is the camera's"
        return Finding("graph", "DDS profile", False, found, fix)
    try:
        sizes = [
            int(element.text or 0)
            for element in ElementTree.parse(path).iter()
            if element.tag.rpartition("}")[2] == "segment_size"
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        return Finding("graph", "DDS profile", False, f"{path} cannot be read: {error}", fix)
    largest = max(sizes, default=512 << 10)
    found = f"{path}, shared memory of {largest >> 10} KiB"
    return judge("graph", "DDS profile", largest >= LEAST_SEGMENT, found, fix)


def check_bundle(path: Path) -> tuple[list[Finding], Bundle | None]:
    """Open a bundle as the node would, and time its engine on a golden sample."""
    section = "policy"
    lacking = find_lacking()
    if lacking:
        fix = install_hint(lacking[0]) or ""
        return [Finding(section, "bundle", False, f"not tried: no {lacking[0]}", fix)], None
    try:
        bundle = Bundle.open(path)
    except VlaAlignError as error:
        return [Finding(section, "bundle", False, str(error), error.fix or "")], None
    spec = bundle.spec
    cameras = ", ".join(f"{c.name} {c.width}x{c.height}" for c in spec.cameras)
    found = f"{bundle.short_id}: {cameras}; {spec.action.frame}, {spec.action.rate_hz:g} Hz"
    opened = Finding(section, "bundle", True, found)
    try:
        with Policy.open(bundle) as policy:
            policy.warm_up()
            observation = next(iterate_observations(bundle.golden(), spec))
            times_ms = []
            for _ in range(TIMED):
                policy.infer(observation)
                times_ms.append(sum(policy.last_timings_ms.values()))
    except VlaAlignError as error:
        return [opened, Finding(section, "engine", False, str(error), error.fix or "")], bundle
    median_ms = statistics.median(times_ms)
    horizon_ms = 1e3 * spec.action.horizon * spec.action.period_s
    late = median_ms > horizon_ms / 2
    found = f"onnx, {median_ms:.1f} ms a plan of {horizon_ms:.0f} ms"
    fix = "a plan takes longer than half of what it plans: more threads, or a faster engine"
    return [opened, judge(section, "engine", not late, found, fix)], bundle


def find_lacking() -> list[str]:
    """Modules of the base install that are not there."""
    base = (name for name, extra in EXTRA_OF_MODULE.items() if not extra)
    return [name for name in base if importlib.util.find_spec(name) is None]


def check_robot(name: str, bundle: Bundle | None) -> list[Finding]:
    """Read a robot's file, and hold it against the bundle."""
    import yaml

    try:
        shipped = find_share() / "config" / "robots" / f"{name}.yaml"
    except ConfigurationError:
        shipped = Path(name)
    path = shipped if os.path.isfile(shipped) else Path(os.path.expanduser(name))
    try:
        arm = yaml.safe_load(path.read_text(encoding="utf-8"))["/**"]["ros__parameters"]["arm"]
        frame = str(arm["command_frame"])
        speeds = f"{float(arm['max_linear_m_s'])} m/s, {float(arm['max_angular_rad_s'])} rad/s"
        gripper = (arm.get("gripper") or {}).get("interface")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        fix = "copy the nearest of config/robots; command_frame and both speeds are mandatory"
        return [Finding("robot", "file", False, f"{path}: {type(error).__name__} {error}", fix)]
    refusal = _ask_node(path)
    found = refusal or f"{path}: {frame}, {speeds}"
    fix = "policy_node refuses the file; correct it there"
    findings = [judge("robot", "file", not refusal, found, fix)]
    if bundle is not None and bundle.spec.action.frame != frame:
        fix = "use the robot that the policy was trained for"
        found = f"the policy acts in {bundle.spec.action.frame}"
        findings.append(Finding("robot", "command_frame", False, f"{frame}; {found}", fix))
    if gripper in ACTIONS:
        there = importlib.util.find_spec("control_msgs") is not None
        fix = "apt-get install ros-$ROS_DISTRO-control-msgs"
        found = "there" if there else "missing: the gripper is behind an action"
        findings.append(judge("robot", "control_msgs", there, found, fix))
    return findings


def _ask_node(path: Path) -> str:
    """Why policy_node refuses a robot's file, in a process of its own; "" if it takes it."""
    if importlib.util.find_spec("rclpy") is None:
        return ""
    command = [sys.executable, "-m", "vla_align_ros.ros.robot_file", str(path)]
    try:
        probe = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_LIMIT_S:.0f} s"
    if probe.returncode != 0:
        return (probe.stderr.strip().splitlines() or ["it crashed"])[-1]
    return probe.stdout


def check_graph(words: list[str], seconds: float = 3.0) -> list[Finding]:
    """Look at the running graph, in a process of its own; `words` are that process's arguments.

    Each rate is measured for so many `seconds`.
    """
    if importlib.util.find_spec("rclpy") is None:
        return [Finding("graph", "nodes", False, "not tried: no rclpy")]
    command = [sys.executable, "-m", "vla_align_ros.ros.graph_check", *words]
    limit_s = PROBE_LIMIT_S + 2.0 * seconds  # for a status that does not come, and for the rates
    try:
        probe = subprocess.run(
            [*command, "--seconds", str(seconds)],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        rows: list[dict[str, Any]] = json.loads(probe.stdout.splitlines()[-1])
        return [Finding(**row) for row in rows]
    except subprocess.TimeoutExpired:
        return [Finding("graph", "nodes", False, f"no answer in {limit_s:.0f} s")]
    except (ValueError, IndexError):
        reason = (probe.stderr.strip().splitlines() or ["it crashed"])[-1]
        return [Finding("graph", "nodes", False, reason, "see that ROS 2 works: ros2 doctor")]
