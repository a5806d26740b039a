"""`vla-align bench`: every measurement of speed behind one door, each from its own room."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError

SUMMARY = "measure speed: `vla-align bench NAME --help` tells what each measurement takes"
GROUP = "vla_align_ros.benches"
DEFAULT = "policy"  # `vla-align bench BUNDLE` is `vla-align bench policy BUNDLE`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the name of the measurement and, unread, all that follows."""
    names = ", ".join(find_benches())
    parser.add_argument("name", metavar="NAME", help=f"one of {names}; or a bundle, for {DEFAULT}")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="arguments of that measurement")


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """Run the measurement that is named; its module offers what a command offers.

    Raises:
        ConfigurationError: if there is no such measurement.
    """
    benches, name, words = find_benches(), args.name, list(args.words)
    if name not in benches and DEFAULT in benches and Path(name).exists():
        name, words = DEFAULT, [args.name, *words]
    if name not in benches:
        raise ConfigurationError(
            "no such measurement",
            got=repr(name),
            expected="one of " + ", ".join(benches) + "; or the folder of a bundle",
        )
    module = importlib.import_module(benches[name].value)
    parser = argparse.ArgumentParser(prog=f"vla-align bench {name}", description=module.SUMMARY)
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    chosen = parser.parse_args(words)
    args.json = args.json or chosen.json
    result: Mapping[str, Any] = module.run(chosen)
    return result


def find_benches() -> dict[str, EntryPoint]:
    """Return the installed measurements by name, sorted."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}
