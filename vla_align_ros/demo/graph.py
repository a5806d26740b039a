"""Starts the graph's processes, watches them, keeps their logs, and never leaves one behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vla_align_ros.errors import ConfigurationError, SimulationError
from vla_align_ros.share import CAMERA_PROFILE, DISTRO_OF_RCLPY, PROFILE_VARIABLES

ELSEWHERE = ("ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER", "ROS_SUPER_CLIENT")
LOG_LINES_SHOWN = 15
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Child:
    """A running process of the graph and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def blame(self, what: str, *, got: str, expected: str) -> SimulationError:
        """An error about this process that ends with the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        end = "".join(f"\n    {line}" for line in lines[-LOG_LINES_SHOWN:])
        fix = f"mend what {self.log} says, which ends:{end}"
        return SimulationError(f"{self.name} {what}", got=got, expected=expected, fix=fix)


class Graph:
    """Processes that live and die together; use as a context manager.

    Each child leads its own process group, so that it can be ended with all that it started, and
    gets SIGTERM from the kernel should this process be killed.
    """

    def __init__(self, log_dir: Path, environment: Mapping[str, str]) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._environment = dict(environment)
        self.children: list[Child] = []

    def start(
        self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None
    ) -> Child:
        """Start a process whose output goes to `<log_dir>/<name>.log`; `more` environment."""
        log = self._log_dir / f"{name}.log"
        with log.open("wb") as output:
            output.write((" ".join(command) + "\n").encode())
            output.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(more or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def check(self, *, may_end: Child) -> None:
        """Raise SimulationError if any process ended, unless it is `may_end` and ended well."""
        for child in self.children:
            status = child.process.poll()
            if status is None or (child is may_end and status == 0):
                continue
            raise child.blame(
                "ended too early", got=f"exit status {status}", expected="a process that goes on"
            )

    def stop(self, patience_s: float = 5.0) -> None:
        """End every process group: interrupt, then terminate, then kill."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for child in self.children:
                if child.process.poll() is None or number == signal.SIGKILL:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.process.pid, number)
            deadline_s = time.monotonic() + patience_s
            for child in self.children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.01, deadline_s - time.monotonic()))

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _die_with_parent() -> None:
    """Ask Linux to end this child when its parent dies, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def graph_environment(share: Path, log_dir: Path) -> dict[str, str]:
    """The environment of every node: a ROS domain of our own, on this machine alone.

    A robot in the same network must never hear this graph's commands, so a set ROS_DOMAIN_ID is
    not taken over, nor peers and servers elsewhere, which count beside LOCALHOST too.
    """
    profile = str(share / CAMERA_PROFILE)
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    environment.update(
        ROS_DOMAIN_ID=str(find_free_domain()),
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        **dict.fromkeys(PROFILE_VARIABLES, profile),
        RMW_IMPLEMENTATION="rmw_fastrtps_cpp",
        ROS_LOG_DIR=str(log_dir / "ros"),
        RCUTILS_COLORIZED_OUTPUT="0",
        PYTHONUNBUFFERED="1",
        OMP_NUM_THREADS="1",
        LP_NUM_THREADS="1",
    )
    return environment


def find_free_domain() -> int:
    """A ROS domain (1..100) of which nobody on this machine holds the first discovery ports.

    RTPS ports (DDSI-RTPS 2.2, 9.6.1.1): 7400 + 250 domain + 10 + 2 participant.
    """
    first = os.getpid() % 100
    for offset in range(100):
        domain = 1 + (first + offset) % 100
        if all(_is_free(7400 + 250 * domain + 10 + 2 * k) for k in range(4)):
            return domain
    raise ConfigurationError(
        "No free ROS domain",
        got="the discovery ports of domains 1 to 100 all taken",
        expected="one free domain",
        fix="end some of the ROS 2 processes on this machine",
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def ros_distro() -> str:
    """Name of the ROS 2 distribution in use: the sourced one, or that of the installed wheels."""
    sourced = os.environ.get("ROS_DISTRO")
    if sourced:
        return sourced
    try:
        number = version("ros-rclpy")
    except PackageNotFoundError as error:
        raise ConfigurationError(
            "No ROS 2 found",
            got="neither ROS_DISTRO nor the wheel ros-rclpy",
            expected="a sourced ROS 2 or the wheels",
            fix="pip install 'vla_align_ros[ros]', or source /opt/ros/<distro>/setup.bash",
        ) from error
    return DISTRO_OF_RCLPY.get(number.split(".")[0], f"rclpy {number}")
