"""The `vla-align` command: one door to every tool, which loads only the tool that is asked for."""

from __future__ import annotations

import argparse
import ast
import errno
import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any, Protocol, cast

from vla_align_ros.errors import ConfigurationError, VlaAlignError
from vla_align_ros.extras import install_hint

GROUP = "vla_align_ros.commands"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DENIED = (errno.EACCES, errno.EPERM)  # of a file; of anything else it is a bug


class Command(Protocol):
    """What a module registered in the entry-point group `vla_align_ros.commands` offers.

    `run` returns what `--json` prints; a result whose `"ok"` is False makes the exit status 1.
    """

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments; `--json` is added for it."""

    def run(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Do the work, print for people, return the result for programs."""


def find_commands() -> dict[str, EntryPoint]:
    """Return the installed commands by name, sorted."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    if not found:
        raise ConfigurationError(
            got=f"no entry points in the group {GROUP!r}",
            expected="an installed vla_align_ros",
            fix="run `pip install -e .` in the repository, or source the colcon workspace",
        )
    return dict(sorted(found.items()))


def load_command(point: EntryPoint) -> Command:
    """Import one command's module."""
    return cast(Command, importlib.import_module(point.value))


def read_summary(point: EntryPoint) -> str:
    """Read a command's SUMMARY from its source, so that help needs none of its imports."""
    spec = importlib.util.find_spec(point.value)
    if spec is None or spec.origin is None:
        return f"(the module {point.value} is missing from this installation)"
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="SUMMARY")], value=ast.Constant(value=str(text))):
                return text
    return f"({point.value} has no SUMMARY)"


def build_parser(commands: Mapping[str, EntryPoint], chosen: str | None) -> argparse.ArgumentParser:
    """Build the parser; only the chosen command is imported and gets its arguments."""
    parser = argparse.ArgumentParser(
        prog="vla-align",
        description="Vision-language-action policies from demonstrations to a moving arm.",
    )
    parser.add_argument("--version", action="version", version=version("vla_align_ros"))
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, point in commands.items():
        summary = read_summary(point)
        sub = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            command = load_command(point)
            command.add_arguments(sub)
            sub.set_defaults(run_command=command.run)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line"
        )
    return parser


def to_json(value: Any) -> Any:
    """Turn paths, numpy values and non-finite floats (as null) into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def run_command(argv: Sequence[str]) -> int:
    """Parse, run one command and return its exit status."""
    commands = find_commands()
    chosen = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = build_parser(commands, chosen).parse_args(argv)
        result = args.run_command(args)
    except (VlaAlignError, ModuleNotFoundError, OSError) as error:
        message = explain(error)
        print(f"vla-align {chosen}: {message}", file=sys.stderr)
        if "--json" in argv:
            print(json.dumps({"ok": False, "error": message, "type": type(error).__name__}))
        return 1
    if args.json:
        print(json.dumps(to_json(result), allow_nan=False))
    return 1 if result.get("ok") is False else 0


def explain(error: VlaAlignError | ModuleNotFoundError | OSError) -> str:
    """Return the one message for a known error; raise again what may be a bug."""
    if isinstance(error, VlaAlignError):
        return str(error)
    if isinstance(error, OSError):
        is_denied = error.errno in DENIED and error.filename is not None
        if error.errno not in FULL and not is_denied:
            raise error
        place = error.filename2 or error.filename  # of a copy, where it goes
        return str(
            VlaAlignError(
                "The disk refuses to be read or written",
                got=": ".join(str(part) for part in (place, error.strerror) if part),
                expected="space, and permission for this user",
                fix="free some space, or give a folder that may be written",
            )
        )
    hint = install_hint(error.name or "")
    if hint is None:
        raise error
    return f"the module {error.name!r} is not installed; {hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vla-align`; returns 0, 1 on a known error, 2 on wrong usage, 130 on Ctrl-C."""
    try:
        status = run_command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except VlaAlignError as error:
        print(f"vla-align: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vla-align: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def export() -> int:
    """Run `vla-align export`, so that `ros2 run vla_align_ros export` works."""
    return main(["export", *sys.argv[1:]])
