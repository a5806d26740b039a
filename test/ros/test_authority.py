"""A person's hand on a running policy_node: arming, stopping, taking over, the dead-man switch."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ros_graph import (
    ACTIVATE,
    BEST_EFFORT,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    RELIABLE,
    WIDOWX,
    Probe,
    values_of,
)
from std_msgs.msg import Bool, Empty
from std_srvs.srv import SetBool, Trigger
from tiny_policy import CARROT

TICK_S = 0.05
SLOW_TICK_S = 0.2  # of command_rate_hz 5.0: what does not wait for a tick is quicker
DEAD_MAN_S = 0.3
DELIVERY_S = 0.12  # two topics between two busy processes


class Operator:
    """A probe that can also decide: services and topics of `Authority`."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        make = probe.node.create_publisher
        self._emergency_stop = make(Empty, "/policy_node/emergency_stop", RELIABLE)
        self.takeover = make(Bool, "/policy_node/takeover", RELIABLE)
        self.dead_man = make(Bool, "/policy_node/dead_man", RELIABLE)
        self._clients: dict[str, Any] = {}

    def call(self, name: str, *data: bool) -> Any:
        """Call ~/arm (with its flag), ~/stop or ~/reset_stop and return the answer."""
        kind = SetBool if data else Trigger
        if name not in self._clients:
            self._clients[name] = self.probe.node.create_client(kind, f"/policy_node/{name}")
        client = self._clients[name]
        assert client.wait_for_service(30.0)
        for _ in range(5):  # a server is seen before its answers find the way
            request = SetBool.Request(data=data[0]) if data else Trigger.Request()
            future = client.call_async(request)
            if self.probe.wait_for(future.done, 3.0):
                return future.result()
        raise AssertionError(f"no answer of {name}")

    def press_emergency_stop(self) -> None:
        assert self.probe.wait_for(lambda: self._emergency_stop.get_subscription_count() > 0)
        self._emergency_stop.publish(Empty())

    def tell(self, publisher: Any, value: bool) -> None:
        assert self.probe.wait_for(lambda: publisher.get_subscription_count() > 0)
        publisher.publish(Bool(data=value))

    def seconds_to_zero(self, act: Callable[[], None]) -> float:
        """From an act to the zero that it causes; no motion may follow."""
        self.probe.twists.clear()
        start_s = time.monotonic()
        act()
        assert self.probe.wait_for(lambda: _ended(self.probe), 5.0), "no zero came"
        seconds = time.monotonic() - start_s
        self.probe.twists.clear()
        self.probe.spin(0.3)
        assert not self.probe.twists, "a holding arm must be left in silence"
        return seconds


def _ended(probe: Probe) -> bool:
    return bool(probe.twists) and not any(values_of(probe.twists[-1][1]))


@pytest.fixture
def operator(ros: None) -> Iterator[Operator]:
    probe = Probe()
    yield Operator(probe)
    probe.close()


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_policy(start_node: Start, tiny_bundle: Path) -> Start:
    def start(*extra: str, autostart: bool = True) -> subprocess.Popen[str]:
        words = ["--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"]
        words += ["-p", f"autostart:={'true' if autostart else 'false'}"]
        return start_node("policy_node", *words, *extra)

    return start


def drive(operator: Operator) -> None:
    """Picture and words, so that only a person stands against motion."""
    operator.probe.wait_for_state("active")
    operator.probe.grey = 128
    operator.probe.say(CARROT)


def test_starts_disarmed_and_moves_only_while_it_is_armed(
    operator: Operator, start_policy: Start
) -> None:
    start_policy()
    drive(operator)
    operator.probe.wait_for_hold("disarmed")
    operator.probe.spin(0.5)
    assert not operator.probe.twists

    assert operator.call("arm", True).success
    operator.probe.wait_for_motion()
    operator.seconds_to_zero(lambda: operator.call("arm", False))
    assert operator.probe.latest("hold_reason") == "disarmed"
    assert operator.call("arm", True).success
    operator.probe.wait_for_motion()


def test_a_stop_is_latched_until_reset_and_then_disarmed(
    operator: Operator, start_policy: Start
) -> None:
    start_policy()
    drive(operator)
    operator.call("arm", True)
    operator.probe.wait_for_motion()
    answers: list[Any] = []
    operator.seconds_to_zero(lambda: answers.append(operator.call("stop")))
    assert answers[0].success and "~/stop" in answers[0].message
    operator.probe.wait_for_hold("stopped")
    assert operator.probe.latest("last_stop")["reason"] == "stopped"

    operator.press_emergency_stop()
    refused = operator.call("arm", True)
    assert not refused.success
    assert "a latched stop" in refused.message and "~/stop" in refused.message, "first cause kept"
    operator.probe.spin(0.3)
    assert not operator.probe.moving()

    assert operator.call("reset_stop").success
    assert not operator.call("reset_stop").success, "nothing is latched any more"
    operator.probe.wait_for_hold("disarmed")
    operator.probe.twists.clear()
    operator.probe.spin(0.3)
    assert not operator.probe.twists, "a reset alone must not move the arm"
    assert operator.call("arm", True).success
    operator.probe.wait_for_motion()


def test_an_emergency_stop_of_a_best_effort_publisher_is_heard_and_not_called_unheard(
    operator: Operator, start_policy: Start
) -> None:
    process = start_policy(autostart=False)
    operator.probe.wait_for_state("unconfigured")
    button = operator.probe.node.create_publisher(Empty, "/policy_node/emergency_stop", BEST_EFFORT)
    for _ in range(50):
        button.publish(Empty())
        if operator.probe.wait_for(lambda: operator.probe.latest("latched_stop") is not None, 0.1):
            break
    assert operator.probe.latest("latched_stop") == "by ~/emergency_stop"
    process.send_signal(signal.SIGINT)
    assert "incompatible QoS" not in process.communicate(timeout=20)[0]


def test_an_emergency_stop_does_not_wait_for_the_command_timer(
    operator: Operator, start_policy: Start
) -> None:
    start_policy("-p", f"command_rate_hz:={1 / SLOW_TICK_S}", "-p", "start_armed:=true")
    drive(operator)
    taken_s = []
    for _ in range(6):
        operator.probe.wait_for_motion()
        taken_s.append(operator.seconds_to_zero(operator.press_emergency_stop))
        operator.probe.wait_for_hold("stopped")
        assert operator.call("reset_stop").success
        assert operator.call("arm", True).success
    assert sorted(taken_s)[-2] < 0.4 * SLOW_TICK_S, taken_s


def test_a_takeover_suspends_the_policy_and_gives_it_back(
    operator: Operator, start_policy: Start
) -> None:
    start_policy("-p", "start_armed:=true")
    drive(operator)
    operator.probe.wait_for_motion()
    operator.seconds_to_zero(lambda: operator.tell(operator.takeover, True))
    operator.probe.wait_for_hold("takeover")
    assert operator.probe.latest("instruction") == CARROT

    # A joystick repeats itself: that nobody takes over must not keep the policy from planning.
    repeat = operator.probe.node.create_timer(
        0.01, lambda: operator.takeover.publish(Bool(data=False))
    )
    operator.probe.wait_for_motion()
    operator.probe.twists.clear()
    operator.probe.spin(1.0)
    operator.probe.node.destroy_timer(repeat)
    assert len(operator.probe.moving()) >= 0.5 / TICK_S


def test_the_dead_man_switch_must_be_held_and_held_again(
    operator: Operator, start_policy: Start
) -> None:
    start_policy("-p", "start_armed:=true", "-p", f"dead_man_s:={DEAD_MAN_S}")
    drive(operator)
    operator.probe.wait_for_hold("dead_man")
    assert not operator.probe.moving()

    hold = operator.probe.node.create_timer(
        0.05, lambda: operator.dead_man.publish(Bool(data=True))
    )
    operator.probe.wait_for_motion()
    operator.probe.wait_for_hold(None)
    released_s = operator.seconds_to_zero(hold.cancel)
    assert DEAD_MAN_S - 0.05 - TICK_S < released_s < DEAD_MAN_S + 2 * TICK_S + DELIVERY_S
    operator.probe.wait_for_hold("dead_man")

    hold.reset()
    operator.probe.wait_for_motion()
    hold.cancel()
    let_go_s = operator.seconds_to_zero(lambda: operator.tell(operator.dead_man, False))
    assert let_go_s < DEAD_MAN_S, "letting go must not wait for the timeout"


def test_a_switch_that_is_let_go_stops_an_arm_that_asks_for_none(
    operator: Operator, start_policy: Start
) -> None:
    process = start_policy("-p", "start_armed:=true")
    drive(operator)
    operator.probe.wait_for_motion()
    operator.seconds_to_zero(lambda: operator.tell(operator.dead_man, False))
    operator.probe.wait_for_hold("dead_man")
    operator.tell(operator.dead_man, True)
    operator.probe.wait_for_motion()
    process.send_signal(signal.SIGINT)
    assert operator.probe.wait_for(lambda: process.poll() is not None, 30.0)
    assert "there is a dead-man switch, and dead_man_s is 0" in process.communicate()[0]


@pytest.mark.parametrize("steps", [(), (CONFIGURE,), (CONFIGURE, ACTIVATE)])
def test_a_stop_and_a_takeover_hold_from_whichever_state_they_come(
    operator: Operator, start_policy: Start, steps: tuple[int, ...]
) -> None:
    """And through all that a lifecycle manager does next, although the policy starts armed."""
    start_policy("-p", "start_armed:=true", autostart=False)
    operator.probe.wait_for_services()
    for step in steps:
        assert operator.probe.request(step)
    operator.tell(operator.takeover, True)
    answer = operator.call("stop")
    assert answer.success and "~/stop" in answer.message
    assert operator.probe.wait_for(lambda: operator.probe.latest("latched_stop") == "by ~/stop")
    back = {ACTIVATE: (DEACTIVATE, CLEANUP), CONFIGURE: (CLEANUP,)}
    for step in (*(back[steps[-1]] if steps else ()), CONFIGURE, ACTIVATE):
        assert operator.probe.request(step)
    drive(operator)
    operator.probe.wait_for_hold("stopped")
    refused = operator.call("arm", True)
    assert not refused.success and "a latched stop" in refused.message

    assert operator.call("reset_stop").success
    assert operator.probe.wait_for(lambda: operator.probe.latest("latched_stop") is None)
    operator.probe.wait_for_hold("disarmed")
    assert operator.call("arm", True).success
    operator.probe.wait_for_hold("takeover")
    operator.probe.spin(0.3)
    assert not operator.probe.moving()
    operator.tell(operator.takeover, False)
    operator.probe.wait_for_motion()


def test_what_was_armed_is_armed_again_only_where_it_starts_armed(
    operator: Operator, start_policy: Start
) -> None:
    start_policy(autostart=False)
    operator.probe.wait_for_services()
    refused = operator.call("arm", True)
    assert not refused.success and "not configured" in refused.message
    assert not operator.call("reset_stop").success, "no stop is latched"
    assert operator.probe.request(CONFIGURE)
    assert operator.call("arm", True).success
    for step in (CLEANUP, CONFIGURE, ACTIVATE):
        assert operator.probe.request(step)
    drive(operator)
    operator.probe.wait_for_hold("disarmed")


def test_letting_go_of_the_switch_does_not_wait_for_the_command_timer(
    operator: Operator, start_policy: Start
) -> None:
    start_policy(
        *("-p", f"command_rate_hz:={1 / SLOW_TICK_S}", "-p", "start_armed:=true"),
        *("-p", "dead_man_s:=5.0"),
    )
    drive(operator)
    taken_s = []
    for _ in range(6):
        operator.tell(operator.dead_man, True)
        operator.probe.wait_for_motion()
        taken_s.append(operator.seconds_to_zero(lambda: operator.tell(operator.dead_man, False)))
    assert sorted(taken_s)[-2] < 0.4 * SLOW_TICK_S, taken_s
