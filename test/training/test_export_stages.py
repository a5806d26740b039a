"""An export that is killed goes on; one that refuses or ends leaves nothing of its own behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from training.export.makers import SOURCES, describe_makers, hash_sources
from training.export.stages import Stages, digest, open_stages
from training.files import hold_lock
from vla_align_ros.errors import BackendError, BundleError, DataError, ExportError


def quietly(_line):
    pass


def write(text):
    return lambda folder: (folder / "a.txt").write_text(text) and None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_step_is_done_once_for_the_same_facts(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "a.txt").write_text("x")

    for _ in range(2):
        stages = Stages(tmp_path, quietly)
        first = stages.run("step", {"seed": 1}, make)
        assert (first / "a.txt").read_text() == "x"
    assert len(made) == 1 and stages.reused == ["step"]
    assert stages.run("step", {"seed": 2}, make) != first
    assert len(made) == 2


def test_a_step_of_other_code_or_another_library_is_done_again(tmp_path, monkeypatch):
    for makers in ({"code": "a"}, {"code": "a"}, {"code": "b"}):
        monkeypatch.setattr("training.export.stages.describe_makers", lambda makers=makers: makers)
        stages = Stages(tmp_path, quietly)
        stages.run("step", {}, write("x"))
    assert len(names(tmp_path)) == 2 and stages.reused == []


def test_makers_tell_code_and_libraries_apart(tmp_path):
    (tmp_path / "room" / "__pycache__").mkdir(parents=True)
    code = tmp_path / "room" / "code.py"
    found = []
    for text in ("one", "two"):
        code.write_text(text)
        (tmp_path / "room" / "__pycache__" / "code.pyc").write_text(text)
        found.append(hash_sources([tmp_path / "room"]))
        (tmp_path / "room" / "__pycache__" / "code.pyc").write_text("made again")
        assert hash_sources([tmp_path / "room"]) == found[-1]
    assert found[0] != found[1] and all(place.exists() for place in SOURCES)
    told = describe_makers()
    assert told["code"] == hash_sources(SOURCES) and "numpy" in told["versions"]


def test_a_damaged_result_is_made_again(tmp_path):
    first = Stages(tmp_path, quietly).run("step", {}, write("right"))
    before = digest(first)
    (first / "a.txt").write_text("wrong")
    again = Stages(tmp_path, quietly).run("step", {}, write("right"))
    assert (again / "a.txt").read_text() == "right" and digest(again) == before
    (again / "extra").write_text("")
    assert names(Stages(tmp_path, quietly).run("step", {}, write("right"))) == [
        "a.txt",
        "stage.json",
    ]


def test_a_full_disk_is_one_error_and_keeps_what_is_whole(tmp_path):
    out = tmp_path / "bundle"

    def full(folder):
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(ExportError, match="No space left on device"),
        open_stages(out, quietly) as stages,
    ):
        stages.run("first", {}, write("whole"))
        stages.run("second", {}, full)
    assert not out.exists()
    left = [path.name for path in (tmp_path / ".bundle.stages").iterdir()]
    assert any(name.startswith("first-") for name in left)
    assert not any("second" in name for name in left)
    with open_stages(out, quietly) as stages:
        stages.run("first", {}, pytest.fail)
        stages.run("second", {}, write("whole"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ExportError("no"), BundleError("no"), BackendError("no"), None])
def test_a_refusal_and_a_good_end_leave_nothing(tmp_path, error):
    def export():
        with open_stages(tmp_path / "bundle", quietly) as stages:
            stages.run("first", {}, write("whole"))
            if error is not None:
                raise error

    if error is None:
        export()
    else:
        with pytest.raises(type(error)):
            export()
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [ExportError, BundleError])
def test_a_refusal_by_the_disk_keeps_what_is_whole_whoever_tells_it(tmp_path, kind):
    with pytest.raises(kind), open_stages(tmp_path / "bundle", quietly) as stages:
        stages.run("first", {}, write("whole"))
        raise kind("cannot be written") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [name for name in names(tmp_path / ".bundle.stages") if name.startswith("first-")]


def test_an_interrupt_keeps_what_is_whole(tmp_path):
    def interrupt(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_stages(tmp_path / "bundle", quietly) as stages:
        stages.run("first", {}, write("whole"))
        stages.run("second", {}, interrupt)
    left = names(tmp_path / ".bundle.stages")
    assert len([name for name in left if name.startswith("first-")]) == 1
    assert not any("second" in name for name in left)


EXPORT = """
    import os, sys, signal
    from pathlib import Path
    from training.export import stages
    from training.export.bundle import export_run

    wanted = int(sys.argv[3])
    moments = iter(range(1000))

    def watch(function):
        def watched(*arguments, **options):
            if next(moments) == wanted:
                os.kill(os.getpid(), getattr(signal, sys.argv[4]))
            return function(*arguments, **options)
        return watched

    # Before and after each step's result takes its place, and around the bundle's own.
    stages._write_index = watch(stages._write_index)
    Path.rename = watch(Path.rename)
    os.rename = watch(os.rename)
    export_run(sys.argv[1], sys.argv[2], "int8", say=lambda line: print(line, flush=True))
    print("whole")
"""


def test_a_kill_at_any_moment_leaves_no_bundle_and_the_next_call_goes_on(tmp_path):
    """Each moment once by SIGKILL or SIGINT; the last call finds every step done."""
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    from tiny_export import make_run

    from vla_align_ros.contract.bundle import Bundle

    run, out = make_run(tmp_path / "run"), tmp_path / "out" / "bundle"
    script = tmp_path / "export.py"
    script.write_text(textwrap.dedent(EXPORT))
    reused = 0
    for moment in range(0, 24, 3):
        kind = "SIGKILL" if moment % 2 == 0 else "SIGINT"
        done = subprocess.run(
            [sys.executable, str(script), str(run), str(out), str(moment), kind],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode in (-signal.SIGKILL, -signal.SIGINT, 1), done.stderr
        if kind == "SIGINT":
            assert "KeyboardInterrupt" in done.stderr, done.stderr
        assert not out.exists() or Bundle.open(out), "whole or not at all"
        found = done.stdout.count("taken from an interrupted export")
        assert found >= reused, "what was done stays done"
        reused = found
        if out.exists():  # the kill came after the bundle took its place
            break
    assert moment >= 6, "there are moments to kill at"
    assert Bundle.open(out).report()["proofs"]["onnx"]["ok"]


def test_two_exports_to_one_place_wait_for_each_other(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from training.export.stages import open_stages

        with open_stages(Path(sys.argv[1])), Path(sys.argv[2]).open("a", buffering=1) as diary:
            diary.write("in\\n")
            print("inside", flush=True)
            sys.stdin.readline()
            diary.write("out\\n")
        """
    )
    diary, pipe = tmp_path / "diary", subprocess.PIPE
    words = [sys.executable, "-c", script, str(tmp_path / "bundle"), str(diary)]
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout.readline() == "inside\n"
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=pipe, text=True
        ) as second:
            waits = any("waiting" in line for line in second.stderr)  # until it says so, or ends
            first.communicate("\n")
    assert waits and (first.returncode, second.returncode) == (0, 0)
    assert diary.read_text().split() == ["in", "out"] * 2, "one after the other"


def is_held(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_results_are_dropped_before_the_next_export_may_begin(tmp_path, monkeypatch):
    real, held = shutil.rmtree, []

    def watched(path, **options):
        held.append(is_held(tmp_path / ".bundle.stages.lock"))
        real(path, **options)

    with open_stages(tmp_path / "bundle", quietly) as stages:
        stages.run("first", {}, write("whole"))
        monkeypatch.setattr(shutil, "rmtree", watched)
    assert held and all(held)
    assert names(tmp_path) == []


def test_whoever_waited_for_a_lock_holds_the_one_that_others_find(tmp_path, capsys):
    path, inside, leave = tmp_path / "lock", threading.Event(), threading.Event()

    def wait():
        with hold_lock(path):
            inside.set()
            leave.wait(20)

    with hold_lock(path):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while waiter.is_alive() and "waiting" not in capsys.readouterr().err:
            time.sleep(0.01)
        assert not inside.is_set()
    assert inside.wait(20)
    assert is_held(path)
    leave.set()
    waiter.join()
    assert names(tmp_path) == []


def test_a_place_that_nothing_can_lie_beside_is_refused():
    with pytest.raises(ExportError, match="cannot lie there: got /"), open_stages(Path("/")):
        pass


def test_a_place_without_locks_is_named_as_what_it_is(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError) as refusal, open_stages(tmp_path / "bundle", quietly):
        pass
    assert f"file system of {tmp_path} has no locks" in str(refusal.value)
    assert "a folder on a local disk" in str(refusal.value)


def test_a_raw_error_of_the_disk_in_an_export_is_one_clear_error_and_keeps_what_is_whole(tmp_path):
    def export():
        with open_stages(tmp_path / "bundle", quietly) as stages:
            stages.run("first", {}, write("whole"))
            (tmp_path / "taken" / "by").mkdir(parents=True, exist_ok=True)
            (tmp_path / "new").mkdir(exist_ok=True)
            os.rename(tmp_path / "new", tmp_path / "taken")

    with pytest.raises(ExportError, match=r"not empty.*goes on from here"):
        export()
    assert [name for name in names(tmp_path / ".bundle.stages") if name.startswith("first-")]
    assert not (tmp_path / ".bundle.stages.lock").exists()
