"""Measures policy_node beside a naive node: pictures that arrive, overhead, lateness of timers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_align_ros.bench.figures import find_lateness, percentiles
from vla_align_ros.bench.scene import PRIORITY, START_S, Scene, Setup
from vla_align_ros.demo.wiring import ParameterValue
from vla_align_ros.errors import SimulationError

COMMAND_RATE_HZ = 50.0
CAMERA_RATE_HZ = 30.0
WIDTH, HEIGHT = 640, 480
REPLAN_S = 0.1
MEET_S = 1.5  # for all to find each other on the graph
LAST_S = 1.5  # for what is on its way
LEAVE_S = 20.0
SAME_STAMP_S = 1e-6
EXECUTABLES = {"ours": "bench.traced", "naive": "bench.naive_node"}


@dataclass(frozen=True)
class Run:
    """Raw figures of one node: samples in ms, and counts."""

    frames_sent: int
    frames_received: int
    overhead_ms: tuple[float, ...]
    infer_ms: tuple[float, ...]
    idle_late_ms: tuple[float, ...]
    late_ms: tuple[float, ...]
    ticks_missed: int
    work_ms: tuple[float, ...]
    stages_ms: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """The figures by their public names."""
        overhead, infer = percentiles(self.overhead_ms), percentiles(self.infer_ms)
        idle, late = percentiles(self.idle_late_ms), percentiles(self.late_ms)
        added = None
        if idle["p99"] is not None and late["p99"] is not None:
            added = round(late["p99"] - idle["p99"], 3)
        return {
            "frames_sent": self.frames_sent,
            "frames_received": self.frames_received,
            "overhead_ms_p50": overhead["p50"],
            "overhead_ms_p99": overhead["p99"],
            "plans": overhead["samples"],
            "infer_ms_p50": infer["p50"],
            "infer_ms_p99": infer["p99"],
            "timer_late_idle_ms_p50": idle["p50"],
            "timer_late_idle_ms_p99": idle["p99"],
            "timer_late_ms_p50": late["p50"],
            "timer_late_ms_p99": late["p99"],
            "timer_late_added_ms_p99": added,
            "ticks_missed": self.ticks_missed,
            "command_work_ms_p99": percentiles(self.work_ms)["p99"],
            "stages_ms": dict(self.stages_ms),
        }


def measure_node(kind: str, bundle: Path, out: Path, seconds: float) -> Run:
    """Run one node ("ours" or "naive") with the camera at full rate for so many seconds.

    Before that the node is idle for a third of it, at least 3 s: it gets no picture, so that no
    inference runs beside its timer.
    """
    ours = kind == "ours"
    parameters: dict[str, ParameterValue] = {"command_rate_hz": COMMAND_RATE_HZ}
    if ours:
        parameters.update(replan_period_s=REPLAN_S, command_on_plan=True, start_armed=True)
        parameters.update(thread_priority=PRIORITY)
    setup = Setup(
        width=WIDTH,
        height=HEIGHT,
        camera_rate_hz=CAMERA_RATE_HZ,
        count_frames=True,
        watchdog=False,
        executable=EXECUTABLES[kind],
        parameters=parameters,
    )
    scene = Scene(bundle, out / kind, setup)
    try:
        phases = _play(scene, ours, seconds)
        return _evaluate(scene, phases)
    finally:
        scene.close()


def _play(scene: Scene, ours: bool, seconds: float) -> tuple[float, float, float, float]:
    """From start to end of the node; returns begin and end of the idle and of the busy phase."""
    stage = scene.stage
    scene.camera.set("silent")
    for name in ("policy", "camera"):
        scene.start(name)
    if ours:
        scene.expect(lambda: stage.status.get("state") == "active", "an active node", START_S)
    scene.expect(lambda: stage.heard() and stage.seen(), "a listening node", START_S)
    stage.spin(MEET_S)
    stage.say(stage.surroundings.instruction)
    stage.spin(MEET_S)
    idle_s = time.monotonic()
    stage.spin(max(3.0, seconds / 3.0))
    scene.camera.set("ok")
    busy_s = time.monotonic()
    stage.spin(seconds)
    scene.camera.set("silent")
    end_s = time.monotonic()
    stage.spin(LAST_S)
    scene.send(signal.SIGINT, "policy")
    scene.expect(lambda: scene.trace.exists(), "the trace of the node", LEAVE_S)
    return idle_s, busy_s, busy_s, end_s


def _evaluate(scene: Scene, phases: tuple[float, float, float, float]) -> Run:
    trace = json.loads(scene.trace.read_text(encoding="utf-8"))
    ticks = [(kind, time_s) for kind, time_s in trace["ticks"]]
    period_s = 1.0 / COMMAND_RATE_HZ
    idle = find_lateness(ticks, period_s, phases[0], phases[1])
    busy = find_lateness(ticks, period_s, phases[2] + MEET_S, phases[3])
    ages_s = {round(sent.stamp_s, 6): sent.age_s for sent in scene.stage.commands}
    overhead_ms, infer_ms = [], []
    for observation_s, command_s, infer_s in trace["firsts"]:
        age_s = ages_s.get(round(command_s, 6))  # of the command when it arrived
        if age_s is None or not infer_s:
            continue
        overhead_ms.append(1e3 * (command_s + age_s - observation_s - infer_s))
        infer_ms.append(1e3 * infer_s)
    if not overhead_ms:
        raise SimulationError(
            "The measurement saw no command",
            got=f"{len(trace['firsts'])} plans, {len(scene.stage.commands)} commands",
            expected="commands that follow from pictures",
            fix=f"see {scene.children['policy'].log}",
        )
    return Run(
        frames_sent=scene.stage.frames_sent,
        frames_received=int(trace["frames"]),
        overhead_ms=tuple(overhead_ms),
        infer_ms=tuple(infer_ms),
        idle_late_ms=idle.late_ms,
        late_ms=busy.late_ms,
        ticks_missed=busy.missed,
        work_ms=tuple(trace["work_ms"]),
        stages_ms={
            key.removeprefix("latency_").removesuffix("_ms"): float(value)
            for key, value in scene.stage.diagnostics.items()
            if key.startswith("latency_")
        },
    )


def judge(ours: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Hold our figures against the bars of this project."""
    rows = {
        "frames_lost": (ours["frames_sent"] - ours["frames_received"], 0),
        "overhead_ms_p99": (ours["overhead_ms_p99"], 8.0),
        "timer_late_added_ms_p99": (ours["timer_late_added_ms_p99"], 2.0),
        "command_work_ms_p99": (ours["command_work_ms_p99"], 2.0),
    }
    return {
        name: {"value": value, "limit": limit, "met": value is not None and value <= limit}
        for name, (value, limit) in rows.items()
    }
