"""Engines are served only if they are this bundle's, whole, and where the sidecar says they are."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_engines import ENGINES, make_engine_set, make_facts, write_facts
from sample_policy import make_bundle

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import SIDECAR, EngineSet, build_command
from vla_align_ros.errors import BundleError

FILES = [SIDECAR, "policy.engine", "vision.engine"]
UNSHARED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Bundle:
    bundle = make_bundle(tmp_path_factory.mktemp("engines"))
    make_engine_set(bundle)
    return bundle


@pytest.fixture
def bundle(original, tmp_path) -> Bundle:
    return Bundle.open(shutil.copytree(original.path, tmp_path / "bundle"))


def test_engines_open_with_all_that_was_written(bundle):
    assert bundle.engine_targets() == ["sm89"]
    engines = bundle.engine("sm89")
    assert engines.path == bundle.path / "engines/sm89"
    assert (engines.target, engines.precision, engines.gates) == ("sm89", "bf16", {})
    assert engines.engine_path("policy").read_bytes() == ENGINES["policy"]
    assert engines.facts["graphs"]["vision"]["bytes"] == len(ENGINES["vision"])
    with pytest.raises(BundleError, match=r"got 'decode'; expected \['policy', 'vision'\]"):
        engines.engine_path("decode")


def test_engines_neither_change_the_bundle_nor_its_id(bundle, tmp_path):
    (tmp_path / "bare").mkdir()
    bare = make_bundle(tmp_path / "bare")
    assert bundle.id == bare.id
    assert bare.engine_targets() == []
    (bundle.path / "engines/sm89/policy.engine").write_bytes(b"damaged")
    assert Bundle.open(bundle.path).id == bare.id, "the bundle itself is as it was"


def test_missing_engines_are_answered_with_the_command_that_builds_them(bundle):
    for target, asked in (("sm120", "sm120"), ("sm87", "device")):
        with pytest.raises(BundleError, match=f"--trt --bundle {bundle.path} --target {asked} "):
            bundle.engine(target)
    for name in ("device", "../sm89", "sm89/..", "", "SM89"):
        with pytest.raises(BundleError, match="expected such as sm89"):
            bundle.engine(name)


@UNSHARED
@given(st.sampled_from(FILES[1:]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_of_an_engine_is_refused(bundle, name, place, change):
    path = bundle.path / "engines/sm89" / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    original = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(
        BundleError, match=f"{name} was altered or truncated.*fix: build them again"
    ):
        bundle.engine("sm89")
    path.write_bytes(original)
    bundle.engine("sm89")


@UNSHARED
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_of_the_sidecar_is_refused_or_means_the_same(bundle, place, change):
    path = bundle.path / "engines/sm89" / SIDECAR
    original = path.read_bytes()
    content = bytearray(original)
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    try:
        with pytest.raises(BundleError):
            bundle.engine("sm89")
    except pytest.fail.Exception:
        assert json.loads(content) == json.loads(original), "only blanks may differ"
    path.write_bytes(original)


@pytest.mark.parametrize("key", sorted({*make_facts("")} - {"format", "schema_version"}))
def test_whatever_is_changed_in_the_sidecar_no_longer_fits_its_hash(bundle, key):
    path = bundle.path / "engines/sm89" / SIDECAR
    facts = json.loads(path.read_text())
    facts[key] = f"{facts[key]}x" if isinstance(facts[key], str) else {**facts[key], "x": {}}
    path.write_text(json.dumps(facts))
    with pytest.raises(BundleError, match="sidecar was altered"):
        bundle.engine("sm89")


def test_an_engine_of_another_size_than_the_sidecar_says_is_refused_though_its_hash_fits(bundle):
    facts = make_facts(bundle.id)
    facts["graphs"]["policy"]["bytes"] += 1
    write_facts(bundle.path / "engines/sm89", facts)
    with pytest.raises(BundleError, match=r"policy\.engine was altered or truncated"):
        bundle.engine("sm89")


@pytest.mark.parametrize(
    ("call", "name", "says"),
    [
        ("open", "policy.engine", r"cannot read policy\.engine"),
        ("scandir", "sm89", "cannot be read"),
    ],
)
def test_what_one_may_not_read_is_refused(bundle, monkeypatch, call, name, says):
    original = getattr(os, call)

    def refuse(path, *arguments):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(BundleError, match=f"{says}: got .*Permission denied"):
        bundle.engine("sm89")


@UNSHARED
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True))
def test_a_half_written_file_is_refused(bundle, name, kept):
    path = bundle.path / "engines/sm89" / name
    original = path.read_bytes()
    path.write_bytes(original[: int(kept * (len(original) - 1))])
    with pytest.raises(BundleError):
        bundle.engine("sm89")
    path.write_bytes(original)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(bundle, name):
    (bundle.path / "engines/sm89" / name).unlink()
    says = "engine set has no" if name == SIDECAR else "differ from its sidecar"
    with pytest.raises(BundleError, match=f"{says}.*fix: build them again"):
        bundle.engine("sm89")


@pytest.mark.parametrize("name", ["decode.engine", "conftest.py", ".policy.engine.tmp"])
def test_an_extra_file_is_refused_and_named(bundle, name):
    (bundle.path / "engines/sm89" / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"differ from its sidecar.*{name}"):
        bundle.engine("sm89")


def test_links_are_refused_wherever_they_stand(bundle, tmp_path):
    folder = bundle.path / "engines/sm89"
    (folder / "policy.engine").rename(tmp_path / "away")
    (folder / "policy.engine").symlink_to(tmp_path / "away")
    with pytest.raises(BundleError, match="other than plain files"):
        bundle.engine("sm89")
    with pytest.raises(BundleError, match="other than plain files"):
        Bundle.open(bundle.path)
    (folder / "policy.engine").unlink()
    (tmp_path / "away").rename(folder / "policy.engine")
    bundle.engine("sm89")
    for place in (folder, folder.parent):
        place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path / "moved")
        with pytest.raises(BundleError, match="no link"):
            bundle.engine("sm89")
        with pytest.raises(BundleError, match="other than plain files"):
            Bundle.open(bundle.path)
        place.unlink()
        (tmp_path / "moved").rename(place)


def test_a_pipe_and_a_folder_are_refused_without_waiting(bundle):
    os.mkfifo(bundle.path / "engines/sm89/extra.engine")
    with pytest.raises(BundleError, match=r"got \['extra.engine'\]"):
        bundle.engine("sm89")
    (bundle.path / "engines/sm89/extra.engine").unlink()
    (bundle.path / "engines/sm89/extra.engine").mkdir()
    with pytest.raises(BundleError, match="plain files"):
        bundle.engine("sm89")


def test_engines_of_another_bundle_are_refused(bundle, tmp_path):
    (tmp_path / "other").mkdir()
    other = make_bundle(tmp_path / "other", noise=0.1)
    shutil.copytree(bundle.path / "engines", other.path / "engines")
    with pytest.raises(BundleError, match=f"another bundle: got {bundle.id}; expected {other.id}"):
        Bundle.open(other.path).engine("sm89")


def test_engines_in_another_targets_folder_are_refused(bundle):
    (bundle.path / "engines/sm89").rename(bundle.path / "engines/sm86")
    assert bundle.engine_targets() == ["sm86"]
    with pytest.raises(BundleError, match="got sm89; expected sm86"):
        bundle.engine("sm86")
    notes = (bundle.path / "engines/sm86").rename(bundle.path / "engines/notes")
    write_facts(notes, make_facts(bundle.id, target="notes"))
    with pytest.raises(BundleError, match="another target's folder"):
        EngineSet.open(notes, bundle.id)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other"}, "another format"),
        ({"schema_version": 2}, "another format"),
        ({"note": ""}, "wrong keys"),
        ({"library": "onnxruntime"}, "tensorrt or tensorrt_rtx"),
        ({"precision": None}, "wrong type"),
        ({"gates": []}, "wrong type"),
        ({"gates": {"device": True}}, "wrong type"),
        ({"graphs": {}}, "wrong type"),
        ({"versions": "1"}, "wrong type"),
    ],
)
def test_a_sidecar_that_makes_no_sense_is_refused_though_its_hash_fits(bundle, changes, says):
    write_facts(bundle.path / "engines/sm89", make_facts(bundle.id, **changes))
    with pytest.raises(BundleError, match=says):
        bundle.engine("sm89")


@pytest.mark.parametrize(
    "path", ["../policy.engine", "/etc/passwd", "vision.engine", ".policy.engine", "a/b.engine", 3]
)
def test_no_path_can_lead_out_of_the_folder(bundle, path):
    facts = make_facts(bundle.id)
    facts["graphs"]["policy"]["path"] = path
    write_facts(bundle.path / "engines/sm89", facts)
    with pytest.raises(BundleError, match="'policy' is malformed"):
        bundle.engine("sm89")


@pytest.mark.parametrize("name", ["../policy", "Policy", "", "policy\n", ".policy"])
def test_a_graph_is_named_by_a_word_that_leads_nowhere_else(bundle, name):
    facts = make_facts(bundle.id, engines={name: b"any"})
    write_facts(bundle.path / "engines/sm89", facts)
    with pytest.raises(BundleError, match="is malformed"):
        bundle.engine("sm89")


@pytest.mark.parametrize("key", ["sha256", "bytes", "onnx_sha256", "inputs", "outputs", "new"])
@pytest.mark.parametrize("value", [None, "", True, [3], "0" * 65])
def test_a_graph_with_a_value_of_another_form_is_refused(bundle, key, value):
    facts = make_facts(bundle.id)
    facts["graphs"]["policy"][key] = value
    write_facts(bundle.path / "engines/sm89", facts)
    with pytest.raises(BundleError, match="malformed"):
        bundle.engine("sm89")


def test_gates_are_added_in_one_step_and_survive_opening(bundle):
    engines = bundle.engine("sm89").add_gates({"numbers": {"ok": True}})
    assert engines.gates == {"numbers": {"ok": True}}
    bundle.engine("sm89").add_gates({"actions": {"ok": False}})
    bundle.engine("sm89").add_gates({"numbers": {"ok": False}})
    opened = bundle.engine("sm89")
    assert opened.gates == {"numbers": {"ok": False}, "actions": {"ok": False}}
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"], "nothing left behind"


def test_gates_that_another_added_meanwhile_are_kept(bundle):
    early = bundle.engine("sm89")
    bundle.engine("sm89").add_gates({"numbers": {"ok": True}})
    early.add_gates({"actions": {"ok": False}})
    assert bundle.engine("sm89").gates == {"numbers": {"ok": True}, "actions": {"ok": False}}


def test_gates_that_two_add_at_once_are_all_kept(bundle):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bundle.engine("sm89").add_gates({str(n): {}}), range(24)))
    assert len(bundle.engine("sm89").gates) == 24


def test_gates_are_not_put_into_a_sidecar_that_is_none_by_now(bundle):
    engines = bundle.engine("sm89")
    write_facts(engines.path, make_facts(bundle.id, gates=[]))
    with pytest.raises(BundleError, match="made again since they were opened"):
        engines.add_gates({"numbers": {"ok": True}})


def test_gates_of_former_engines_are_not_put_beside_new_ones(bundle):
    former = bundle.engine("sm89")
    (bundle.path / "engines/sm89/policy.engine").write_bytes(b"made again")
    facts = make_facts(bundle.id, "sm89", {**ENGINES, "policy": b"made again"})
    write_facts(bundle.path / "engines/sm89", facts)
    with pytest.raises(BundleError, match="made again since they were opened"):
        former.add_gates({"numbers": {"ok": True}})
    assert bundle.engine("sm89").gates == {}, "and they open as before"


def test_gates_that_cannot_be_written_leave_the_old_sidecar(bundle, monkeypatch):
    before = (bundle.path / "engines/sm89" / SIDECAR).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vla_align_ros.contract.files.os.replace", full)
    with pytest.raises(BundleError, match=r"engine.json cannot be written.*No space.*fix: copy"):
        bundle.engine("sm89").add_gates({"numbers": {}})
    assert (bundle.path / "engines/sm89" / SIDECAR).read_bytes() == before
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"]


def test_only_whole_targets_are_listed(bundle):
    for name in ("sm86", "notes", ".sm75.old", "sm75.old"):
        (bundle.path / "engines" / name).mkdir()
    for name in ("notes", ".sm75.old", "sm75.old"):
        (bundle.path / "engines" / name / SIDECAR).write_text("{}")
    assert bundle.engine_targets() == ["sm89"]


def test_the_command_names_the_device_where_only_the_device_can_build():
    assert "--target sm121 --precision int8" in build_command(Path("b"), "sm121", "int8")
    assert "--target device" in build_command(Path("b"), "sm90")


def test_the_command_repeats_every_option_for_the_bundle_where_it_lies_now(bundle):
    made = build_command(
        Path("elsewhere"),
        "sm89",
        "int4",
        block=32,
        options=["memPoolSize=workspace:9M", "a=b c"],
        data=["data/my lab"],
    )
    assert shlex.split(made)[9:] == [
        *("--block", "32", "--trt-option", "memPoolSize=workspace:9M", "--trt-option", "a=b c"),
        *("--data", "data/my lab"),
    ]
    facts = {**bundle.engine("sm89").facts, "precision": "int4"}
    path = bundle.path / "engines/sm89"
    again = shlex.split(EngineSet(path, {**facts, "command": made}).repeat_command("sm86"))
    assert again[3:9] == ["--bundle", str(bundle.path), "--target", "sm86", "--precision", "int4"]
    assert again[9:] == shlex.split(made)[9:]
    for strange in ("rm -r /", "rm -r" + 9 * " /", "vla-align export --trt", 'vla-align "'):
        found = EngineSet(path, {**facts, "command": strange}).repeat_command("sm86")
        assert found == build_command(bundle.path, "sm86", "int4")


def test_opening_engines_needs_no_numpy():
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "import importlib.util as u\n"
        "import vla_align_ros, types\n"
        "contract = types.ModuleType('vla_align_ros.contract')\n"
        "contract.__path__ = [vla_align_ros.__path__[0] + '/contract']\n"
        "sys.modules['vla_align_ros.contract'] = contract\n"
        "import vla_align_ros.contract.engines"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
