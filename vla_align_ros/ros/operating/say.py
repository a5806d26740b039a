"""`ros2 run vla_align_ros say "put the carrot on the plate"`: an instruction, and its answer."""

from __future__ import annotations

import argparse
import sys
import time

from rclpy.node import Node

from vla_align_ros.contract.prompt import clean_instruction
from vla_align_ros.errors import OperatorError
from vla_align_ros.ros.operating.client import Patience, PolicyClient, refuse
from vla_align_ros.ros.operating.command_line import add_policy, add_wait, run_command

WAIT_S = 10.0
REPEAT_S = 0.5
SETTLE_S = 1.0  # for a hold to become motion, or the other way round, before it is told


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="say",
        description="Give a policy node an instruction, and see that it follows it. "
        'An empty one ("") withdraws the last, and the arm holds.',
    )
    parser.add_argument("words", nargs="+", help='the instruction, "" to withdraw the last one')
    parser.add_argument("--arm", action="store_true", help="arm the policy too: it may move then")
    add_policy(parser)
    add_wait(parser, WAIT_S)
    return parser


def say(node: Node, args: argparse.Namespace) -> int:
    """Say it, wait until the policy's status shows it, tell what the arm does."""
    text = " ".join(args.words).strip()
    wanted = clean_instruction(text) if text else None
    client, patience = PolicyClient(node, args.policy), Patience(node)
    try:
        end_s = time.monotonic() + args.wait
        ready = patience.wait(lambda: client.hears_words() and bool(client.status), args.wait)
        if client.status.get("state") == "active" and not client.hears_words():
            raise OperatorError(
                "the policy does not hear these words",
                got=client.describe(),
                expected="an active policy node that listens to them",
                fix=client.explain_deaf(),
            )
        if not ready or client.status["state"] != "active":
            raise refuse(client, "the policy does not listen", "an active policy node")
        client.say(text)
        while not patience.wait(lambda: client.status["instruction"] == wanted, REPEAT_S):
            if time.monotonic() > end_s:
                raise refuse(client, "the policy did not take the instruction", repr(wanted))
            client.say(text)  # a listener is seen before it hears; twice does no harm
        if args.arm:  # now, and not before: the arm must not move by the words of yesterday
            _arm(client, patience, end_s - time.monotonic())
        patience.wait(lambda: bool(client.status["moving"]) == (wanted is not None), SETTLE_S)
        print(client.describe())
        return 0
    finally:
        patience.close()


def _arm(client: PolicyClient, patience: Patience, timeout_s: float) -> None:
    answer = patience.ask(lambda: client.arm(True), client.answers, timeout_s)
    if answer is None:
        client.arm(False)  # behind what may still wait there, so that it arms nothing later
        raise refuse(client, "the policy cannot be armed", "an answer of its service ~/arm")
    if not answer.success:
        raise OperatorError(
            "the policy refuses to be armed", got=answer.message, fix=client.describe()
        )


def main(arguments: list[str] | None = None) -> int:
    """Run `say`; 0 if the policy took the words, 1 if not."""
    return run_command("say", build_parser(), say, arguments)


if __name__ == "__main__":
    sys.exit(main())
