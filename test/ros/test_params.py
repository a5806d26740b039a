"""Parameters: the shipped files fit the node, and what it declares says what it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_graph import ROOT

from vla_align_ros.contract.spec import ActionSpec
from vla_align_ros.errors import ConfigurationError, ContractError, VlaAlignError
from vla_align_ros.ros.declarations import DECLARATIONS
from vla_align_ros.ros.params import declare_parameters, read_parameters

POLICY = ROOT / "config" / "policy.yaml"
FIXED = (
    *("autostart", "thread_priority", "command_rate_hz", "start_armed", "dead_man_s"),
    "watchdog_timeout_s",
)
ROBOTS = sorted((ROOT / "config" / "robots").glob("*.yaml"))


@pytest.fixture
def make_node(ros: None) -> Iterator[object]:
    nodes = []

    def make(*files: Path, **values: object) -> Node:
        words = ["--ros-args", "-p", "bundle:=/some/bundle"]
        for file in files:
            words += ["--params-file", str(file)]
        overrides = [Parameter(name.replace("__", "."), value=v) for name, v in values.items()]
        node = rclpy.create_node("policy_node", cli_args=words, parameter_overrides=overrides)
        nodes.append(node)
        declare_parameters(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()


def flatten(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


@pytest.mark.parametrize("file", [POLICY, *ROBOTS], ids=lambda path: path.stem)
def test_a_shipped_file_sets_only_parameters_that_exist(file: Path) -> None:
    tree = yaml.safe_load(file.read_text())
    assert list(tree) == ["/**"]
    names = {declaration.name for declaration in DECLARATIONS}
    assert set(flatten(tree["/**"]["ros__parameters"])) <= names


def test_policy_yaml_repeats_the_defaults_of_the_code() -> None:
    values = flatten(yaml.safe_load(POLICY.read_text())["/**"]["ros__parameters"])
    defaults = {declaration.name: declaration.default for declaration in DECLARATIONS}
    assert values == {name: defaults[name] for name in values}
    ours = {name for name in defaults if not name.startswith("arm.") and name != "bundle"}
    assert set(values) == ours, "config/policy.yaml leaves a parameter out"


@pytest.mark.parametrize("page", [POLICY, ROOT / "docs" / "robot.md"], ids=lambda path: path.name)
def test_the_pages_name_every_parameter_that_is_fixed_from_the_start(page: Path) -> None:
    found = {d.name for d in DECLARATIONS if d.read_only and not d.name.startswith("arm.")}
    assert found == set(FIXED)
    said = re.search(
        r"(?:Fixed from the start:|hold from configure to cleanup;)([^.]*)", page.read_text()
    )
    assert said is not None and all(name in said[1] for name in FIXED), page


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda path: path.stem)
def test_a_robot_file_makes_a_whole_configuration(make_node: object, robot: Path) -> None:
    parameters = read_parameters(make_node(POLICY, robot))  # type: ignore[operator]
    assert parameters.arm.name == robot.stem
    assert parameters.arm.command_frame
    assert parameters.arm.gripper_joint
    assert parameters.limits.workspace_m is not None


def test_all_are_described_and_numbers_have_ranges(make_node: object) -> None:
    node = make_node(*ROBOTS[:1])  # type: ignore[operator]
    for declaration in DECLARATIONS:
        descriptor = node.describe_parameter(declaration.name)
        assert descriptor.description, declaration.name
        scalar = isinstance(declaration.default, int | float) or (
            declaration.default is Parameter.Type.DOUBLE
        )
        if scalar and not isinstance(declaration.default, bool):
            assert descriptor.floating_point_range or descriptor.integer_range, declaration.name
        assert descriptor.read_only == (
            declaration.name.startswith("arm.") or declaration.name in FIXED
        )


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"arm__gripper__open_m": 0.0}, ContractError, "gripper"),
        ({"image_transport": "theora"}, ConfigurationError, "theora"),
        ({"bundle": ""}, ConfigurationError, "parameter bundle is not set"),
    ],
)
def test_useless_values_are_refused_in_one_line(
    make_node: object, values: dict[str, object], error: type[VlaAlignError], says: str
) -> None:
    node = make_node(ROBOTS[0])  # type: ignore[operator]
    undeclared = {name.replace("__", "."): value for name, value in values.items()}
    for name, value in undeclared.items():
        node._parameters[name] = Parameter(name, value=value)
    with pytest.raises(error, match=says) as caught:
        read_parameters(node)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("replan_s", "limit_s", "fits"),
    [
        (-1.0, 0.0, True),
        (-1.0, 0.5, True),
        (-1.0, 0.4, False),
        (0.0, 0.05, True),
        (1.0, 0.8, False),
    ],
)
def test_actions_must_stay_good_until_the_next_plan(
    make_node: object, replan_s: float, limit_s: float, fits: bool
) -> None:
    node = make_node(ROBOTS[0])  # type: ignore[operator]
    for name, value in (("replan_period_s", replan_s), ("action_timeout_s", limit_s)):
        node._parameters[name] = Parameter(name, value=value)
    parameters, action = read_parameters(node), ActionSpec("base_link", 5.0, 8)
    if fits:
        expected = 0.4 if replan_s < 0 else replan_s
        assert parameters.find_replan_period_s(action) == pytest.approx(expected)
    else:
        with pytest.raises(ConfigurationError, match="hold between two plans"):
            parameters.find_replan_period_s(action)
