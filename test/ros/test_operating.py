"""The operator's tools as processes beside a running policy_node: say, stop_arm, the console."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.task import Future
from ros_graph import BEST_EFFORT, LATCHED, RELIABLE, ROOT, WIDOWX, Probe
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Empty, String
from std_srvs.srv import Trigger
from tiny_policy import CARROT, PLATE

from vla_align_ros.errors import OperatorError
from vla_align_ros.ros.operating import console as console_module
from vla_align_ros.ros.operating import say as say_module
from vla_align_ros.ros.operating.client import UNTOLD, PolicyClient, find_policies, refuse
from vla_align_ros.ros.operating.console import Console
from vla_align_ros.ros.operating.stop_arm import Policies
from vla_align_ros.ros.policy_node import PolicyNode

Start = Callable[..., subprocess.Popen[str]]
TOOL_S = 60.0


@pytest.fixture
def probe(ros: None, start_node: Start, tiny_bundle: Path) -> Iterator[Probe]:
    """A probe beside an active, disarmed policy that sees grey pictures."""
    start_node(
        *("policy_node", "--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
        *("-p", "autostart:=true", "-p", "image_timeout_s:=5.0", "-p", "state_timeout_s:=5.0"),
    )
    probe = Probe()
    probe.wait_for_state("active")
    probe.grey = 128
    yield probe
    probe.close()


def command(tool: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"vla_align_ros.ros.operating.{tool}", *words]


def run(probe: Probe, tool: str, *words: str) -> tuple[int, str]:
    """Run a tool to its end while the camera goes on."""
    process = subprocess.Popen(
        command(tool, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    assert probe.wait_for(lambda: process.poll() is not None, TOOL_S), f"{tool} does not end"
    return process.returncode, process.communicate()[0]


def test_say_arms_gives_words_and_withdraws_them(probe: Probe) -> None:
    status, text = run(probe, "say", "Take the", "CARROT.")
    assert status == 0, text
    assert "disarmed" in text and "say --arm" in text
    status, text = run(probe, "say", "--arm", CARROT)
    assert (status, text.strip()) == (0, f"policy_node: moving, {CARROT!r}")
    probe.wait_for_motion()
    status, text = run(probe, "say", "")
    assert status == 0 and "no_instruction" in text
    assert probe.latest("instruction") is None


def test_say_gives_the_new_words_before_it_arms(probe: Probe) -> None:
    probe.say(PLATE)
    assert probe.wait_for(lambda: probe.latest("instruction") == PLATE)
    assert run(probe, "say", "--arm", CARROT)[0] == 0
    probe.wait_for_motion()
    told = [(status["instruction"], status["hold_reason"]) for status in probe.status]
    assert (CARROT, "disarmed") in told, "armed before the policy had the words"
    assert {reason for words, reason in told if words == PLATE} == {"disarmed"}


def test_say_refuses_what_no_policy_can_take(probe: Probe) -> None:
    status, text = run(probe, "say", "take" * 1000)
    assert status == 1 and text.startswith("say: ") and "got" in text
    status, text = run(probe, "say", "--policy", "other", "--wait", "4", CARROT)
    assert status == 1
    assert "other: nothing heard" in text and "/policy_node" in text, text


def test_stop_arm_stops_every_policy_that_it_finds(probe: Probe) -> None:
    assert run(probe, "say", "--arm", CARROT)[0] == 0
    probe.wait_for_motion()
    status, text = run(probe, "stop_arm")
    assert (status, text.strip()) == (0, "/policy_node: stopped")
    assert probe.latest("hold_reason") == "stopped"


def test_stop_arm_stops_a_policy_whose_emergency_stop_is_another_topic(
    ros: None, start_node: Start
) -> None:
    arms = [("-r", "__ns:=/left", "-r", "~/emergency_stop:=/button"), ("-r", "__ns:=/right")]
    for words in arms:
        start_node("policy_node", "--params-file", str(WIDOWX), *words)
    probe = Probe()
    assert probe.wait_for(lambda: len(find_policies(probe.node)) == 2, TOOL_S)
    status, text = run(probe, "stop_arm")
    assert status == 0, text
    assert sorted(text.splitlines()) == [
        "/left/policy_node: stopped (unconfigured)",
        "/right/policy_node: stopped (unconfigured)",
    ]
    probe.close()


def test_a_stop_goes_by_topic_and_by_service_whoever_listens_to_the_topic(ros: None) -> None:
    """Who listens may be a recorder, where the policy's own topic has another name."""
    probe = Probe()
    heard: list[str] = []

    def halt(_: Any, response: Any) -> Any:
        heard.append("service")
        return response

    topic = "/left/policy_node/emergency_stop"
    probe.node.create_subscription(Empty, topic, lambda _: heard.append("topic"), RELIABLE)
    probe.node.create_service(Trigger, "/left/policy_node/stop", halt)
    client = PolicyClient(probe.node, "/left/policy_node")
    assert probe.wait_for(
        lambda: client._stop.get_subscription_count() > 0 and client._halt.service_is_ready(),
        TOOL_S,
    )
    client.stop()
    assert probe.wait_for(lambda: sorted(heard) == ["service", "topic"], TOOL_S), heard
    probe.close()


def test_stop_arm_stops_a_policy_that_appears_while_it_stops_another(
    probe: Probe,
) -> None:
    """The second is no node before the first has stopped, and not configured yet.

    It takes its time to appear where the machine is slow: the tool is given more than its own.
    """
    assert run(probe, "say", "--arm", CARROT)[0] == 0
    probe.wait_for_motion()
    patient = (
        "import sys; from vla_align_ros.ros.operating import stop_arm as s; "
        "s.SETTLE_S = 5.0; sys.exit(s.main())"
    )
    stop_tool = subprocess.Popen(
        [sys.executable, "-c", patient],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    probe.wait_for_hold("stopped", 20.0)
    late = PolicyNode(cli_args=["--ros-args", "-r", "__ns:=/late"])
    probe.executor.add_node(late)
    try:
        assert probe.wait_for(lambda: stop_tool.poll() is not None, TOOL_S)
        text = stop_tool.communicate()[0]
        assert stop_tool.returncode == 0, text
        assert text.splitlines() == [
            "/policy_node: stopped",
            "/late/policy_node: stopped (unconfigured)",
        ]
    finally:
        probe.executor.remove_node(late)
        late.destroy_node()


@pytest.mark.parametrize("cause", ["key", "hangup"])
def test_stop_arm_waits_for_a_key_or_for_its_terminal_to_go(probe: Probe, cause: str) -> None:
    assert run(probe, "say", "--arm", CARROT)[0] == 0
    with Terminal(probe, "stop_arm", "--on-key") as terminal:
        terminal.expect("any key stops /policy_node")
        probe.wait_for_motion()
        if cause == "key":
            terminal.type(" ")
        else:
            terminal.process.send_signal(signal.SIGHUP)
        probe.wait_for_hold("stopped", 5.0)
        terminal.expect("/policy_node: stopped")


def test_stop_arm_takes_a_closed_input_for_the_end_of_input(probe: Probe) -> None:
    words = ["sh", "-c", f"exec {shlex.join(command('stop_arm', '--on-key'))} <&-"]
    tool = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    assert probe.wait_for(lambda: tool.poll() is not None, TOOL_S)
    text = tool.communicate()[0]
    assert text.splitlines()[-1] == "/policy_node: stopped", text
    assert probe.latest("hold_reason") == "stopped"


@pytest.fixture
def make_deaf_policy(ros: None) -> Iterator[Callable[[], Callable[[], int]]]:
    """Makes a policy that misses the first two stops; the result counts what came, and spins."""
    node = rclpy.create_node("policy_node")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    came: list[Empty] = []

    def make() -> Callable[[], int]:
        status = node.create_publisher(String, "~/status", LATCHED)

        def tell(latched: str | None) -> None:
            status.publish(String(data=json.dumps({"state": "active", "latched_stop": latched})))

        def take(message: Empty) -> None:
            came.append(message)
            tell("by ~/emergency_stop" if len(came) > 2 else None)

        def count() -> int:
            executor.spin_once(timeout_sec=0.02)
            return len(came)

        node.create_subscription(Empty, "~/emergency_stop", take, RELIABLE)
        tell(None)
        return count

    yield make
    executor.shutdown()
    node.destroy_node()


def test_stop_arm_repeats_a_lost_stop_however_long_it_waited_for_its_key(
    make_deaf_policy: Callable[[], Callable[[], int]],
) -> None:
    count, wait_s = make_deaf_policy(), 3.0
    tool = subprocess.Popen(
        command("stop_arm", "--on-key", "--wait", str(wait_s), "--policy", "/policy_node"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    assert tool.stdout is not None and tool.stdin is not None
    while not select.select([tool.stdout], [], [], 0)[0]:
        assert count() == 0 and tool.poll() is None
    end_s = time.monotonic() + wait_s + 0.5  # the policy appeared longer ago than the patience
    while time.monotonic() < end_s:
        assert count() == 0
    tool.stdin.close()
    while tool.poll() is None:
        count()
    with tool.stdout:
        assert tool.returncode == 0, tool.stdout.read()
    assert count() > 2


class FakeClient:
    """A policy as the console sees it; `answer` says whether a request's answer finds its way."""

    def __init__(self) -> None:
        self.policy, self.full_name = "policy_node", "/left/policy_node"
        self.node = SimpleNamespace(create_subscription=lambda *_: None)
        self.status: dict[str, Any] = {"state": "active"}
        self.asked: list[str] = []
        self.answer = True
        self.there = True

    def answers(self) -> bool:
        return self.there

    def hears_stop(self) -> bool:
        return True

    def describe(self) -> str:
        return "policy_node: active"

    def stop(self) -> None:
        self.asked.append("stop")

    def arm(self, armed: bool) -> Future:
        return self._take("arm" if armed else "disarm")

    def reset(self) -> Future:
        return self._take("reset")

    def take_over(self, taken: bool) -> None:
        self.asked.append("take" if taken else "give")

    def say(self, words: str) -> None:
        self.asked.append(words or "withdraw")

    def _take(self, what: str) -> Future:
        self.asked.append(what)
        future = Future()
        if self.answer:
            future.set_result(SimpleNamespace(message=f"{what}ed"))
        return future


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    for name, seconds in (("ANSWER_S", 0.1), ("PATIENCE_S", 0.5), ("REFRESH_S", 0.02)):
        monkeypatch.setattr(console_module, name, seconds)
    return FakeClient()


def wait_until(happened: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20.0
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("later", "ends_with"),
    [
        ("/disarm", ["disarm"]),
        ("/stop", ["stop", "disarm"]),
        ("/takeover", ["take", "disarm"]),
        ("/withdraw", ["withdraw", "disarm"]),
        ("/reset", ["reset"]),
    ],
)
def test_the_console_arms_no_more_once_the_operator_decided_something_else(
    client: FakeClient, later: str, ends_with: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "PATIENCE_S", 20.0)  # must not end before the next line
    told: list[str] = []
    console = Console(client, told.append)  # type: ignore[arg-type]
    client.answer = False
    console.take("/arm")
    wait_until(lambda: client.asked.count("arm") >= 2)
    client.answer = True
    console.take(later)
    wait_until(lambda: "/arm was not answered; it is asked no more" in told)
    time.sleep(0.3)  # three times as long as a request waits for its answer
    at = len(client.asked) - len(ends_with)
    assert client.asked[at:] == ends_with and set(client.asked[:at]) == {"arm"}


def test_the_console_asks_to_arm_only_what_is_loaded(client: FakeClient) -> None:
    told: list[str] = []
    console = Console(client, told.append)  # type: ignore[arg-type]
    client.status = {"state": "unconfigured"}
    console.take("/arm")
    assert told == ["policy_node is unconfigured: nothing can be armed; configure it first"]
    client.status = {}
    console.take("/arm")
    time.sleep(0.1)
    assert not client.asked, "nothing is known of it yet"
    client.status = {"state": "inactive"}
    wait_until(lambda: "armed" in told)
    assert client.asked == ["arm"]


def test_the_console_takes_back_an_arming_that_nobody_answers(client: FakeClient) -> None:
    told: list[str] = []
    console = Console(client, told.append)  # type: ignore[arg-type]
    client.answer = False
    console.take("/arm")
    wait_until(lambda: bool(told))
    assert "/arm may still take effect, so /disarm was sent" in told[0]
    assert client.asked[-1] == "disarm" and client.asked.count("disarm") == 1
    client.there = False
    client.asked.clear()
    console.take("/arm")
    wait_until(lambda: len(told) == 2)
    assert told[1] == "policy_node does not answer" and not client.asked


def test_say_takes_back_an_arming_that_nobody_answers(client: FakeClient) -> None:
    client.node.get_topic_names_and_types = client.node.get_service_names_and_types = list
    client.answer = False

    def ask(call: Callable[[], Future], ready: object, timeout_s: float) -> None:
        call()

    with pytest.raises(OperatorError, match="cannot be armed"):
        say_module._arm(client, SimpleNamespace(ask=ask), 1.0)  # type: ignore[arg-type]
    assert client.asked == ["arm", "disarm"]


def test_the_console_sends_what_was_typed_in_its_order(client: FakeClient) -> None:
    console = Console(client, lambda _: None)  # type: ignore[arg-type]
    for line in ("/reset", "/arm", "/disarm", "/reset", "/arm"):
        console.take(line)
    assert client.asked == ["reset", "arm", "disarm", "reset", "arm"]


def test_the_console_shows_the_figures_of_its_own_policy_alone(client: FakeClient) -> None:
    console = Console(client, lambda _: None)  # type: ignore[arg-type]
    for side, age_ms in (("left", "11"), ("right", "900")):
        figures = [SimpleNamespace(key="image_age_ms", value=age_ms)]
        status = SimpleNamespace(name=f"{side}/policy_node: policy", values=figures)
        console._on_diagnostics(SimpleNamespace(status=[status]))  # type: ignore[arg-type]
    assert console.figures == {"image_age_ms": "11"}


def test_the_console_arms_says_and_stops_on_a_key(probe: Probe, tmp_path: Path) -> None:
    with Terminal(probe, "console", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.expect("an instruction; an empty line")
        terminal.type("/arm\r")
        terminal.expect("\x1b[?7harmed")
        terminal.type(f"{CARROT}\r")
        probe.wait_for_motion()
        terminal.expect("MOVING")
        terminal.type("half a sentence\x1b")
        probe.wait_for_hold("stopped", 5.0)
        terminal.expect("stop sent")
        terminal.type("\x15/reset\r")  # Ctrl-U clears the line
        probe.wait_for_hold("disarmed", 5.0)
        terminal.type("/nonsense\r")
        terminal.expect("no such command")
        terminal.type("\x1b[A\x1b[A\x1b[A\r")  # an arrow is no Escape; three lines up
        probe.spin(1.0)
        assert probe.latest("hold_reason") == "disarmed"
        terminal.type("\x15/quit\r")
        terminal.expect("left; the policy goes on")
    assert CARROT in (tmp_path / "vla_align_ros" / "console_history").read_text()


def test_the_console_does_without_a_history_where_none_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").touch()  # a file where a folder should be
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    history = console_module._open_history()
    history.append_string("put it there")
    assert history.get_strings() == ["put it there"]
    assert "lines are not kept" in capsys.readouterr().out


@pytest.mark.parametrize("told", ["", "[]", "1", '{"battery": 0.5}', '{"state": 3}'])
def test_a_status_that_is_no_policys_is_not_taken(ros: None, told: str) -> None:
    node = rclpy.create_node("operator")
    client = PolicyClient(node)
    client._on_status(String(data='{"state": "active", "moving": true}'))
    client._on_status(String(data=told))
    assert client.status["state"] == "active" and client.status["moving"]
    assert client.status["instruction"] is None
    assert client.describe() == "policy_node: moving, None"
    node.destroy_node()


@pytest.mark.parametrize(
    ("reason", "look"), [("stale_image", "vla-align doctor"), ("stale_state", "~/ee_pose")]
)
def test_a_hold_for_want_of_an_input_says_where_to_look(ros: None, reason: str, look: str) -> None:
    node = rclpy.create_node("operator")
    client = PolicyClient(node)
    client.status = {**UNTOLD, "state": "active", "hold_reason": reason}
    node.destroy_node()
    assert look in client.describe()


@pytest.mark.parametrize("name", ["left-arm/policy_node", "two words", "left//policy_node"])
def test_a_name_that_no_policy_can_have_is_told(ros: None, name: str) -> None:
    node = rclpy.create_node("operator")
    with pytest.raises(OperatorError, match=name):
        PolicyClient(node, name)
    node.destroy_node()


def test_the_end_of_a_search_for_policies_leaves_a_slow_graph_its_time(ros: None) -> None:
    node = rclpy.create_node("stopper")
    policies = Policies(node, ())
    policies.clients["/left/policy_node"] = PolicyClient(node, "/left/policy_node")
    policies._appeared_s = time.monotonic() - 1.5
    assert not policies.complete(), "another arm's may be seen as late as that"
    policies._appeared_s -= 1.0
    assert policies.complete()
    node.destroy_node()


def test_the_console_says_when_nobody_hears_its_stop(ros: None) -> None:
    node = rclpy.create_node("console")
    told: list[str] = []
    Console(PolicyClient(node), told.append).stop()
    node.destroy_node()
    assert len(told) == 1 and "use the hardware's stop" in told[0]


def test_the_console_asks_for_a_terminal(probe: Probe) -> None:
    status, text = run(probe, "console")
    assert status == 1 and "needs a terminal" in text


def test_words_to_a_policy_that_listens_elsewhere_say_where_to_send_them(
    probe: Probe, start_node: Start, tiny_bundle: Path
) -> None:
    start_node(
        *("policy_node", "--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
        *("-p", "autostart:=true", "-r", "__ns:=/left", "-r", "~/instruction:=/words"),
    )
    name, told = "left/policy_node", "nobody listens to /left/policy_node/instruction"
    client = PolicyClient(probe.node, name)
    assert probe.wait_for(lambda: client.status.get("state") == "active", TOOL_S)
    status, text = run(probe, "say", "--policy", name, "--wait", "3", CARROT)
    assert status == 1 and told in text and f"-r {name}/instruction:=" in text, text
    lines: list[str] = []
    Console(client, lines.append).take(CARROT)
    assert told in lines[-1]
    there = ("--ros-args", "-r", f"{name}/instruction:=/words")
    assert run(probe, "say", "--policy", name, CARROT, *there)[0] == 0


def test_another_robots_stop_and_status_make_no_policy(ros: None) -> None:
    """Its status is of another type, so that nobody would ever hear that it stopped."""
    node = rclpy.create_node("base")
    node.create_subscription(Empty, "/base/emergency_stop", lambda _: None, RELIABLE)
    kept = node.create_publisher(Bool, "/base/status", RELIABLE)
    assert find_policies(node) == []
    node.destroy_publisher(kept)
    node.create_publisher(String, "/base/status", RELIABLE)
    end_s = time.monotonic() + 10.0
    while find_policies(node) != ["/base"] and time.monotonic() < end_s:
        time.sleep(0.05)
    assert find_policies(node) == ["/base"]
    node.destroy_node()


def test_a_policy_in_a_namespace_is_named_to_who_asks_for_it_outside(ros: None) -> None:
    node = rclpy.create_node("say")
    node.create_subscription(Empty, "/left/policy_node/emergency_stop", lambda _: None, RELIABLE)
    node.create_publisher(String, "/left/policy_node/status", LATCHED)
    error = refuse(PolicyClient(node), "the policy does not listen", "an active policy node")
    node.destroy_node()
    assert "on the graph: /left/policy_node" in str(error)


def test_a_joystick_stops_by_its_button_and_by_falling_silent(
    probe: Probe, start_node: Start
) -> None:
    joy = probe.node.create_publisher(Joy, "/joy", RELIABLE)
    start_node("operating.joystick_stop", "-p", "loss_s:=0.5")

    def press(*buttons: int) -> None:
        joy.publish(Joy(buttons=list(buttons)))

    def press_for(seconds: float, *buttons: int) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            press(*buttons)
            probe.spin(0.05)

    assert run(probe, "say", "--arm", CARROT)[0] == 0
    assert probe.wait_for(lambda: joy.get_subscription_count() > 0)
    press_for(1.0, 0, 0)
    probe.wait_for_motion()
    press(0, 1)
    probe.wait_for_hold("stopped", 5.0)
    client = PolicyClient(probe.node)

    def ask(call: Callable[[], Any], button: int = 0) -> None:
        """Ask until an answer comes, while the joystick goes on."""
        for _ in range(20):
            future = call()
            press_for(1.0, 0, button)
            if future.done():
                return
        raise AssertionError("no answer")

    ask(client.reset, button=1)
    ask(lambda: client.arm(True), button=1)
    assert probe.latest("latched_stop") is not None, "the button is pressed all the time"
    ask(client.reset)
    ask(lambda: client.arm(True))
    probe.wait_for_motion()
    silent_s = time.monotonic()
    probe.wait_for_hold("stopped", 5.0)
    assert time.monotonic() - silent_s < 2.0


@pytest.mark.parametrize("qos", [RELIABLE, BEST_EFFORT], ids=["reliable", "best_effort"])
def test_a_joystick_stops_however_its_driver_publishes(
    ros: None, start_node: Start, qos: QoSProfile
) -> None:
    probe = Probe()
    stops: list[Empty] = []
    topic = "/policy_node/emergency_stop"
    probe.node.create_subscription(Empty, topic, stops.append, RELIABLE)
    joy = probe.node.create_publisher(Joy, "/joy", qos)
    start_node("operating.joystick_stop")
    assert probe.wait_for(lambda: probe.node.count_publishers(topic) > 0, TOOL_S)

    def press() -> bool:
        joy.publish(Joy(buttons=[0, 1]))
        return bool(stops)

    assert probe.wait_for(press), "a stop that nobody hears is none"
    probe.close()


def test_a_joystick_says_that_nothing_is_heard_and_that_nobody_hears_it(
    ros: None, start_node: Start
) -> None:
    node = rclpy.create_node("joy_node")
    process = start_node("operating.joystick_stop", "-r", "__ns:=/left")
    assert process.stdout is not None
    told, stream = "", process.stdout.fileno()

    def expect(text: str, act: Callable[[], None] = lambda: None) -> None:
        nonlocal told
        end_s = time.monotonic() + TOOL_S
        while text not in told:
            assert time.monotonic() < end_s, told
            act()
            if select.select([stream], [], [], 0.05)[0]:
                told += os.read(stream, 65536).decode()

    expect("nothing publishes /left/joy")
    expect("nobody hears /left/policy_node/emergency_stop")
    joy = node.create_publisher(Joy, "/left/joy", RELIABLE)
    expect("use the hardware's stop", lambda: joy.publish(Joy(buttons=[0, 1])))
    assert told.count("stop: button 1") == 1
    node.destroy_node()


class Terminal:
    """A tool on a pseudo-terminal; what it writes is read while the camera goes on."""

    def __init__(self, probe: Probe, tool: str, *words: str, **environment: str) -> None:
        self._probe = probe
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
        self.process = subprocess.Popen(
            command(tool, *words),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            assert self._probe.wait_for(lambda: self._read() or self.process.poll() is not None)
            assert self.process.returncode == 0, self.text
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Wait for a text behind what was expected before."""

        def seen() -> bool:
            self._read()
            return text in self.text

        assert self._probe.wait_for(seen, 20.0), self.text[-2000:]
        self.text = self.text.partition(text)[2]

    def _read(self) -> bool:
        """Read what there is; never says that anything happened."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                found = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return False
            self.text += found.decode(errors="replace")
            if b"\x1b[6n" in found:  # where is the cursor?
                self.type("\x1b[1;1R")
        return False
