"""The doctor's verdict is of what was asked for; an odd file of a robot's is a finding."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess

import pytest

from vla_align_ros.commands import doctor
from vla_align_ros.commands.findings import Finding
from vla_align_ros.commands.robot_checks import check_bundle, check_graph, check_robot


def run(*words):
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(list(words)))


@pytest.fixture
def graph(monkeypatch):
    """What the graph answers, by name; and what it was asked."""
    answers, asked = {}, []

    def look(words, seconds):
        asked.extend(words)
        assert seconds == 3.0
        return [Finding("graph", name, ok, "") for name, ok in answers.items()]

    monkeypatch.setattr(doctor, "check_graph", look)
    monkeypatch.setattr(doctor, "check_engines", list)
    monkeypatch.setattr(doctor, "check_module", lambda part, name: Finding(part, name, True, ""))
    monkeypatch.setattr(doctor, "check_rendering", lambda name: Finding("sim", name, True, ""))
    return answers, asked


@pytest.mark.parametrize("words", [["--policy", "arm"], ["--camera", "/a"], ["--commands", "b"]])
def test_a_graph_that_cannot_be_looked_at_fails_what_was_asked_of_it(graph, words):
    graph[0]["nodes"] = False  # no rclpy, no answer
    assert run()["ok"] is True
    assert run(*words)["ok"] is False


@pytest.mark.parametrize("seconds", [3.0, 90.0])
def test_the_graph_has_the_time_that_its_rates_are_measured_for(monkeypatch, seconds):
    given = {}

    def look(command, timeout, **_):
        given.update(words=command, limit_s=timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", look)
    (finding,) = check_graph(["--camera", "/a"], seconds)
    assert given["words"][-4:] == ["--camera", "/a", "--seconds", str(seconds)]
    assert given["limit_s"] > seconds + 45.0
    assert finding.found == f"no answer in {given['limit_s']:.0f} s"


def test_topics_are_asked_for_by_the_names_that_the_graph_has(graph):
    answers, asked = graph
    answers["/front/image"] = True
    assert run("--camera", "front/image")["ok"] is True
    assert asked[asked.index("--camera") + 1] == "/front/image"
    answers["/front/image"] = False
    assert run("--camera", "front/image")["ok"] is False


def test_a_module_that_a_bundle_needs_and_is_not_there_is_a_finding(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "PIL" else find(n))
    (finding,), bundle = check_bundle(tmp_path)
    assert bundle is None and not finding.ok and "no PIL" in finding.found
    assert "pip install" in finding.fix


@pytest.mark.parametrize("name", [300 * "a", "~nobody_of_that_name/arm.yaml"])
def test_a_robot_that_cannot_be_looked_for_is_a_finding(name):
    (finding,) = check_robot(name, None)
    assert not finding.ok and name in finding.found


@pytest.mark.parametrize("gripper", ["hand", "[1]", "3"])
def test_a_gripper_that_is_no_table_is_a_finding(tmp_path, gripper):
    path = tmp_path / "arm.yaml"
    arm = "command_frame: a, max_linear_m_s: 1, max_angular_rad_s: 1"
    path.write_text(f"/**: {{ros__parameters: {{arm: {{{arm}, gripper: {gripper}}}}}}}")
    (finding,) = check_robot(str(path), None)
    assert not finding.ok and "AttributeError" in finding.found
