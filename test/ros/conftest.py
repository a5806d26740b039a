"""A graph of its own for every test run, tiny policies to drive, and nodes as processes."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before any context is made: tests of two runs, processes of one (pytest-xdist's gw0, gw1, ... have
# the first one's environment), or another machine's must not meet.
os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 100)))
os.environ["ROS_DOMAIN_ID"] = str(
    (int(os.environ["ROS_DOMAIN_ID"]) + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) - 1)
    % 100
    + 1
)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

with warnings.catch_warnings():
    # lark, below rclpy's type support, imports what Python 3.11 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    import rosidl_generator_py  # noqa: F401

import rclpy
import tiny_policy
from ros_graph import ROOT, Probe


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without state whose actions follow from picture and words (see tiny_policy)."""
    return tiny_policy.write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_state_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the state x, y, z, roll, pitch, yaw, gripper, which the actions add."""
    return tiny_policy.write_tiny_bundle(tmp_path_factory.mktemp("tiny_state"), state=True)


@pytest.fixture
def ros() -> Iterator[None]:
    """A ROS context for nodes within the test's process.

    A LifecycleNode that was destroyed stays on the graph, with its life cycle's services, until it
    is collected as garbage: a second policy_node, for which questions by name were answered.
    """
    gc.collect()
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def probe(ros: None) -> Iterator[Probe]:
    """A node that feeds a policy and keeps what it sends."""
    probe = Probe()
    yield probe
    probe.close()


@pytest.fixture
def start_node() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a node of this package as a process: start_node("policy_node", "-p", "a:=b", ...).

    The words are ROS arguments. A policy asks for no watchdog unless they say so. A node that still
    runs at the end gets SIGINT, then SIGKILL.
    """
    running: list[subprocess.Popen[str]] = []

    def start(executable: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"vla_align_ros.ros.{executable}", "--ros-args"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if executable == "policy_node":
            command += ["-p", "watchdog_timeout_s:=0.0"]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
