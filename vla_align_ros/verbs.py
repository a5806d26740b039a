"""A command that does several things: a parser of its own for each, with its own help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that a command does: what help says of it, its arguments, and what does it."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Mapping[str, Any]]


def add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb]) -> None:
    """Declare them, for `run_verb`; `--json` may stand before or behind the verb."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, verb in verbs.items():
        action = actions.add_parser(name, help=verb.summary, description=verb.summary)
        verb.add_arguments(action)
        action.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,  # what stood before the verb counts
            help="print one JSON object as the last line",
        )
        action.set_defaults(chosen_verb=verb)


def run_verb(args: argparse.Namespace) -> Mapping[str, Any]:
    """Do what was asked for; a command's `run`."""
    verb: Verb = args.chosen_verb
    return verb.run(args)
