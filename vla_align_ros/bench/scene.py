"""A policy node with camera, watchdog and controller as processes, for measurements on them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vla_align_ros.bench.motion import is_moving
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.demo.graph import Child, Graph, graph_environment
from vla_align_ros.demo.wiring import ParameterValue, format_parameter
from vla_align_ros.errors import SimulationError
from vla_align_ros.ros.bench.control import VARIABLE, Control
from vla_align_ros.ros.bench.stage import POLICY, Stage, Surroundings
from vla_align_ros.ros.bench.tracing import VARIABLE as TRACE_VARIABLE
from vla_align_ros.ros.bench.under_test import ENGINE
from vla_align_ros.runtime.sources import POSE_NAMES
from vla_align_ros.share import find_share

ROBOT = "robots/widowx_sim.yaml"
FINGER_OPEN_M = 0.044  # as the robot's file says
SERVO_TIMEOUT_S = 0.1  # MoveIt Servo's default
START_S = 120.0
PRIORITY = 50  # of the commanding thread, where the system permits it
MOTION_S = 30.0
COMMANDS_TO_MOVE = 10
OTHER_WORDS = "put the cube on the plate"


@dataclass(frozen=True)
class Setup:
    """How the processes are started; the parameters are policy_node's beside its files."""

    sim_time: bool = False
    compressed: bool = False
    width: int = 224
    height: int = 224
    camera_rate_hz: float = 30.0
    count_frames: bool = False
    watchdog: bool = True
    executable: str = "bench.under_test"
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)


class Scene:
    """Starts camera, policy and watchdog, arms, gives an instruction: a context that moves an arm.

    The bundle is copied into `out`, where it may be replaced. `camera` and `engine` are the
    control files, `stage` is everything around the policy; see `Stage`.
    """

    def __init__(self, bundle: Path, out: Path, setup: Setup | None = None) -> None:
        self.setup = Setup() if setup is None else setup
        self.original = bundle
        self.bundle = out / "bundle"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copytree(bundle, self.bundle)
        self.trace = out / "trace.json"
        self._share = find_share()
        self.camera, self.engine = (Control(out / name) for name in ("camera", "engine"))
        environment = graph_environment(self._share, out / "logs")
        # The contexts of this process read them, too.
        for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "RMW_IMPLEMENTATION"):
            os.environ[name] = environment[name]
        self._domain = int(environment["ROS_DOMAIN_ID"])
        self.graph = Graph(out / "logs", environment)
        self._environment = environment
        self.children: dict[str, Child] = {}
        self.stage = Stage(
            find_surroundings(bundle), domain=self._domain, sim_time=self.setup.sim_time
        )

    def __enter__(self) -> Scene:
        try:
            for name in ("camera", "policy", *(["watchdog"] if self.setup.watchdog else [])):
                self.start(name)
            self.wait_until_moving()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, also those that were stopped."""
        for child in self.children.values():
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGCONT)
        self.graph.stop()
        self.stage.close()

    # -- processes --------------------------------------------------------------------------------

    def start(self, name: str) -> Child:
        """Start the process called camera, policy or watchdog."""
        module, words = {
            "camera": ("bench.camera_node", self._camera_words()),
            "policy": (self.setup.executable, self._policy_words()),
            "watchdog": ("watchdog_node", self._watchdog_words()),
        }[name]
        control = self.camera if name == "camera" else self.engine
        more = {VARIABLE: str(control.path), TRACE_VARIABLE: str(self.trace)}
        command = [sys.executable, "-m", f"vla_align_ros.ros.{module}", "--ros-args", *words]
        if self.setup.sim_time:
            command += ["-p", "use_sim_time:=true"]
        number = sum(known.name.startswith(name) for known in self.graph.children)
        self.children[name] = self.graph.start(f"{name}{number or ''}", command, more)
        return self.children[name]

    def send(self, number: signal.Signals, *names: str) -> None:
        """Send a signal to processes by their names."""
        for name in names:
            self.children[name].process.send_signal(number)

    def log(self, name: str) -> str:
        """All that a process has written so far."""
        return self.children[name].log.read_text(encoding="utf-8", errors="replace")

    def _camera_words(self) -> list[str]:
        setup = self.setup
        values: dict[str, ParameterValue] = {
            "bundle": str(self.original),
            "rate_hz": float(setup.camera_rate_hz),
            "width": setup.width,
            "height": setup.height,
            "compressed": setup.compressed,
            "count": setup.count_frames,
        }
        remaps = {
            "~/image": f"{POLICY}/image",
            "~/image/compressed": f"{POLICY}/image/compressed",
        }
        return [*_parameters(values), *_remaps(remaps)]

    def _policy_words(self) -> list[str]:
        values: dict[str, ParameterValue] = {
            "bundle": str(self.bundle),
            "autostart": True,
            "replan_period_s": 0.0,  # planning on every picture: as much work as there can be
            "image_transport": "compressed" if self.setup.compressed else "raw",
        }
        if not self.setup.watchdog:
            values["watchdog_timeout_s"] = 0.0
        if self.setup.executable == "bench.under_test":
            values |= {"backend": ENGINE, "allow_unproven": True}  # it is there to fail
        return [*self._files(), *_parameters({**values, **self.setup.parameters})]

    def _watchdog_words(self) -> list[str]:
        names = ("delta_twist_cmds", "heartbeat", "emergency_stop", "watched")
        return [*self._files(), *_remaps({f"~/{name}": f"{POLICY}/{name}" for name in names})]

    def _files(self) -> list[str]:
        files = (str(self._share / "config" / name) for name in ("policy.yaml", ROBOT))
        return [word for file in files for word in ("--params-file", file)]

    # -- the course of a measurement ------------------------------------------------------------

    def wait_until_moving(self, timeout_s: float = START_S) -> None:
        """Activate if need be, arm, give the instruction and wait for motion."""
        stage = self.stage
        self.expect(
            lambda: (
                stage.status.get("state") == "active"
                and stage.status.get("hold_reason") != "inactive"
            ),
            "an active policy",
            timeout_s,
        )
        if self.setup.watchdog:
            self.expect(lambda: bool(stage.watchdog), "a watchdog", timeout_s)
        if stage.status.get("hold_reason") in ("disarmed", "stopped"):
            stage.arm()
        self.expect(stage.heard, "a listener to instructions", timeout_s)
        stage.say(stage.surroundings.instruction)
        since = len(stage.commands)

        def moves() -> bool:
            return sum(command.moving for command in stage.commands[since:]) >= COMMANDS_TO_MOVE

        self.expect(moves, "a moving arm", MOTION_S)

    def moves_at(self, time_s: float) -> bool:
        """Whether the arm moves at a moment of the monotonic clock."""
        return is_moving(self.stage.commands[-200:], time_s, SERVO_TIMEOUT_S)

    def expect(self, happened: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for something; SimulationError with the state of everything if it does not come."""
        if self.stage.wait_for(happened, timeout_s):
            return
        log = self.children["policy"].log
        raise SimulationError(
            f"The measurement did not see {what}",
            got=f"status {self.stage.status}",
            expected=f"{what} within {timeout_s:g} s",
            fix=f"see {log}, which ends: {log.read_text(errors='replace')[-800:]}",
        )


def find_surroundings(bundle: Path) -> Surroundings:
    """Robot state and words of a bundle's golden samples."""
    opened = Bundle.open(bundle)
    golden, names = opened.golden(), opened.spec.state.names if opened.spec.state else ()
    state = dict(zip(names, golden["state"][0], strict=True)) if names else {}
    middle = {"x": 0.3, "y": 0.0, "z": 0.2}
    pose = [float(state.get(name, middle.get(name, 0.0))) for name in POSE_NAMES]
    words = [str(text) for text in dict.fromkeys(golden["instruction"].tolist())]
    return Surroundings(
        pose=pose,
        finger_m=FINGER_OPEN_M * float(state.get("gripper", 1.0)),
        finger_joint="left_carriage_joint",
        frame=opened.spec.action.frame,
        instruction=words[0],
        other_instruction=words[1] if len(words) > 1 else OTHER_WORDS,
    )


def _parameters(values: Mapping[str, ParameterValue]) -> list[str]:
    pairs = (("-p", f"{name}:={format_parameter(value)}") for name, value in values.items())
    return [word for pair in pairs for word in pair]


def _remaps(topics: Mapping[str, str]) -> list[str]:
    pairs = (("-r", f"{name}:={target}") for name, target in topics.items())
    return [word for pair in pairs for word in pair]
