"""Drives policy_node through its transitions in-process."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
import tiny_policy
from geometry_msgs.msg import PoseStamped
from rclpy.exceptions import ParameterUninitializedException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_graph import WIDOWX
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.policy_node import PolicyNode

OK, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
BURST = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
MakeNode = Callable[..., PolicyNode]


@pytest.fixture
def make_node(ros: None, tiny_bundle: Path) -> Iterator[MakeNode]:
    nodes = []

    def make(
        bundle: Path = tiny_bundle, robot: Path | None = WIDOWX, **values: object
    ) -> PolicyNode:
        arguments = ["--ros-args", "-p", f"bundle:={bundle}", "-p", "start_armed:=true"]
        arguments += ["-p", "watchdog_timeout_s:=0.0"]
        if robot is not None:
            arguments += ["--params-file", str(robot)]
        overrides = [Parameter(name.replace("__", "."), value=v) for name, v in values.items()]
        node = PolicyNode(cli_args=arguments, parameter_overrides=overrides)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()


def state_of(node: PolicyNode) -> str:
    return str(node._state_machine.current_state[1])


def topics_of(node: PolicyNode) -> set[str]:
    publishers = {entity.topic_name for entity in node.publishers}
    return publishers | {entity.topic_name for entity in node.subscriptions}


def first_gripper_read_after(node: PolicyNode, burst: list[JointState]) -> float:
    """The stamp of the first opening that is taken, where a burst came while the node was busy."""
    assert node._runner is not None
    taken: list[float] = []
    node._runner.take_gripper = lambda _, stamp_s: taken.append(stamp_s)  # type: ignore[method-assign]
    drivers = rclpy.create_node("drivers")
    joints = drivers.create_publisher(JointState, "/policy_node/joint_states", BURST)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        end_s = time.monotonic() + 10.0
        while joints.get_subscription_count() == 0:
            assert time.monotonic() < end_s
            time.sleep(0.02)
        for message in burst:
            joints.publish(message)
        time.sleep(0.2)
        while not taken:
            assert time.monotonic() < end_s, "pushed out of the queue"
            executor.spin_once(timeout_sec=0.02)
    finally:
        executor.shutdown()
        drivers.destroy_node()
    return taken[0]


def gripper_at(stamp_s: int) -> JointState:
    message = JointState(name=["left_carriage_joint"], position=[0.02])
    message.header.stamp.sec = stamp_s
    return message


def test_the_gripper_is_read_although_an_arm_tells_its_joints_much_more_often(
    make_node: MakeNode, tiny_state_bundle: Path
) -> None:
    node = make_node(tiny_state_bundle)
    assert node.trigger_configure() == OK
    elbow = JointState(name=["elbow"], position=[0.0])
    assert first_gripper_read_after(node, [gripper_at(1), *[elbow] * 9]) == 1


def test_joints_that_a_busy_node_did_not_get_to_do_not_grow_old(
    make_node: MakeNode, tiny_state_bundle: Path
) -> None:
    """A policy does not plan on a state that is `sync_tolerance_s` behind its picture."""
    node = make_node(tiny_state_bundle)
    assert node.trigger_configure() == OK
    burst = [gripper_at(stamp_s) for stamp_s in range(1, 101)]
    assert first_gripper_read_after(node, burst) >= 90


def test_a_gripper_in_another_unit_is_no_state_and_says_so(
    make_node: MakeNode, tiny_state_bundle: Path
) -> None:
    node = make_node(tiny_state_bundle)
    assert node.trigger_configure() == OK
    assert node._inputs is not None and node._runner is not None
    millimetres = JointState(name=["left_carriage_joint"], position=[22.0])
    why = node._inputs._on_joints(millimetres)
    assert why is not None and "got 22" in why and "0.044 (open)" in why
    assert node._runner.state.gripper.value is None
    assert node._inputs._on_joints(gripper_at(1)) is None
    assert node._runner.state.gripper.value == pytest.approx(0.02 / 0.044)


def test_an_input_that_is_refused_all_the_time_leaves_the_log_to_the_others(
    make_node: MakeNode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node = make_node(tiny_policy.write_tiny_bundle(tmp_path, cameras=("front", "wrist")))
    assert node.trigger_configure() == node.trigger_activate() == OK
    inputs = node._inputs
    assert inputs is not None
    capfd.readouterr()
    for _ in range(3):
        inputs._on_pose(PoseStamped())
        for camera in ("front", "wrist"):
            inputs._on_image(camera, Image(encoding="odd"))
    inputs._on_instruction(String(data="take\x00that"))
    told = capfd.readouterr().err
    for what in ("pose", "image of front", "image of wrist", "instruction"):
        assert told.count(f"{what} refused") == 1, told


def test_a_bundle_in_the_home_of_a_user_who_is_none_is_refused_in_one_line(
    make_node: MakeNode,
) -> None:
    node = make_node(bundle=Path("~nobody_here/bundle"))
    assert node.trigger_configure() == FAILURE
    assert "no folder" in str(node.reporter.error)
    assert "~nobody_here/bundle" in str(node.reporter.error)


def test_a_bundle_by_relative_path_is_refused_by_the_whole_one(make_node: MakeNode) -> None:
    node = make_node(bundle=Path("bundles/nowhere"))
    assert node.trigger_configure() == FAILURE
    assert str(Path.cwd() / "bundles" / "nowhere") in str(node.reporter.error)


def test_does_not_start_with_a_limit_that_is_misspelt(make_node: MakeNode) -> None:
    with pytest.raises(ConfigurationError, match=r"got arm\.keep_out; expected arm\.keep_out_m"):
        make_node(arm__keep_out=[0.1] * 6)


def test_walks_its_whole_life_and_can_do_it_again(make_node: MakeNode) -> None:
    node = make_node()
    for _ in range(2):
        assert node.trigger_configure() == OK
        assert state_of(node) == "inactive"
        assert node.trigger_activate() == OK
        assert state_of(node) == "active"
        assert node.trigger_deactivate() == OK
        assert state_of(node) == "inactive"
        assert node.trigger_cleanup() == OK
        assert state_of(node) == "unconfigured"
    assert node.trigger_shutdown() == OK
    assert state_of(node) == "finalized"
    assert node.reporter.state == "finalized"


def test_a_gripper_is_halted_by_what_a_person_decides_and_by_no_other_hold(
    make_node: MakeNode,
) -> None:
    node = make_node()
    assert node.trigger_configure() == OK and node.trigger_activate() == OK
    assert node._arm is not None and node._runner is not None
    halted: list[str] = []

    def note() -> None:
        assert node._runner is not None and node._runner.hold is not None
        halted.append(node._runner.hold.reason.value)

    node._arm.halt_gripper = note  # type: ignore[method-assign]
    node._on_tick()
    node._runner.set_instruction("go")
    node._on_tick()
    assert halted == [], "no picture, no instruction: what it does may be finished"

    lock = node._interlock
    lock.press_dead_man(True, 0.0)
    for decide, undo in (
        (lambda: lock.press_dead_man(False, 0.0), lambda: lock.press_dead_man(True, 0.0)),
        (lambda: lock.take_over("by hand"), lambda: lock.take_over(None)),
        (lock.disarm, lock.arm),
        (lambda: node._authority.stop("by hand"), lambda: (lock.reset(), lock.arm())),
    ):
        decide()
        node._on_tick()
        undo()
        count = len(halted)
        node._on_tick()
        assert len(halted) == count
    assert list(dict.fromkeys(halted)) == ["dead_man", "takeover", "disarmed", "stopped"]
    halted.clear()
    assert node.trigger_deactivate() == OK
    assert len(halted) == 1, "nobody could cancel it afterwards"


@pytest.mark.parametrize("late", ["returns", "hangs"])
def test_an_engine_is_closed_unless_an_inference_hangs_in_it(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    node = make_node()
    assert node.trigger_configure() == OK
    assert node._policy is not None and node._runner is not None
    backend, runner = node._policy.backend, node._runner
    inside, go, closed = threading.Event(), threading.Event(), []
    infer = backend.infer

    def hang(inputs: dict[str, np.ndarray]) -> object:
        inside.set()
        go.wait(30.0)
        return infer(inputs)

    monkeypatch.setattr(backend, "infer", hang)
    monkeypatch.setattr(backend, "close", lambda: closed.append(inside.is_set()))
    assert node.trigger_activate() == OK
    runner.set_instruction("take the carrot")
    runner.take_pose(np.array([0.3, 0.0, 0.2, 0.0, 0.0, 0.0]), node._now_s())
    runner.take_image(lambda: np.full((16, 16, 3), 128, np.uint8), node._now_s())
    assert inside.wait(10.0)
    assert node.trigger_deactivate() == OK
    if late == "returns":
        go.set()
        end_s = time.monotonic() + 10.0
        while runner.infers:
            assert time.monotonic() < end_s
            time.sleep(0.01)
    assert node.trigger_cleanup() == OK
    assert len(closed) == (late == "returns")
    closed.clear()
    go.set()
    assert node.trigger_configure() == OK, "the next policy is another"
    assert node._policy is not None
    monkeypatch.setattr(node._policy.backend, "close", lambda: closed.append(True))
    assert node.trigger_cleanup() == OK
    assert closed == [True]


def test_a_node_that_somebody_configured_first_does_not_start_itself(make_node: MakeNode) -> None:
    node = make_node(autostart=True)
    assert node.trigger_configure() == OK
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.02)
    executor.shutdown()
    assert state_of(node) == "inactive"


@pytest.mark.parametrize("steps", [(), ("configure",), ("configure", "activate")])
def test_shuts_down_from_every_state(make_node: MakeNode, steps: tuple[str, ...]) -> None:
    node = make_node()
    for step in steps:
        assert getattr(node, f"trigger_{step}")() == OK
    assert node.trigger_shutdown() == OK
    assert state_of(node) == "finalized"


def test_the_garbage_collector_looks_past_a_configured_node_and_at_what_it_left(
    make_node: MakeNode,
) -> None:
    node = make_node()
    assert node.trigger_configure() == OK
    assert gc.get_freeze_count() > 10 * len(gc.get_objects())
    assert node.trigger_cleanup() == OK
    assert gc.get_freeze_count() == 0


def test_is_on_the_graph_only_while_configured(make_node: MakeNode) -> None:
    node = make_node()
    before = topics_of(node)
    assert {"/policy_node/status", "/diagnostics"} <= before
    assert node.trigger_configure() == OK
    assert topics_of(node) - before == {
        "/policy_node/image",
        "/policy_node/instruction",
        "/policy_node/ee_pose",
        "/policy_node/delta_twist_cmds",
        "/policy_node/gripper_commands",
        "/policy_node/action_chunk",
        "/policy_node/sight/attention",
        "/policy_node/sight/familiarity",
    }
    assert node.trigger_cleanup() == OK
    assert topics_of(node) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("joint_states.subscription.reliability", "bogus"),
        ("joint_states.subscription.history", 3),
        ("joint_states.subscription.depth", -1),
        ("gripper_commands.publisher.reliability", "bogus"),
    ],
)
def test_an_override_of_qos_that_is_none_is_refused_and_leaves_nothing_on_the_graph(
    make_node: MakeNode, tiny_state_bundle: Path, name: str, value: object
) -> None:
    node = make_node(tiny_state_bundle, **{f"qos_overrides./policy_node/{name}": value})
    before = topics_of(node)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    error, topic = str(node.reporter.error), name.split(".")[0]
    assert f"topic /policy_node/{topic} cannot be made with this QoS: got" in error
    assert f"fix: correct the parameters below qos_overrides./policy_node/{topic}" in error
    assert topics_of(node) == before


def test_an_override_of_one_topics_qos_is_of_no_other_topic(
    make_node: MakeNode, tiny_state_bundle: Path
) -> None:
    below = "qos_overrides./policy_node/image.subscription"
    node = make_node(tiny_state_bundle, **{f"{below}.reliability": "reliable", f"{below}.depth": 7})
    assert node.trigger_configure() == OK
    found = {sub.topic_name: sub.qos_profile for sub in node.subscriptions}
    camera, pose = found["/policy_node/image"], found["/policy_node/ee_pose"]
    assert (camera.depth, camera.reliability) == (7, ReliabilityPolicy.RELIABLE)
    assert (pose.depth, pose.reliability) == (1, ReliabilityPolicy.BEST_EFFORT)


def test_subscribes_to_the_state_where_the_policy_looks_at_it(
    make_node: MakeNode, tiny_state_bundle: Path
) -> None:
    node = make_node(tiny_state_bundle)
    assert node.trigger_configure() == OK
    assert "/policy_node/joint_states" in topics_of(node)


def test_subscribes_to_the_joints_where_the_gripper_starts_from_its_measured_opening(
    make_node: MakeNode,
) -> None:
    node = make_node(arm__gripper__max_per_s=2.0)
    assert node.trigger_configure() == OK
    assert "/policy_node/joint_states" in topics_of(node)


def test_takes_one_image_topic_not_two(make_node: MakeNode) -> None:
    node = make_node(image_transport="compressed")
    assert node.trigger_configure() == OK
    assert "/policy_node/image/compressed" in topics_of(node)
    assert "/policy_node/image" not in topics_of(node)


def break_missing(bundle: Path, folder: Path) -> Path:
    return folder / "nowhere"


def break_graph(bundle: Path, folder: Path) -> Path:
    copy = folder / "altered"
    copy.mkdir()
    for source in bundle.rglob("*"):
        if source.is_file():
            target = copy / source.relative_to(bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = source.read_bytes()
            target.write_bytes(content[:-1] if source.suffix == ".onnx" else content)
    return copy


def take_proof(bundle: Path, folder: Path) -> Path:
    path = tiny_policy.write_tiny_bundle(folder)
    Bundle.open(path).change_report(lambda report: {"proofs": {}})
    return path


def move_frame(bundle: Path, folder: Path) -> Path:
    return tiny_policy.write_tiny_bundle(folder, frame="world")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_missing, "nowhere"),
        (break_graph, "altered"),
        (move_frame, "world"),
        (take_proof, "vla-align verify"),
    ],
)
def test_refuses_a_bundle_it_cannot_run_and_takes_the_next(
    make_node: MakeNode,
    tiny_bundle: Path,
    tmp_path: Path,
    damage: Callable[[Path, Path], Path],
    says: str,
) -> None:
    node = make_node(damage(tiny_bundle, tmp_path))
    before = topics_of(node)
    assert node.trigger_configure() == FAILURE
    assert state_of(node) == "unconfigured"
    assert node.reporter.error is not None
    assert node.reporter.error.startswith("configure failed: ")
    assert says in node.reporter.error
    assert topics_of(node) == before

    answers = node.set_parameters([Parameter("bundle", value=str(tiny_bundle))])
    assert answers[0].successful
    assert node.trigger_configure() == OK
    assert node.reporter.error is None


def test_a_bundle_that_was_proved_elsewhere_is_proved_here_before_it_runs(
    make_node: MakeNode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tiny_policy.write_tiny_bundle(tmp_path)
    elsewhere = {"runs_on": "onnxruntime 1.2.3 on another processor"}
    Bundle.open(path).change_report(
        lambda report: {"proofs": {"onnx": {**report["proofs"]["onnx"], **elsewhere}}}
    )
    assert make_node(path).trigger_configure() == OK
    assert (
        "the bundle's proof is from elsewhere, or by other limits: replayed"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("values", "robot", "says"),
    [
        ({}, None, "arm.max_linear_m_s is not set"),
        ({"arm__command_frame": ""}, WIDOWX, "arm.command_frame is not set"),
        ({"image_transport": "pigeon"}, WIDOWX, "expected raw or compressed"),
        ({"backend": "abacus"}, WIDOWX, "abacus"),
        ({"chunk_strategy": "rtc"}, WIDOWX, "a head that takes no committed actions"),
        ({"arm__workspace_min_m": [0.0, 0.0]}, WIDOWX, "workspace"),
        ({"arm__workspace_min_m": [9.0, 9.0, 9.0]}, WIDOWX, "workspace"),
    ],
)
def test_refuses_parameters_that_make_no_arm(
    make_node: MakeNode, values: dict[str, object], robot: Path | None, says: str
) -> None:
    node = make_node(robot=robot, **values)
    assert node.trigger_configure() == FAILURE
    assert says in str(node.reporter.error)


def test_unexpected_error_in_a_transition_is_logged_and_recovered_from(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    monkeypatch.setattr("vla_align_ros.ros.policy_node.make_arm", None)
    assert node.trigger_configure() == TransitionCallbackReturn.ERROR
    assert state_of(node) == "unconfigured"
    assert "TypeError" in str(node.reporter.error)
    monkeypatch.undo()
    assert node.trigger_configure() == OK


def test_a_panic_in_a_transition_is_answered_like_any_error(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As libraries written in Rust raise it: no Exception."""

    def panic(*_: object) -> None:
        raise Panic("index out of bounds")

    node = make_node()
    monkeypatch.setattr("vla_align_ros.ros.policy_node.make_arm", panic)
    assert node.trigger_configure() == TransitionCallbackReturn.ERROR
    assert "Panic: index out of bounds" in str(node.reporter.error)
    monkeypatch.undo()
    assert node.trigger_configure() == OK


def test_parameters_hold_still_between_configure_and_cleanup(make_node: MakeNode) -> None:
    node = make_node()
    rarer = [Parameter("replan_period_s", value=0.5)]
    assert node.trigger_configure() == OK
    answer = node.set_parameters(rarer)[0]
    assert not answer.successful
    assert "clean the node up" in answer.reason
    assert node.trigger_cleanup() == OK
    assert node.set_parameters(rarer)[0].successful
    assert not node.set_parameters([Parameter("replan_period_s", value=1e6)])[0].successful
    for name, value in (("arm.max_linear_m_s", 4.0), ("command_rate_hz", 50.0)):
        assert not node.set_parameters([Parameter(name, value=value)])[0].successful, name


def test_instruction_of_an_inactive_node_does_not_wait_for_activation(make_node: MakeNode) -> None:
    node = make_node()
    assert node.trigger_configure() == OK
    assert node._inputs is not None
    assert node._runner is not None
    node._inputs._on_instruction(String(data=tiny_policy.CARROT))
    assert node.trigger_activate() == OK
    assert node._runner.instruction is None
    node._inputs._on_instruction(String(data=tiny_policy.CARROT))
    assert node._runner.instruction == tiny_policy.CARROT
    assert node.trigger_deactivate() == OK
    assert node._runner.instruction is None


def test_a_random_walk_ends_where_the_state_machine_says(make_node: MakeNode) -> None:
    moves = {
        "unconfigured": [("configure", "inactive")],
        "inactive": [("activate", "active"), ("cleanup", "unconfigured")],
        "active": [("deactivate", "inactive")],
    }
    node, state, chance = make_node(), "unconfigured", random.Random(7)
    policies = []
    for _ in range(30):
        step, state = chance.choice(moves[state])
        assert getattr(node, f"trigger_{step}")() == OK, step
        assert state_of(node) == node.reporter.state == state
        if step == "configure":
            policies.append(weakref.ref(node._policy))
    if state == "active":
        assert node.trigger_deactivate() == OK
    if state != "unconfigured":
        assert node.trigger_cleanup() == OK
    gc.collect()
    assert len(policies) > 3
    assert not [policy for policy in policies if policy() is not None], "a policy was kept"


def test_no_parameter_is_without_a_description(make_node: MakeNode) -> None:
    node = make_node()
    names = ["bundle", "backend", "command_rate_hz", "arm.command_frame", "arm.max_linear_m_s"]
    for name in names:
        assert node.describe_parameter(name).description
    with pytest.raises(ParameterUninitializedException):
        make_node(robot=None).get_parameter("arm.command_frame")
