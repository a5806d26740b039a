"""The operator's tools as processes beside a running policy_node: say, stop_arm, the console."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from ros_graph import RELIABLE, ROOT, WIDOWX, Probe
from sensor_msgs.msg import Joy
from tiny_policy import CARROT, PLATE

from vla_align_ros.ros.operating.client import PolicyClient
from vla_align_ros.ros.operating.console import Console
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


def test_stop_arm_stops_a_policy_that_appears_while_it_stops_another(
    probe: Probe,
) -> None:
    """The second is no node before the first has stopped, and not configured yet.

    It takes its time to appear where the machine is slow: the tool is given more than its second.
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


def test_the_console_says_when_nobody_hears_its_stop(ros: None) -> None:
    node = rclpy.create_node("console")
    told: list[str] = []
    Console(PolicyClient(node), told.append).stop()
    node.destroy_node()
    assert len(told) == 1 and "use the hardware's stop" in told[0]


def test_the_console_asks_for_a_terminal(probe: Probe) -> None:
    status, text = run(probe, "console")
    assert status == 1 and "needs a terminal" in text


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

    def ask(call: Callable[[], Any]) -> None:
        """Ask until an answer comes, while the joystick goes on with the button up."""
        for _ in range(20):
            future = call()
            press_for(1.0, 0, 0)
            if future.done():
                return
        raise AssertionError("no answer")

    ask(client.reset)
    ask(lambda: client.arm(True))
    probe.wait_for_motion()
    silent_s = time.monotonic()
    probe.wait_for_hold("stopped", 5.0)
    assert time.monotonic() - silent_s < 2.0


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
