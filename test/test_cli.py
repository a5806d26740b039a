"""Tests of `vla-align`: what is loaded, what is printed, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from vla_align_ros import cli

VLA_ALIGN = [
    sys.executable,
    "-c",
    "import sys; from vla_align_ros.cli import main; sys.exit(main())",
]
NAMES = ["collect", "data", "doctor", "evaluate", "export", "inspect", "train", "verify"]

COMMAND = '''
"""A command for tests."""
from vla_align_ros.errors import DataError
SUMMARY = "do the thing"
def add_arguments(parser):
    parser.add_argument("--count", type=int, default=1)
def run(args):
    print("working")
    {body}
'''


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a command named `thing`, with the given body of `run`."""

    def install(body: str, head: str = "") -> None:
        source = head + COMMAND.format(body=textwrap.indent(body, "    ").strip())
        (tmp_path / "thing_command.py").write_text(source)
        point = EntryPoint("thing", "thing_command", cli.GROUP)
        monkeypatch.setattr(cli, "find_commands", lambda: {"thing": point})
        monkeypatch.setitem(sys.modules, "thing_command", None)
        monkeypatch.delitem(sys.modules, "thing_command")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


def test_json_is_one_object_on_the_last_line(command: Any, capsys: Any) -> None:
    command(
        "import math, numpy, pathlib\n"
        "return {'n': args.count, 'path': pathlib.Path('a/b'), 'nan': math.nan,\n"
        "        'rows': numpy.arange(2), 'scalar': numpy.float32(0.5), 'pair': (1, None)}"
    )
    assert cli.main(["thing", "--count", "3", "--json"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "working"
    expected = {
        "n": 3,
        "path": "a/b",
        "nan": None,
        "rows": [0, 1],
        "scalar": 0.5,
        "pair": [1, None],
    }
    assert json.loads(last) == expected


def test_without_json_only_the_command_prints(command: Any, capsys: Any) -> None:
    command("return {'n': 1}")
    assert cli.main(["thing"]) == 0
    assert capsys.readouterr().out == "working\n"


def test_a_result_that_is_not_ok_fails(command: Any, capsys: Any) -> None:
    command("return {'ok': False}")
    assert cli.main(["thing", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ok": False}


def test_a_known_error_is_one_message_and_status_1(command: Any, capsys: Any) -> None:
    command("raise DataError(got='nothing', expected='a folder', fix='collect first')")
    assert cli.main(["thing", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith("vla-align thing: ")
    assert "collect first" in err
    answer = json.loads(out.splitlines()[-1])
    assert answer["ok"] is False
    assert answer["type"] == "DataError"
    assert "collect first" in answer["error"]


@pytest.mark.parametrize("when", ["on import", "while running"])
def test_a_missing_library_names_the_extra_that_brings_it(
    command: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    line = "from mujoco.glfw import nothing"
    if when == "on import":
        command("return {}", head=line + "\n")
    else:
        command(line)
    assert cli.main(["thing"]) == 1
    assert "pip install '.[sim]'" in capsys.readouterr().err


def test_an_unknown_missing_module_is_a_bug_and_shows_its_trace(command: Any) -> None:
    command("import no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        cli.main(["thing"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("OSError(28, 'No space left on device')", "got No space left on device; expected space"),
        ("OSError(30, 'Read-only file system', 'runs/x')", "got runs/x: Read-only file system"),
        ("PermissionError(13, 'Permission denied', 'runs/x')", "got runs/x: Permission denied"),
        ("OSError(28, 'No space left', 'from', None, 'to')", "got to: No space left"),
    ],
)
def test_a_disk_that_is_full_or_closed_is_one_message(
    command: Any, capsys: Any, error: str, told: str
) -> None:
    command(f"raise {error}")
    assert cli.main(["thing", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("vla-align thing: The disk refuses") and err.count("\n") == 1
    answer = json.loads(out.splitlines()[-1])
    assert answer["ok"] is False and told in answer["error"]


@pytest.mark.parametrize("error", ["PermissionError(1, 'not a file')", "OSError(22, 'a bug')"])
def test_another_error_of_the_system_is_not_hidden(command: Any, error: str) -> None:
    command(f"raise {error}")
    with pytest.raises(OSError, match=r"not a file|a bug"):
        cli.main(["thing"])


def test_an_unexpected_error_is_not_hidden(command: Any) -> None:
    command("raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        cli.main(["thing"])


def test_wrong_usage_is_status_2(command: Any, capsys: Any) -> None:
    command("return {}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["thing", "--count", "many"])
    assert ended.value.code == 2
    assert "--count" in capsys.readouterr().err


def test_an_unknown_command_lists_the_known(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["fly"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_json_and_has_a_summary(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert cli.read_summary(cli.find_commands()[name]) in " ".join(text.split())


def test_help_lists_every_command_and_loads_none() -> None:
    code = (
        "import sys\n"
        "from vla_align_ros.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'mujoco', 'rclpy', 'onnxruntime'} & set(sys.modules)\n"
        "print('loaded', sorted(heavy))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "loaded []"
    assert "missing" not in answer.stdout
    assert all(f"\n    {name} " in answer.stdout for name in NAMES)


def test_ctrl_c_ends_with_130_and_no_trace(tmp_path: Path) -> None:
    source = COMMAND.format(body="import time; print('ready', flush=True); time.sleep(60)")
    (tmp_path / "thing_command.py").write_text(source)
    code = (
        "import sys\nfrom importlib.metadata import EntryPoint\nfrom vla_align_ros import cli\n"
        "point = EntryPoint('thing', 'thing_command', cli.GROUP)\n"
        "cli.find_commands = lambda: {'thing': point}\n"
        "sys.exit(cli.main(['thing']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == cli.INTERRUPTED
    assert error == "vla-align: interrupted\n"


def test_a_reader_that_leaves_early_causes_no_trace() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        answer = subprocess.run([*VLA_ALIGN, "assets"], stdout=closed, stderr=subprocess.PIPE)
    assert answer.returncode == cli.BROKEN_PIPE
    assert answer.stderr == b""


def test_doctor_reports_a_working_base_install() -> None:
    answer = subprocess.run([*VLA_ALIGN, "doctor", "--json"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["ok"] is True
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["python"]["ok"]
    assert found["onnxruntime"]["ok"]
    assert "CPUExecutionProvider" in answer.stdout
    assert all(finding["fix"] == "" for finding in report["findings"] if finding["ok"])
