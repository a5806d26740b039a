"""`ros2 run vla_align_ros stop_arm`: stops every policy on the graph, now or at the next key."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rclpy.node import Node

from vla_align_ros.errors import OperatorError
from vla_align_ros.ros.operating.client import Patience, PolicyClient, find_policies
from vla_align_ros.ros.operating.command_line import add_wait, run_command

WAIT_S = 5.0
LOOK_S = 0.05
REPEAT_S = 0.2  # a stop is sent again until it is seen to be latched
SETTLE_S = 2.0  # nodes on a graph are seen one after another, on a busy machine late


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="stop_arm",
        description="Latch the stop of every policy node on the graph (or of those named), and "
        "see that they stand. This is software over a network: no emergency stop of a machine.",
    )
    parser.add_argument(
        "--on-key",
        action="store_true",
        help="wait for a key, the end of input or a closed terminal, and stop then",
    )
    parser.add_argument("--policy", nargs="+", metavar="NAME", help="these alone, by full name")
    add_wait(parser, WAIT_S)
    return parser


class Policies:
    """The policies to stop: those named, or every one on the graph, found as it appears.

    `clients` has them by full name. Nodes see each other one by one: only when none has appeared
    for SETTLE_S are they all.
    """

    def __init__(self, node: Node, names: Sequence[str]) -> None:
        self.clients: dict[str, PolicyClient] = {}
        self._node = node
        self._search = not names
        self._appeared_s = time.monotonic()
        self._add(name if name.startswith("/") else f"/{name}" for name in names)

    def look(self) -> bool:
        """Take in those that appeared; True if any did."""
        return self._search and self._add(find_policies(self._node))

    def since_s(self) -> float:
        """Seconds since the last one appeared, or since the search began."""
        return time.monotonic() - self._appeared_s

    def complete(self) -> bool:
        """Whether these are all of them, as far as the graph tells."""
        return bool(self.clients) and (not self._search or self.since_s() >= SETTLE_S)

    def moving(self) -> list[str]:
        """Names of those that do not say that a stop is latched."""
        return [name for name, client in self.clients.items() if not _stands(client)]

    def _add(self, names: Iterable[str]) -> bool:
        new = [name for name in names if name not in self.clients]
        self.clients.update({name: PolicyClient(self._node, name) for name in new})
        if new:
            self._appeared_s = time.monotonic()
        return bool(new)


def stop_arm(node: Node, args: argparse.Namespace) -> int:
    """Stop at once or at a key; returns 0 once every policy says that it is stopped."""
    patience = Patience(node)
    policies = Policies(node, args.policy or ())
    try:
        if args.on_key:
            _wait_for_key(policies, patience, args.wait)
        _stop(policies, patience, args.wait)
        for name, client in policies.clients.items():
            state = client.status["state"]
            print(f"{name}: stopped" + (f" ({state})" if state != "active" else ""), flush=True)
        return 0
    finally:
        patience.close()


def _wait_for_key(policies: Policies, patience: Patience, timeout_s: float) -> None:
    """Return at a key; OperatorError where no policy would hear the stop."""

    def heard() -> bool:
        policies.look()
        clients = policies.clients.values()
        return bool(clients) and all(client.hears_stop() for client in clients)

    if not patience.wait(heard, timeout_s):
        raise _refuse(policies, timeout_s)
    _announce(policies)
    with _listening() as pressed:
        while not pressed():
            patience.wait(lambda: False, LOOK_S)
            if policies.look():
                _announce(policies)


def _announce(policies: Policies) -> None:
    print(f"any key stops {', '.join(policies.clients)}", flush=True)


def _stop(policies: Policies, patience: Patience, timeout_s: float) -> None:
    """Send the stop until each policy shows it and no further one appears.

    OperatorError with those that do not show it within `timeout_s`: of the first stop, or of the
    last one that appeared, whichever is later.
    """
    begun_s = time.monotonic()
    while True:
        policies.look()
        for client in policies.clients.values():
            client.stop()
        patience.wait(policies.look, REPEAT_S)  # a new one is sent its stop at once
        if policies.moving() or not policies.clients:
            if min(policies.since_s(), time.monotonic() - begun_s) > timeout_s:
                raise _refuse(policies, timeout_s)
        elif policies.complete():
            return


def _stands(client: PolicyClient) -> bool:
    status = client.status
    return status.get("latched_stop") is not None or status.get("state") == "finalized"


def _refuse(policies: Policies, timeout_s: float) -> OperatorError:
    if not policies.clients:
        return OperatorError(
            "no policy to stop",
            got="no policy node on the graph",
            expected="a running policy node",
            fix="use the hardware's stop; see that ROS_DOMAIN_ID is the same here",
        )
    return OperatorError(
        "a policy does not say that it stopped",
        got="; ".join(policies.clients[name].describe() for name in policies.moving()),
        expected=f"a latched stop within {timeout_s:g} s",
        fix="use the hardware's stop",
    )


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """A function that tells whether a key was pressed, input ended, or the terminal is gone."""
    gone: list[int] = []
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: gone.append(received))
    # Python has no sys.stdin where a process got none: its end, as that of an empty one.
    stream = os.open(os.devnull, os.O_RDONLY) if sys.stdin is None else sys.stdin.fileno()
    before = termios.tcgetattr(stream) if os.isatty(stream) else None
    if before is not None:
        tty.setcbreak(stream)
    try:
        yield lambda: bool(gone) or bool(select.select([stream], [], [], 0)[0])
    finally:
        if before is not None:
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(stream, termios.TCSADRAIN, before)


def main(arguments: list[str] | None = None) -> int:
    """Run `stop_arm`; 0 if every policy stands, 1 if one does not or there is none."""
    return run_command("stop_arm", build_parser(), stop_arm, arguments)


if __name__ == "__main__":
    sys.exit(main())
