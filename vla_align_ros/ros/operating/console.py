"""`ros2 run vla_align_ros operator_console`: words with history, live status, a key that stops."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from vla_align_ros.contract.files import xdg_home
from vla_align_ros.contract.prompt import clean_instruction
from vla_align_ros.errors import ConfigurationError, ContractError, OperatorError
from vla_align_ros.extras import install_hint
from vla_align_ros.ros.operating.client import ANSWER_S, JOINED, PolicyClient
from vla_align_ros.ros.operating.command_line import add_policy, run_command

REFRESH_S = 0.2
ESCAPE_S = 0.05  # how long a lone Escape waits to be told from an arrow key
PATIENCE_S = 6.0
SHOWN = ("camera_rate_hz", "image_age_ms", "latency_total_p99_ms")
MENDS = {"disarmed": "/arm", "stopped": "/reset, then /arm", "takeover": "/give"}
HELP = """words            an instruction; an empty line changes nothing
/arm /disarm     let the policy move, or not
/stop /reset     latch a stop (also Escape and Ctrl-X, at any time), and release it
/takeover /give  a person drives by other means; give the arm back
/withdraw        no instruction any more: the arm holds
/help /quit      this; leave (Ctrl-D): the policy goes on with its last instruction"""


@dataclass(eq=False, slots=True)
class _Request:
    """A call of a service; `ready` says whether it may be sent now, `sent` whether it ever was."""

    name: str
    call: Callable[[], Any]
    ready: Callable[[], bool]
    sent: bool = False


class Console:
    """Turns lines into requests, and keeps what the policy answers; knows nothing of a terminal.

    `tell` prints a line for the person. A request is sent again until it is answered, unless the
    person decided something else meanwhile: the newest decision counts.
    """

    def __init__(self, client: PolicyClient, tell: Callable[[str], None]) -> None:
        self.client = client
        self.figures: dict[str, str] = {}
        self._tell = tell
        self._lock = threading.Lock()
        self._open: _Request | None = None  # what is not answered yet, and still wanted
        self._commands: dict[str, Callable[[], Any]] = {
            "/arm": self._arm,
            "/disarm": lambda: self._ask("/disarm", lambda: client.arm(False)),
            "/stop": self.stop,
            "/reset": lambda: self._ask("/reset", client.reset),
            "/takeover": lambda: self._decide(lambda: client.take_over(True)),
            "/give": lambda: self._decide(lambda: client.take_over(False)),
            "/withdraw": lambda: self._decide(lambda: client.say("")),
            "/help": lambda: tell(HELP),
        }
        client.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    @property
    def words(self) -> list[str]:
        """The commands, for completion."""
        return [*self._commands, "/quit"]

    def take(self, line: str) -> bool:
        """Do what a line asks; False to leave."""
        text = line.strip()
        if text == "/quit":
            return False
        if text in self._commands:
            self._commands[text]()
        elif text.startswith("/"):
            self._tell(f"no such command: {text}; /help lists them")
        elif text:
            self._say(text)
        return True

    def stop(self) -> None:
        """Latch a stop at once; an arming that is not answered yet is taken back."""
        heard = self.client.hears_stop()
        self.client.stop()
        self._take_back(self._replace(None))
        if heard:
            self._tell("stop sent; /reset and /arm let it move again")
        else:
            self._tell(f"{self.client.policy}: nobody listens to the stop: use the hardware's stop")

    def line(self) -> str:
        """The live status, one line."""
        status = self.client.status
        if not status:
            return f"{self.client.policy}: nothing heard"
        state = "MOVING" if status["moving"] else f"holds: {status['hold_reason']}"
        parts = [str(status["state"]), state, f"“{status['instruction'] or '-'}”"]
        parts += [f"{key} {self.figures[key]}" for key in SHOWN if key in self.figures]
        mend = MENDS.get(str(status["hold_reason"]), "") if not status["moving"] else ""
        return " | ".join([*parts, *([mend] if mend else [])])

    def _say(self, text: str) -> None:
        try:
            clean_instruction(text)
        except ContractError as error:
            self._tell(str(error))
            return
        if self.client.hears_words():
            self.client.say(text)
        else:
            self._tell(f"{self.client.policy} does not listen: {self.client.explain_deaf()}")

    def _arm(self) -> None:
        """Ask to arm, unless nothing is loaded: a request that waits would arm what comes later."""
        state = self.client.status.get("state")
        if state is not None and state not in JOINED:
            self._replace(None)
            self._tell(f"{self.client.policy} is {state}: nothing can be armed; configure it first")
            return
        self._ask(
            "/arm",
            lambda: self.client.arm(True),
            lambda: self.client.status.get("state") in JOINED,
        )

    def _decide(self, call: Callable[[], Any]) -> None:
        """Publish a decision; what was asked before is asked no more, an arming taken back."""
        call()
        self._take_back(self._replace(None))

    def _ask(
        self, name: str, call: Callable[[], Any], ready: Callable[[], bool] = lambda: True
    ) -> None:
        """Call a service, and wait for it beside the prompt: the stop need not wait for an answer.

        The first call leaves here, so that requests arrive in the order in which they were typed.
        """
        request = _Request(name, call, ready)
        self._replace(request)
        arguments = (request, self._send(request))
        threading.Thread(target=self._wait_for_answer, args=arguments, daemon=True).start()

    def _wait_for_answer(self, request: _Request, future: Any) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            if future is None:
                time.sleep(REFRESH_S)
            elif self._is_answered(future):
                self._close(request)
                self._tell(future.result().message)
                return
            # a server is seen before its answers find the way: ask again
            future = self._send(request)
            if self._open is not request:
                self._tell(f"{request.name} was not answered; it is asked no more")
                return
        if not self._close(request):
            return
        text = f"{self.client.policy} does not answer"
        if request.sent:
            text += f"; {request.name} may still take effect"
            text += ", so /disarm was sent behind it" if self._take_back(request) else ""
        self._tell(text)

    def _is_answered(self, future: Any) -> bool:
        answered = threading.Event()
        future.add_done_callback(lambda _: answered.set())
        return answered.wait(ANSWER_S)

    def _send(self, request: _Request) -> Any:
        """Send a request that is still wanted; None where it cannot be sent now."""
        with self._lock:
            if self._open is not request or not (self.client.answers() and request.ready()):
                return None
            request.sent = True
            return request.call()

    def _replace(self, request: _Request | None) -> _Request | None:
        """Let `request` be what is wanted; returns what was."""
        with self._lock:
            before, self._open = self._open, request
        return before

    def _close(self, request: _Request) -> bool:
        """A request is done with; False if it was not wanted any more."""
        with self._lock:
            wanted = self._open is request
            if wanted:
                self._open = None
        return wanted

    def _take_back(self, request: _Request | None) -> bool:
        """Disarm behind an arming that may still take effect; True if that was sent."""
        if request is None or request.name != "/arm" or not request.sent:
            return False
        self.client.arm(False)
        return True

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        name = f"{self.client.full_name.lstrip('/')}: policy"
        for status in message.status:
            if status.name == name:
                self.figures = {item.key: item.value for item in status.values}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="operator_console",
        description="Drive a policy node from a terminal.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_policy(parser)
    return parser


def find_history() -> Path:
    """The file of earlier lines, by the XDG rules; its folder is made."""
    folder = xdg_home("XDG_STATE_HOME", "~/.local/state") / "vla_align_ros"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "console_history"


def open_console(node: Node, args: argparse.Namespace) -> int:
    """Run the console until it is left."""
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        raise OperatorError(
            "the console needs a terminal",
            got="input or output that is none",
            expected="an interactive terminal",
            fix="use say, stop_arm, or ros2 run with a terminal (docker run -it)",
        )
    try:
        from prompt_toolkit.patch_stdout import patch_stdout
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the console needs a library",
            got=f"no {error.name}",
            expected="prompt_toolkit",
            fix=install_hint("prompt_toolkit"),
        ) from error

    console = Console(PolicyClient(node, args.policy), lambda text: print(text, flush=True))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor,), name="ros", daemon=True)
    spinner.start()
    try:
        session = _make_session(console)
        with patch_stdout():
            print(HELP)
            while console.take(session.prompt("> ")):
                pass
    except EOFError:
        pass
    finally:
        executor.shutdown()
        spinner.join(2.0)
    print(f"left; the policy goes on: {console.line()}")
    return 0


def _make_session(console: Console) -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", eager=True)
    @keys.add("c-x", eager=True)
    def _(event: Any) -> None:
        console.stop()

    session: Any = PromptSession(
        history=_open_history(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=WordCompleter(console.words, sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        bottom_toolbar=console.line,
        refresh_interval=REFRESH_S,
    )
    session.app.ttimeoutlen = session.app.timeoutlen = ESCAPE_S
    return session


def _open_history() -> Any:
    """Earlier lines from their file; none, and none kept, where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path = find_history()
        with path.open("a+b"):
            return FileHistory(str(path))
    except OSError as error:
        print(f"lines are not kept: {error}")
        return InMemoryHistory()


def _spin(executor: SingleThreadedExecutor) -> None:
    with contextlib.suppress(ExternalShutdownException):
        executor.spin()


def main(arguments: list[str] | None = None) -> int:
    """Run the console; 0 when it was left, 1 where it cannot run."""
    return run_command("operator_console", build_parser(), open_console, arguments)


if __name__ == "__main__":
    sys.exit(main())
