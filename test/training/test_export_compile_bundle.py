"""A bundle gets all engines of a target in one step, or stays as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_policy import make_bundle

from training.export import compile_bundle
from training.export.compile_bundle import add_engine_set
from training.export.compile_cache import BuiltEngine
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import BundleError, ExportError

FACTS = {
    "precision": "bf16",
    "scheme": "casts",
    "command": "vla-align export --trt",
    "versions": {"onnx": "1.23.2"},
}
TENSORS = ({"name": "x", "dtype": "float32", "shape": [1, 2]},)


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    (tmp_path / "home").mkdir()
    made = make_bundle(tmp_path / "home")
    (tmp_path / "home/export.onnx").unlink()
    return made


def make_engines(folder: Path, content: bytes = b"engine", target: str = "sm89"):
    engines = {}
    for name in ("vision", "policy"):
        path = folder / f"{name}.{target}"
        path.write_bytes(content + name.encode())
        engines[name] = BuiltEngine(
            path, target, "tensorrt_rtx", "1.7.1", "0" * 64, TENSORS, TENSORS, {}, "1" * 64
        )
    return engines


def beside(bundle: Bundle) -> list[str]:
    return sorted(path.name for path in bundle.path.parent.iterdir())


def test_engines_are_added_and_open_as_the_robot_opens_them(bundle, tmp_path):
    made = add_engine_set(bundle, "sm89", make_engines(tmp_path), FACTS)
    opened = Bundle.open(bundle.path).engine("sm89")
    assert opened.facts == made.facts
    assert opened.engine_path("policy").read_bytes() == b"enginepolicy"
    for key, value in FACTS.items():
        assert opened.facts[key] == value
    assert opened.facts["library_version"] == "1.7.1" and opened.gates == {}
    assert beside(bundle) == ["bundle"], "nothing is left beside it"
    assert opened.engine_path("policy").stat().st_mode & 0o777 == 0o644
    (tmp_path / "policy.sm89").write_bytes(b"changed later")
    bundle.engine("sm89")


@pytest.mark.parametrize("kernel_exchanges", [True, False])
def test_a_second_set_takes_the_place_of_the_first_and_has_no_proof(
    bundle, tmp_path, monkeypatch, kernel_exchanges
):
    if not kernel_exchanges:
        monkeypatch.setattr(compile_bundle, "_exchange", lambda *_: False)
    add_engine_set(bundle, "sm89", make_engines(tmp_path, b"old"), FACTS).add_gates({"a": 1})
    only = {"policy": make_engines(tmp_path, b"new")["policy"]}
    made = add_engine_set(bundle, "sm89", only, {**FACTS, "precision": "int8"})
    assert made.gates == {} and made.precision == "int8"
    assert sorted(path.name for path in made.path.iterdir()) == ["engine.json", "policy.engine"]
    add_engine_set(bundle, "sm86", make_engines(tmp_path, target="sm86"), FACTS)
    assert bundle.engine_targets() == ["sm86", "sm89"]
    assert beside(bundle) == ["bundle"]


def test_the_exchange_is_one_step_on_this_file_system(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not compile_bundle._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this kernel or file system cannot exchange two paths")
    assert os.listdir(tmp_path / "one") == ["other"]
    assert not compile_bundle._exchange(tmp_path / "one", tmp_path / "missing")


@pytest.mark.parametrize("change", [{"target": "sm86"}, {"library_version": "1.6"}])
def test_engines_that_do_not_belong_together_are_refused(bundle, tmp_path, change):
    engines = make_engines(tmp_path)
    engines["policy"] = replace(engines["policy"], **change)
    with pytest.raises(ExportError, match="do not belong together"):
        add_engine_set(bundle, "sm89", engines, FACTS)
    with pytest.raises(ExportError, match="do not belong together"):
        add_engine_set(bundle, "sm89", {}, FACTS)
    with pytest.raises(ExportError, match="facts of the engines"):
        add_engine_set(bundle, "sm89", make_engines(tmp_path), {"precision": "bf16"})
    assert bundle.engine_targets() == []


@pytest.mark.parametrize("step", ["shutil.copyfile", "write_durably", "sync_path", "_move_in"])
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_at_any_step_leaves_the_bundle_as_it_was(
    bundle, tmp_path, monkeypatch, step, before
):
    if before:
        add_engine_set(bundle, "sm89", make_engines(tmp_path, b"old"), FACTS)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"training.export.compile_bundle.{step}", full)
    with pytest.raises(ExportError, match=r"No space left.*make room"):
        add_engine_set(bundle, "sm89", make_engines(tmp_path, b"new"), FACTS)
    monkeypatch.undo()
    assert [n for n in beside(bundle) if not n.endswith(".lock")] == ["bundle"]
    Bundle.open(bundle.path)
    if before:
        assert bundle.engine("sm89").engine_path("policy").read_bytes() == b"oldpolicy"
    else:
        with pytest.raises(BundleError, match="no such engine set"):
            bundle.engine("sm89")


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_export_compile_bundle import FACTS, make_engines
from training.export import compile_bundle
from vla_align_ros.contract.bundle import Bundle
step = {step!r}
real = getattr(compile_bundle, step)
calls = []
def kill(*args):
    calls.append(args)
    if len(calls) == {call}:
        os.kill(os.getpid(), 9)
    return real(*args)
setattr(compile_bundle, step, kill)
engines = make_engines(Path({folder!r}), b"new")
compile_bundle.add_engine_set(Bundle.open({bundle!r}), "sm89", engines, FACTS)
"""


@pytest.mark.parametrize(
    ("step", "call"), [("_copy", 1), ("_copy", 2), ("_move_in", 1), ("sync_folder", 1)]
)
def test_kill_9_at_any_step_leaves_the_old_engines_or_the_new(bundle, tmp_path, step, call):
    add_engine_set(bundle, "sm89", make_engines(tmp_path, b"old"), FACTS)
    tests = Path(__file__).parent
    code = KILLED.format(
        tests=str(tests), step=step, call=call, folder=str(tmp_path), bundle=str(bundle.path)
    )
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    found = Bundle.open(bundle.path).engine("sm89").engine_path("policy").read_bytes()
    assert found == (b"newpolicy" if step == "sync_folder" else b"oldpolicy")
    assert ".bundle.engines" in beside(bundle), "the killed call could not tidy up"
    add_engine_set(bundle, "sm89", make_engines(tmp_path, b"next"), FACTS)
    assert beside(bundle) == ["bundle"], "the next call did"


MOVED_OUT = """
from training.export import compile_bundle as module
module._exchange = lambda *_: False
rename, renamed = os.rename, []
def watched(*args):
    renamed.append(args)
    if len(renamed) == 2:
        os.kill(os.getpid(), 9)
    rename(*args)
os.rename = watched
"""


def test_engines_that_a_killed_call_had_moved_out_come_back_with_the_next(bundle, tmp_path):
    """Where the kernel cannot exchange two paths, and the kill comes between two renames."""
    add_engine_set(bundle, "sm89", make_engines(tmp_path, b"old"), FACTS)
    tests = Path(__file__).parent
    code = f"import os{MOVED_OUT}" + KILLED.format(
        tests=str(tests), step="_describe", call=0, folder=str(tmp_path), bundle=str(bundle.path)
    )
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert bundle.engine_targets() == []
    add_engine_set(bundle, "sm86", make_engines(tmp_path, target="sm86"), FACTS)
    assert bundle.engine_targets() == ["sm86", "sm89"]
    assert bundle.engine("sm89").engine_path("policy").read_bytes() == b"oldpolicy"
    assert beside(bundle) == ["bundle"]


def test_a_disk_that_refuses_the_second_of_two_renames_leaves_the_old_engines(
    bundle, tmp_path, monkeypatch
):
    add_engine_set(bundle, "sm89", make_engines(tmp_path, b"old"), FACTS)
    real, calls = os.rename, []

    def rename(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(compile_bundle, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ExportError, match="No space left"):
        add_engine_set(bundle, "sm89", make_engines(tmp_path, b"new"), FACTS)
    assert bundle.engine("sm89").engine_path("policy").read_bytes() == b"oldpolicy"
    assert beside(bundle) == ["bundle"]


def test_a_bundle_that_cannot_be_written_is_one_clear_error(bundle, tmp_path, monkeypatch):
    engines = make_engines(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("training.files.Path.open", refuse)
    with pytest.raises(ExportError, match=r"Permission denied.*folder of your own"):
        add_engine_set(bundle, "sm89", engines, FACTS)
