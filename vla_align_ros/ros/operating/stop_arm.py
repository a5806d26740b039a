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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rclpy.node import Node

from vla_align_ros.errors import OperatorError
from vla_align_ros.ros.operating.client import Patience, PolicyClient, find_policies
from vla_align_ros.ros.operating.command_line import add_wait, run_command

WAIT_S = 5.0
LOOK_S = 0.05
REPEAT_S = 0.2  # a stop is sent again until it is seen to be latched


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


def stop_arm(node: Node, args: argparse.Namespace) -> int:
    """Stop at once or at a key; returns 0 once every policy says that it is stopped."""
    patience = Patience(node)
    try:
        clients = _find(node, args, patience)
        names = ", ".join(clients)
        if args.on_key:
            print(f"any key stops {names}", flush=True)
            with _listening() as heard:
                while not heard():
                    patience.wait(lambda: False, LOOK_S)
                    _add(node, clients, [] if args.policy else find_policies(node))
        _stop(clients, patience, args.wait)
        for name, client in clients.items():
            idle = client.status["hold_reason"] != "stopped"
            print(f"{name}: {'inactive, nothing to stop' if idle else 'stopped'}", flush=True)
        return 0
    finally:
        patience.close()


def _find(node: Node, args: argparse.Namespace, patience: Patience) -> dict[str, PolicyClient]:
    clients: dict[str, PolicyClient] = {}
    wanted = [name if name.startswith("/") else f"/{name}" for name in args.policy or ()]
    _add(node, clients, wanted)

    def known() -> bool:
        if not wanted:
            _add(node, clients, find_policies(node))
        return bool(clients) and all(client.hears_stop() for client in clients.values())

    if not patience.wait(known, args.wait):
        deaf = [name for name, client in clients.items() if not client.hears_stop()]
        raise OperatorError(
            "no policy to stop",
            got=f"{', '.join(deaf)} not listening" if deaf else "no policy node on the graph",
            expected="a running policy node",
            fix="use the hardware's stop; see that ROS_DOMAIN_ID is the same here",
        )
    return clients


def _add(node: Node, clients: dict[str, PolicyClient], names: list[str]) -> None:
    for name in names:
        clients.setdefault(name, PolicyClient(node, name))


def _stop(clients: dict[str, PolicyClient], patience: Patience, timeout_s: float) -> None:
    """Send the stop until each policy shows it; OperatorError with those that do not."""

    def standing(client: PolicyClient) -> bool:
        return client.status.get("hold_reason") in ("stopped", "inactive")

    end_s = time.monotonic() + timeout_s
    while True:
        for client in clients.values():
            client.stop()  # an inactive one latches it, too; an unconfigured one comes up disarmed
        if patience.wait(lambda: all(map(standing, clients.values())), REPEAT_S):
            return
        if time.monotonic() > end_s:
            moving = [name for name, client in clients.items() if not standing(client)]
            raise OperatorError(
                "a policy does not say that it stopped",
                got="; ".join(clients[name].describe() for name in moving),
                expected=f"hold_reason stopped within {timeout_s:g} s",
                fix="use the hardware's stop",
            )


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """A function that tells whether a key was pressed, input ended, or the terminal is gone."""
    gone: list[int] = []
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: gone.append(received))
    stream = sys.stdin.fileno()
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
