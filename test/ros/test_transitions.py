"""A transition that fails is answered, told and logged; one that is not allowed kills nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.transitions import Result, answer_illegal_requests, transition


class Node:
    """What transitions know of a node; this one raises in them what a test says."""

    def __init__(self, raises: BaseException | None = None) -> None:
        self.raises = raises
        self.logged: list[str] = []
        self.told: list[tuple[str, str | None]] = []
        self.reporter = SimpleNamespace(state="before", error="of before", report=self._report)

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(error=self.logged.append)

    def _report(self) -> None:
        self.told.append((self.reporter.state, self.reporter.error))

    def _act(self) -> None:
        assert self.reporter.state == "before", "not there yet"
        if self.raises is not None:
            raise self.raises

    @transition("inactive")
    def on_configure(self, state: object) -> None:
        self._act()

    @transition("finalized", refusal=Result.ERROR)
    def on_shutdown(self, state: object) -> None:
        self._act()


def test_a_success_leads_to_its_state_and_ends_the_error_before() -> None:
    node = Node()
    assert node.on_configure(None) == Result.SUCCESS
    assert node.told == [("inactive", None)] and node.logged == []


@pytest.mark.parametrize(
    ("step", "answer"), [("on_configure", Result.FAILURE), ("on_shutdown", Result.ERROR)]
)
def test_a_refusal_is_answered_as_the_transition_wants_it_and_told_in_one_line(
    step: str, answer: Result
) -> None:
    node = Node(ConfigurationError("no such arm", got="an octopus"))
    assert getattr(node, step)(None) == answer
    text = f"{step[3:]} failed: no such arm: got an octopus"
    assert node.told == [("before", text)] and node.logged == [text]


class Panic(BaseException):
    """As libraries written in Rust raise it: no Exception."""


@pytest.mark.parametrize("kind", [KeyError, Panic])
@pytest.mark.parametrize("step", ["on_configure", "on_shutdown"])
def test_anything_else_is_an_error_that_is_told_and_logged_with_its_trace(
    step: str, kind: type[BaseException]
) -> None:
    node = Node(kind(1))
    assert getattr(node, step)(None) == Result.ERROR
    text = f"{step[3:]} failed: {kind.__name__}: 1"
    assert node.told == [("before", text)]
    assert len(node.logged) == 1 and node.logged[0].startswith(f"{text}\nTraceback")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_is_no_error_of_a_transition(end: type[BaseException]) -> None:
    node = Node(end())
    with pytest.raises(end):
        node.on_configure(None)
    assert node.told == []


def test_a_transition_that_is_not_allowed_is_refused_and_the_next_is_taken(
    ros: None, capfd: pytest.CaptureFixture[str]
) -> None:
    node = LifecycleNode("any")
    answer_illegal_requests(node)
    try:

        def ask(transition: int) -> bool:
            request = ChangeState.Request(transition=Transition(id=transition))
            response = ChangeState.Response(success=True)
            return bool(node._service_change_state.callback(request, response).success)

        assert not ask(Transition.TRANSITION_ACTIVATE)
        assert ask(Transition.TRANSITION_CONFIGURE)
        assert ask(Transition.TRANSITION_ACTIVATE)
    finally:
        node.destroy_node()
    assert f"transition {Transition.TRANSITION_ACTIVATE} refused" in capfd.readouterr().err
