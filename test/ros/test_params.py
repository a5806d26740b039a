"""Parameters: the shipped files fit the node, and what it declares says what it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_graph import ROOT

from vla_align_ros.contract.actions import GripperConvention
from vla_align_ros.contract.spec import ActionSpec
from vla_align_ros.errors import ConfigurationError, ContractError, SafetyError, VlaAlignError
from vla_align_ros.ros.arms.config import ArmConfig
from vla_align_ros.ros.declarations import DECLARATIONS
from vla_align_ros.ros.operating.joystick_stop import JoystickStop
from vla_align_ros.ros.params import (
    declare_parameters,
    find_misspelt,
    read_interlock,
    read_parameters,
    refuse_changes,
    refuse_unknown_arm,
)
from vla_align_ros.ros.watchdog_node import WatchdogNode
from vla_align_ros.runtime.interlock import InterlockConfig
from vla_align_ros.runtime.motion import MotionLimits
from vla_align_ros.runtime.safety import Limits, Timeouts
from vla_align_ros.runtime.strategies import ENSEMBLE_DECAY, Blend

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


def test_the_defaults_of_limits_and_timeouts_are_those_of_the_parameters(make_node: object) -> None:
    parameters = read_parameters(make_node(*ROBOTS[:1]))  # type: ignore[operator]
    assert parameters.timeouts == Timeouts()
    assert parameters.limits.hold_factor == Limits(1.0, 1.0).hold_factor
    assert parameters.arm.command_period_s == ArmConfig("arm", "base_link").command_period_s
    defaults = {declaration.name: declaration.default for declaration in DECLARATIONS}
    assert defaults["blend_s"] == Blend().blend_s
    assert defaults["ensemble_decay"] == ENSEMBLE_DECAY == 0.01, "the paper's"


def test_every_value_goes_where_it_belongs(make_node: object) -> None:
    node = make_node(ROBOTS[0])  # type: ignore[operator]
    given = {
        "image_timeout_s": 0.31,
        "state_timeout_s": 0.32,
        "action_timeout_s": 0.33,
        "instruction_timeout_s": 0.34,
        "command_rate_hz": 40.0,
        "arm.max_linear_m_s": 0.41,
        "arm.max_angular_rad_s": 0.42,
        "arm.hold_factor": 1.5,
        "arm.workspace_min_m": [-0.1, -0.2, -0.3],
        "arm.workspace_max_m": [0.1, 0.2, 0.3],
        "arm.keep_out_m": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "arm.max_linear_m_s2": 0.51,
        "arm.max_angular_rad_s2": 0.52,
        "arm.max_linear_m_s3": 0.53,
        "arm.max_angular_rad_s3": 0.54,
        "arm.leash_m": 0.06,
        "arm.leash_rad": 0.07,
        "arm.gripper.max_per_s": 0.55,
        "arm.gripper.max_effort": 0.56,
        "arm.gripper.closed_m": 0.61,
        "arm.gripper.open_m": 0.62,
        "arm.gripper.command_closed": 0.63,
        "arm.gripper.command_open": 0.64,
    }
    for name, value in given.items():
        node._parameters[name] = Parameter(name, value=value)
    parameters = read_parameters(node)
    assert parameters.timeouts == Timeouts(0.31, 0.32, 0.33, 0.34)
    assert parameters.limits == Limits(
        linear_m_s=0.41,
        angular_rad_s=0.42,
        hold_factor=1.5,
        workspace_m=((-0.1, -0.2, -0.3), (0.1, 0.2, 0.3)),
        keep_out_m=(((0.0, 0.1, 0.2), (0.3, 0.4, 0.5)), ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5))),
        motion=MotionLimits(0.51, 0.52, 0.53, 0.54, 0.55),
    )
    arm = parameters.arm
    assert (arm.leash_m, arm.leash_rad, arm.gripper_max_effort) == (0.06, 0.07, 0.56)
    assert arm.gripper_position_m == GripperConvention(closed=0.61, open=0.62)
    assert arm.gripper_command == GripperConvention(closed=0.63, open=0.64)
    assert arm.command_period_s == pytest.approx(0.025)


def test_what_a_person_decides_beside_the_policy_is_read_by_its_name(make_node: object) -> None:
    node = make_node(ROBOTS[0], dead_man_s=0.3, watchdog_timeout_s=0.4)  # type: ignore[operator]
    assert read_interlock(node) == InterlockConfig(False, 0.3, 0.4)


@pytest.mark.parametrize(
    ("configured", "name", "taken"),
    [(False, "bundle", True), (True, "bundle", False), (True, "use_sim_time", True)],
)
def test_only_our_own_parameters_hold_and_only_while_configured(
    configured: bool, name: str, taken: bool
) -> None:
    result = refuse_changes([Parameter(name, value="x")], configured=configured)
    assert result.successful == taken and (taken or name in result.reason)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("arm.keep_out", "arm.keep_out_m"),
        ("arm.workspace_mim_m", "arm.workspace_min_m"),
        ("arm.gripper.max_per_second", "arm.gripper.max_per_s"),
    ],
)
def test_a_limit_that_is_misspelt_is_refused_and_not_ignored(
    make_node: object, misspelt: str, meant: str
) -> None:
    node = make_node(**{misspelt: [0.0] * 6})
    with pytest.raises(ConfigurationError, match=f"got {misspelt}; expected .*{meant}"):
        refuse_unknown_arm(node)


def test_a_gripper_without_a_range_is_refused_with_what_to_correct(make_node: object) -> None:
    node = make_node(ROBOTS[0], arm__gripper__open_m=0.01, arm__gripper__closed_m=0.01)
    with pytest.raises(ContractError, match="fix: correct the gripper's values"):
        read_parameters(node)


def test_a_parameter_that_is_misspelt_is_told_with_the_one_that_is_meant(
    make_node: object,
) -> None:
    node = make_node(comand_rate_hz=50.0, image_timout_s=0.2)
    assert find_misspelt(node) == [
        "comand_rate_hz is no parameter; command_rate_hz is",
        "image_timout_s is no parameter; image_timeout_s is",
    ]


@pytest.mark.parametrize(
    ("make", "misspelt"),
    [
        (WatchdogNode, {"stop_polcy": True, "tolerances_s": 0.1}),
        (JoystickStop, {"stop_buton": 3, "dead_man_buttons": 4}),
    ],
)
def test_what_stops_an_arm_tells_a_misspelt_parameter_of_its_own(
    ros: None, capfd: pytest.CaptureFixture[str], make: Callable[[], Node], misspelt: dict[str, Any]
) -> None:
    files = [word for file in (POLICY, ROBOTS[0]) for word in ("--params-file", str(file))]
    for words in (
        [],
        [word for pair in misspelt.items() for word in ("-p", "{}:={}".format(*pair))],
    ):
        rclpy.shutdown()
        rclpy.init(args=["--ros-args", *files, *words])
        capfd.readouterr()
        make().destroy_node()
        told = capfd.readouterr().err
        assert told.count("is no parameter") == len(words) // 2, told
    for name in misspelt:
        assert f"{name} is no parameter" in told


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda path: path.stem)
def test_what_is_no_arms_is_nobodys_to_refuse(make_node: object, robot: Path) -> None:
    others = {"stop_policy": True, "loss_s": 0.7, "tolerance_s": 0.1, "dead_man_button": 3}
    node = make_node(POLICY, robot, **others)
    refuse_unknown_arm(node)
    assert find_misspelt(node) == []


def test_all_are_described_and_numbers_have_ranges(make_node: object) -> None:
    node = make_node(*ROBOTS[:1])  # type: ignore[operator]
    for declaration in DECLARATIONS:
        descriptor = node.describe_parameter(declaration.name)
        assert descriptor.description, declaration.name
        scalar = isinstance(declaration.default, int | float) or (
            declaration.default is Parameter.Type.DOUBLE
        )
        if scalar and not isinstance(declaration.default, bool):
            ranges = (descriptor.integer_range, descriptor.floating_point_range)
            whole = isinstance(declaration.default, int)
            assert [len(found) for found in ranges] == [whole, not whole], declaration.name
        assert descriptor.read_only == (
            declaration.name.startswith("arm.") or declaration.name in FIXED
        )


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"arm__gripper__open_m": 0.0}, ContractError, "gripper"),
        ({"image_transport": "theora"}, ConfigurationError, "theora"),
        ({"arm__workspace_min_m": None}, ConfigurationError, "one corner only"),
        ({"arm__keep_out_m": [0.0] * 7}, SafetyError, "keep_out_m"),
        ({"chunk_strategy": "oldest"}, ConfigurationError, "no such strategy"),
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
