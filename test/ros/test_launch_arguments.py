"""What the launch files make of their arguments, without ROS's launch (test_launch.py has that)."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch_stand_ins import Launcher

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.sim.shifts import SHIFTS


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    return Launcher("policy.launch.py", monkeypatch)


@pytest.mark.parametrize(("word", "on"), [("true", True), ("YES", True), ("0", False)])
def test_a_watchdog_is_started_or_the_policy_asks_for_none(
    policy: Launcher, word: str, on: bool
) -> None:
    started = policy.start(watchdog=word)
    assert ("watchdog_node" in started) is on
    assert ("watchdog_timeout_s" in started["policy_node"].parameters) is not on


@pytest.mark.parametrize(
    "name", ["watchdog", "joystick", "use_sim_time", "autostart", "use_respawn"]
)
@pytest.mark.parametrize("word", ["on", "y", "ture", ""])
def test_a_word_that_is_neither_yes_nor_no_is_refused(
    policy: Launcher, name: str, word: str
) -> None:
    with pytest.raises(
        ConfigurationError, match=f"{name}: got '{word}'; expected true, 1, yes or false"
    ):
        policy.start(**{name: word})


def test_a_parameter_file_that_is_not_there_is_refused(
    policy: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    driver = {"camera_package": "usb_cam", "camera_executable": "usb_cam_node_exe"}
    for given in ({"params_file": "~/nodes.yaml"}, {"camera_params": "~/nodes.yaml", **driver}):
        with pytest.raises(RuntimeError, match=r"got '~/nodes.yaml'; expected a parameter file"):
            policy.start(**given)
    (tmp_path / "nodes.yaml").write_text("/**: {ros__parameters: {loss_s: 0.7}}")
    started = policy.start(
        params_file="~/nodes.yaml", camera_params="~/nodes.yaml", joystick="true", **driver
    )
    assert len(started) == 4
    for node in started.values():
        assert node.settings["parameters"][0] == str(tmp_path / "nodes.yaml")


COMPONENT = {"camera_package": "usb_cam", "camera_plugin": "usb_cam::UsbCamNode"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"use_respawn": "true"}, "with use_respawn; .* started again stays empty"),
        ({"enclave": "/vla_align_ros"}, "with an enclave; .* loaded by a node that has none"),
    ],
)
def test_a_component_that_would_not_be_loaded_is_refused(
    policy: Launcher, given: dict[str, str], says: str
) -> None:
    assert "component_container" in policy.start(**COMPONENT)
    with pytest.raises(RuntimeError, match=says):
        policy.start(**COMPONENT, **given)


def test_a_camera_driver_has_an_enclave_of_its_own_and_starts_again(policy: Launcher) -> None:
    driver = {"camera_package": "usb_cam", "camera_executable": "usb_cam_node_exe"}
    arguments = {**driver, "camera_name": "eye", "use_respawn": "yes"}
    for given, words in (
        ({}, []),
        ({"enclave": "/arms/left/"}, ["--enclave", "/arms/left/eye"]),
    ):
        camera = policy.start(**arguments, **given)["usb_cam_node_exe"]
        assert camera.settings["ros_arguments"] == words
        assert camera.settings["respawn"] is True


def test_the_joystick_of_a_namespace_can_listen_elsewhere(policy: Launcher) -> None:
    arguments = {"joystick": "true", "namespace": "left"}
    assert policy.start(**arguments)["joystick_stop"].settings["remappings"] == []
    started = policy.start(joy="/joy", **arguments)
    assert started["joystick_stop"].settings["remappings"] == [("joy", "/joy")]


@pytest.mark.parametrize(
    ("given", "fix"),
    [({"joy": "/joy"}, "joystick:=true"), ({"camera_params": "camera.yaml"}, "camera_package:=")],
)
def test_an_argument_of_what_is_not_started_is_refused(
    policy: Launcher, given: dict[str, str], fix: str
) -> None:
    (name,) = given
    with pytest.raises(RuntimeError, match=f"{name}: got .*, and nothing is started.*fix: {fix}"):
        policy.start(**given)


def test_the_only_camera_of_a_policy_may_be_given_with_its_name(policy: Launcher) -> None:
    for camera, inner in (("/eye", "image"), ("front=/eye", "front/image")):
        remaps = policy.start(camera=camera)["policy_node"].settings["remappings"]
        for suffix in ("", "/compressed"):
            for inside in {"~/image", f"~/{inner}"}:
                assert (inside + suffix, "/eye" + suffix) in remaps
    several = policy.start(camera="front=/eye,wrist=/hand")["policy_node"].settings["remappings"]
    assert [inside for inside, _ in several if not inside.endswith("/compressed")] == [
        "~/front/image",
        "~/wrist/image",
    ]


def test_the_files_image_transport_counts_where_none_is_given(policy: Launcher) -> None:
    assert "image_transport" not in policy.start()["policy_node"].parameters
    given = policy.start(image_transport="compressed")["policy_node"]
    assert given.parameters["image_transport"] == "compressed"


def test_the_demonstration_refuses_a_word_that_is_neither_yes_nor_no(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demonstration = Launcher("sim.launch.py", monkeypatch)
    with pytest.raises(
        ConfigurationError, match="swap: got 'ture'; expected true, 1, yes or false"
    ):
        demonstration.start(swap="ture", out=str(tmp_path))


def test_the_demonstration_tells_the_shifts_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Launcher("sim.launch.py", monkeypatch).describe("shift")
    assert all(name in told for name in SHIFTS)
