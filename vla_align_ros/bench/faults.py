"""Injects one fault at a time into running processes and measures how long the arm still moves."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_align_ros.bench.catalogue import (
    FAULTS,
    PARAMETERS,
    PERIOD_S,
    WATCHDOG_TOLERANCE_S,
    Fault,
)
from vla_align_ros.bench.motion import MotionEnd, find_motion_ends
from vla_align_ros.bench.scene import SERVO_TIMEOUT_S, Scene, Setup
from vla_align_ros.errors import ConfigurationError, SimulationError, VlaAlignError
from vla_align_ros.runtime.stops import Reason
from vla_align_ros.runtime.watchdog import CEASED, SILENT

WATCH_S = 1.0  # beyond the bar: nothing may move again
SETTLE_S = 1.2
TRIES = 5  # to find the arm moving at the moment of the fault
PERIODS_ALLOWED = 2
# A deactivation is told by the lifecycle; the controller's timeout has nobody left to tell it.
NAMED_IN_LOG = {reason.value for reason in Reason} - {Reason.INACTIVE.value} | {SILENT, CEASED}
UNLOGGED = re.compile(r"Exception ignored|Segmentation fault")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault did. Times are seconds from its injection; `bar_s` is the limit to pass.

    `stop_s` is when the last motion ended, None where the arm went on. `stopped_by`: "zero" or the
    controller's "timeout". `zero_s` is when the first zero arrived, whoever sent it. `problems`
    says what is wrong; the fault is passed without any.
    """

    name: str
    what: str
    detection_s: float | None
    bar_s: float | None
    stop_s: float | None
    zero_s: float | None
    stopped_by: str | None
    reason: str | None
    recovered: bool | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the fault was passed."""
        return not self.problems


def find_faults(names: list[str] | None) -> list[Fault]:
    """The faults by name, all without names; ConfigurationError lists them."""
    known = {fault.name: fault for fault in FAULTS}
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise ConfigurationError(
            "no such fault",
            got=", ".join(wrong),
            expected="some of " + ", ".join(known),
            fix="correct the names",
        )
    return [known[name] for name in names or known]


class Laboratory:
    """Runs faults one after another; those that leave the processes whole share them.

    `slack_s` is added to every bar, for machines that do much else.
    """

    def __init__(self, bundle: Path, out: Path, slack_s: float = 0.0) -> None:
        self._bundle = bundle
        self._out = out
        self._slack_s = slack_s
        self._scene: Scene | None = None

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_scene()

    def end_scene(self) -> None:
        """End the processes."""
        scene, self._scene = self._scene, None
        if scene is not None:
            scene.close()

    def run(self, fault: Fault) -> Outcome:
        """Inject a fault into moving processes, measure, lift it, see whether it moves again."""
        scene = self._open_scene(fault)
        try:
            outcome = measure(scene, fault, self._slack_s)
        except BaseException:
            self.end_scene()
            raise
        if fault.lift is None or not outcome.ok:
            self.end_scene()
        return outcome

    def _open_scene(self, fault: Fault) -> Scene:
        setup = Setup(
            sim_time=fault.sim_time, compressed=fault.compressed, parameters=dict(PARAMETERS)
        )
        if self._scene is not None and self._scene.setup != setup:
            self.end_scene()
        if self._scene is None:
            self._scene = Scene(self._bundle, self._out / "scene", setup).__enter__()
        return self._scene


def measure(scene: Scene, fault: Fault, slack_s: float = 0.0) -> Outcome:
    """One fault, from steady motion to recovery."""
    wait_for_steady_motion(scene, random.Random(fault.name))
    log_before, stops_before = len(scene.log("policy")), scene.stage.status["stop_count"]
    trips_before = scene.stage.watchdog.get("trips", 0)
    detection_s = fault.detection_s(scene) if fault.stops else None
    bar_s = None
    if detection_s is not None:
        bar_s = detection_s + PERIODS_ALLOWED * PERIOD_S + WATCHDOG_TOLERANCE_S + slack_s
    start_s = time.monotonic()
    notes = fault.inject(scene)
    scene.stage.spin(max(0.0, start_s + (bar_s or 0.0) + WATCH_S - time.monotonic()))
    until_s = time.monotonic()
    scene.stage.catch_up()
    problems = list(notes)
    ends = find_motion_ends(scene.stage.commands, start_s, until_s, SERVO_TIMEOUT_S)
    stop = _judge_motion(scene, fault, ends, (start_s, until_s), bar_s, problems)
    trips = scene.stage.watchdog.get("trips", 0) - trips_before
    alive = scene.stage.status["stop_count"] > stops_before
    names = [str(scene.stage.status["last_stop"]["reason"])] if alive else []
    if trips:
        names.append(str(scene.stage.watchdog["last_reason"]))
    # Both may have stopped the arm, the watchdog also because this machine starved the node.
    reason = next((name for name in names if name in fault.reasons), next(iter(names), None))
    zeros = (c.arrived_s for c in scene.stage.commands if c.arrived_s > start_s and not c.moving)
    zero_s = next(zeros, None)
    if stop is not None and reason is None:
        reason = "controller_timeout" if stop.by == "timeout" else None
    if fault.stops and reason not in fault.reasons:
        problems.append(f"the reason is {reason}, not one of {', '.join(fault.reasons)}")
    log = scene.log("policy")[log_before:]
    told = scene.log("watchdog") if reason in (SILENT, CEASED) else log
    if reason in NAMED_IN_LOG and reason not in told:
        problems.append(f"no log tells {reason}")
    if UNLOGGED.search(log):
        problems.append("an exception was ignored")
    return Outcome(
        name=fault.name,
        what=fault.what,
        detection_s=detection_s,
        bar_s=bar_s,
        stop_s=None if stop is None else stop.time_s - start_s,
        zero_s=None if zero_s is None else zero_s - start_s,
        stopped_by=None if stop is None else stop.by,
        reason=reason if fault.stops else None,
        recovered=_recover(scene, fault, problems),
        problems=tuple(problems),
    )


def wait_for_steady_motion(scene: Scene, moments: random.Random) -> None:
    """Return at any moment between two commands of an arm that moves.

    An arm that a starved machine holds just then would not show when a fault stops it: it is waited
    for again; SimulationError where it does not move at five such moments.
    """
    for _ in range(TRIES):
        scene.wait_until_moving()
        scene.stage.spin(SETTLE_S)
        scene.wait_until_moving()
        scene.stage.spin(moments.uniform(0.0, PERIOD_S))
        if scene.moves_at(time.monotonic()):
            return
    raise SimulationError(
        "The arm does not move steadily: no fault can be measured",
        got=f"{TRIES} starts after each of which it stood again, status {scene.stage.status}",
        expected=f"a command at least every {SERVO_TIMEOUT_S:g} s",
        fix="run nothing beside the measurement, or see why the policy holds",
    )


def _judge_motion(
    scene: Scene,
    fault: Fault,
    ends: list[MotionEnd],
    window: tuple[float, float],
    bar_s: float | None,
    problems: list[str],
) -> MotionEnd | None:
    start_s, until_s = window
    moves = scene.moves_at(until_s)
    if not fault.stops:
        if not moves:
            problems.append("the arm stands, although nothing is wrong with the motion")
        return None
    if not ends:
        late = f"the arm still moved {until_s - start_s:.2f} s later"
        problems.append(late if moves else "the arm already stood when the fault came")
        return None
    stop = ends[0] if fault.may_resume else ends[-1]
    if moves and not fault.may_resume:
        problems.append("the arm moved again")
    if bar_s is not None and stop.time_s - start_s > bar_s:
        problems.append(f"stopped after {stop.time_s - start_s:.3f} s, {bar_s:.3f} s allowed")
    return stop


def _recover(scene: Scene, fault: Fault, problems: list[str]) -> bool | None:
    if fault.lift is None:
        return None
    try:
        fault.lift(scene)
        scene.wait_until_moving(30.0)
    except (VlaAlignError, AssertionError) as error:
        problems.append(f"did not recover: {error}")
        return False
    return True


def run_faults(
    bundle: Path,
    out: Path,
    names: list[str] | None = None,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> dict[str, Any]:
    """Run faults on a bundle; {"ok", "faults": [Outcome as a dict with "ok"]}."""
    outcomes = []
    with Laboratory(bundle, out) as laboratory:
        for fault in find_faults(names):
            outcome = laboratory.run(fault)
            tell(outcome)
            outcomes.append(outcome)
    shutil.rmtree(out / "scene" / "bundle", ignore_errors=True)
    return {
        "ok": all(outcome.ok for outcome in outcomes),
        "command_period_s": PERIOD_S,
        "parameters": dict(PARAMETERS),
        "controller_timeout_s": SERVO_TIMEOUT_S,
        "faults": [{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes],
    }


def tell_outcome(outcome: Outcome) -> str:
    """One line for a terminal."""
    if outcome.stop_s is None:
        done = "went on" if outcome.ok else "did not stop"
    else:
        done = f"{1e3 * outcome.stop_s:.0f} ms by {outcome.stopped_by}"
    bar = "" if outcome.bar_s is None else f" (bar {1e3 * outcome.bar_s:.0f} ms)"
    verdict = "ok" if outcome.ok else "FAILED: " + "; ".join(outcome.problems)
    return f"{outcome.name:26} {done}{bar} {outcome.reason or ''}: {verdict}"


def write_table(report: dict[str, Any]) -> str:
    """The table of docs/safety.md."""
    lines = [
        "| fault | detection limit ms | allowed ms | arm stands ms | zero sent ms | ended by "
        "| reason | moves again |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["faults"]:
        numbers = [row["detection_s"], row["bar_s"], row["stop_s"], row["zero_s"]]
        cells = ["-" if value is None else f"{1e3 * value:.0f}" for value in numbers]
        again = {True: "yes", False: "no", None: "restarted"}[row["recovered"]]
        if row["stop_s"] is None:
            cells[-1] = "-"
        by = row["stopped_by"] or "goes on"
        reason = f"`{row['reason']}`" if row["reason"] else "-"
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {by} | {reason} | {again} |")
    return "\n".join(lines) + "\n"
