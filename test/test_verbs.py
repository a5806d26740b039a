"""Commands that do several things: each takes its own arguments and nobody else's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from vla_align_ros.cli import main
from vla_align_ros.verbs import Verb, add_verbs, run_verb


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    verbs: dict[str, Verb] = {
        "count": Verb(
            "up", lambda of: of.add_argument("--to", type=int), lambda args: {"n": args.to}
        ),
        "sleep": Verb("a while", lambda of: None, lambda args: {}),
    }
    add_verbs(parser, verbs)
    return parser.parse_args(words)


def test_the_verb_that_was_asked_for_is_done() -> None:
    assert run_verb(parse("count", "--to", "3")) == {"n": 3}
    assert run_verb(parse("sleep")) == {}


@pytest.mark.parametrize(
    ("words", "asked"),
    [(["sleep"], False), (["sleep", "--json"], True), (["--json", "sleep"], True)],
)
def test_json_may_stand_on_either_side_of_the_verb(words: list[str], asked: bool) -> None:
    assert parse(*words).json is asked


@pytest.mark.parametrize("words", [["sleep", "--to", "3"], [], ["jump"]])
def test_what_a_verb_does_not_take_is_refused(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_options_of_another_action_are_not_ignored(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "info", str(tmp_path), "--quick"])
    assert ended.value.code == 2
    assert "--quick" in capsys.readouterr().err
    assert main(["data", "--json", "info", str(tmp_path)]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["ok"] is False
