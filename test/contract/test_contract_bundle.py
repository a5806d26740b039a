"""A bundle is written whole or not at all, and opened only if not a byte of it was changed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_policy import make_bundle, make_golden, make_graph, make_processor

from vla_align_ros.contract import manifest as manifest_module
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.errors import BundleError, ContractError

FILES = [
    "golden.npz",
    "model/policy.onnx",
    "processor.json",
    "stats.json",
    "tokenizer/tokenizer.json",
]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original.path, tmp_path / "bundle"))


def edit_manifest(folder: Path, change) -> None:
    """Change the manifest as someone would who also knows how to make its hashes fit."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    if isinstance(data.get("files"), dict) and all(
        isinstance(entry, dict) and "sha256" in entry for entry in data["files"].values()
    ):
        with contextlib.suppress(UnicodeEncodeError):  # half of a character in a hash
            data["id"] = manifest_module._compute_id(data["files"])
    data["manifest_sha256"] = manifest_module._hash_manifest(data)
    path.write_text(json.dumps(data))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Change a file together with its hash in the manifest."""
    (folder / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_manifest(folder, lambda data: data["files"].update({name: entry}))


def test_a_bundle_opens_with_all_that_was_written(original):
    bundle = Bundle.open(original.path)
    assert sorted(bundle.manifest["files"]) == FILES
    assert bundle.id == original.id and len(bundle.id) == 64 and bundle.short_id == bundle.id[:12]
    assert bundle.processor.to_dict() == make_processor().to_dict()
    assert bundle.spec == make_processor().spec
    assert bundle.graph_path("policy").read_bytes()[:1] == b"\x08"
    golden = make_golden(make_processor())
    for name, array in bundle.golden().items():
        np.testing.assert_array_equal(array, golden[name])
    assert bundle.manifest["provenance"]["recipe"] == "tiny"
    assert bundle.manifest["graphs"]["policy"]["inputs"][0] == {
        "name": "pixel_values",
        "dtype": "float32",
        "shape": [1, 3, 14, 14],
    }


def test_the_same_content_has_the_same_id_and_other_content_another(original, tmp_path):
    assert make_bundle(tmp_path).id == original.id
    (tmp_path / "other").mkdir()
    assert make_bundle(tmp_path / "other", noise=0.1).id != original.id


def test_the_id_is_the_hash_of_the_files_as_documented(original):
    lines = [
        f"{name} {hashlib.sha256((original.path / name).read_bytes()).hexdigest()}\n"
        for name in FILES
    ]
    assert original.id == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_bundle_may_be_reached_through_a_link_and_moved(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert Bundle.open(tmp_path / "link").path == folder
    moved = folder.rename(tmp_path / "elsewhere")
    assert Bundle.open(str(moved)).graph_path().exists()


def test_a_place_that_one_may_not_look_at_is_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a" * 300, "a\0b", "loop"):
        with pytest.raises(BundleError, match="cannot be opened"):
            Bundle.open(tmp_path / name)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)  # a folder that may be listed, and no more
    with pytest.raises(BundleError, match=r"cannot be read.*Permission denied"):
        manifest_module.list_files(folder)


def test_a_folder_that_cannot_be_listed_and_a_file_that_cannot_be_read_are_refused(
    folder, monkeypatch
):
    def refusing(call, name):
        def refuse(path, *arguments):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments)

        return refuse

    (folder / "hidden").mkdir()
    with (
        monkeypatch.context() as patch,
        pytest.raises(BundleError, match=r"cannot be read.*hidden"),
    ):
        patch.setattr(os, "scandir", refusing(os.scandir, "hidden"))
        Bundle.open(folder)
    monkeypatch.setattr(os, "open", refusing(os.open, "stats.json"))
    with pytest.raises(BundleError, match=r"cannot read stats\.json: got .*Permission denied"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_and_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"missing .*{name}"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest_is_refused(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="no policy bundle"):
        Bundle.open(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_anywhere_is_refused(folder, name, place, change):
    path = folder / name
    content = bytearray(path.read_bytes())
    index = int(place * len(content))
    content[index] ^= change
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        Bundle.open(folder)
    content[index] ^= change
    path.write_bytes(content)
    Bundle.open(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_of_the_manifest_is_refused_or_means_the_same(folder, place, change):
    path = folder / "manifest.json"
    original = path.read_bytes()
    content = bytearray(original)
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    try:
        with pytest.raises(BundleError):
            Bundle.open(folder)
    except pytest.fail.Exception:
        assert json.loads(content) == json.loads(original), "only blanks may differ"
    path.write_bytes(original)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(folder, name, kept):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(BundleError):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("extra.bin", "model/other.onnx", "conftest.py", ".hidden", "a/b"),
        *("engines", "engines.bin", "engines_old/a", "model/engines/a"),
    ],
)
def test_an_extra_file_is_refused_and_named(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"extra .*{name}"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_is_refused_even_to_the_same_bytes(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "away")
    (folder / name).symlink_to(tmp_path / "away")
    with pytest.raises(BundleError, match="other than plain files"):
        Bundle.open(folder)


def test_a_link_in_place_of_a_folder_a_dangling_link_and_a_pipe_are_refused(folder, tmp_path):
    (folder / "model").rename(tmp_path / "away")
    (folder / "model").symlink_to(tmp_path / "away")
    with pytest.raises(BundleError, match="other than plain files"):
        Bundle.open(folder)
    (folder / "model").unlink()
    (tmp_path / "away").rename(folder / "model")
    (folder / "report.json").symlink_to("/nowhere")
    with pytest.raises(BundleError, match="other than plain files"):
        Bundle.open(folder)
    (folder / "report.json").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(BundleError, match="other than plain files"):
        Bundle.open(folder)
    (folder / "pipe").unlink()
    Bundle.open(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/hostname",
        "model/../../secret",
        "model//x",
        "./x",
        "a\\b",
        "",
        "a\0b",
        "x/",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(folder, name):
    (folder.parent / "secret").write_bytes(b"")
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    edit_manifest(folder, lambda data: data["files"].update({name: entry}))
    with pytest.raises(BundleError, match="no bundle may hold"):
        Bundle.open(folder)


def test_a_pickled_array_is_refused_though_its_hash_fits(folder):
    arrays = make_golden(make_processor())
    arrays["instruction"] = arrays["instruction"].astype(object)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    replace_file(folder, "golden.npz", stream.getvalue())
    with pytest.raises(BundleError, match="without pickle"):
        Bundle.open(folder)


def test_opening_runs_nothing_that_a_hostile_bundle_brings(folder, tmp_path):
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(touched),))

    trap = pickle.dumps(Trap())
    for name in FILES:
        shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        replace_file(tmp_path / "copy", name, trap)
        try:
            opened = Bundle.open(tmp_path / "copy")
        except BundleError:
            continue
        assert name == "model/policy.onnx", "the graph is only read by a backend"
        assert opened.graph_path().read_bytes() == trap
    assert not touched.exists()
    pickle.loads(trap)
    assert touched.exists(), "the trap itself must work, or this test proves nothing"


@pytest.mark.parametrize("name", ["policy", "other"])  # one that acts, and one that does not
@pytest.mark.parametrize("place", ["../../outside.bin", "../report.json", "policy.onnx.data"])
def test_a_graph_with_weights_that_no_hash_covers_is_refused(folder, place, name):
    (folder.parent / "outside.bin").write_bytes(bytes(4))
    (folder / "report.json").write_text("{}")
    graph = onnx.load(folder / "model/policy.onnx")
    weights = graph.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    path = f"model/{name}.onnx"
    replace_file(folder, path, graph.SerializeToString())
    edit_manifest(folder, lambda data: data["graphs"].setdefault(name, {"path": path}))
    with pytest.raises(BundleError, match="does not vouch for"):
        Bundle.open(folder)


def test_opening_imports_no_engine_no_torch_and_no_ros(folder):
    code = (
        "import sys; from vla_align_ros.contract.bundle import Bundle; Bundle.open(sys.argv[1]);"
        "print(sorted({'torch', 'rclpy', 'onnxruntime', 'onnx', 'mujoco'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_folders_of_other_programs_are_refused(tmp_path):
    with pytest.raises(BundleError, match="no folder"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="no policy bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"no policy bundle: got \['config.json'\]"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(BundleError, match="another format"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(schema_version=2),
        lambda data: data.update(format="other"),
        lambda data: data.update(extra=1),
        lambda data: data.pop("provenance"),
        lambda data: data.update(provenance={}),
        lambda data: data.update(provenance=[]),
        lambda data: data.update(files=[]),
        lambda data: data["files"].update({"stats.json": "sha"}),
        lambda data: data["files"]["stats.json"].update(bytes=1),
        lambda data: data["files"]["stats.json"].pop("bytes"),
        lambda data: data["files"].pop("stats.json"),
        lambda data: data.update(spec_fingerprint="0" * 64),
        lambda data: data["processor"]["spec"]["action"].update(rate_hz=50.0),
        lambda data: data.update(graphs={}),
        lambda data: data.update(graphs=[]),
        lambda data: data["graphs"]["policy"].update(path="../x.onnx"),
        lambda data: data["graphs"]["policy"].update(path=["model/policy.onnx"]),
        lambda data: data["graphs"]["policy"].update(inputs=[]),
        lambda data: data["graphs"].update(other={"path": "model/other.onnx"}),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_refused_though_its_hash_fits(folder, change):
    edit_manifest(folder, change)
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_an_id_that_is_not_that_of_the_files_is_refused_though_the_hash_fits(folder):
    """By its id a bundle's proof and its engines are known as its own."""
    data = json.loads((folder / "manifest.json").read_text())
    data["id"] = "0" * 64
    data["manifest_sha256"] = manifest_module._hash_manifest(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="manifest's id does not follow from the files"):
        Bundle.open(folder)


@pytest.mark.parametrize("path", ["../policy.onnx", "engines/policy.onnx"])
@pytest.mark.parametrize("name", ["policy", "other"])
def test_a_graph_that_no_hash_covers_is_refused_though_it_is_there(folder, path, name):
    (folder / "engines").mkdir()
    shutil.copy(folder / "model/policy.onnx", folder / path)
    edit_manifest(folder, lambda data: data["graphs"].setdefault(name, {}).update(path=path))
    with pytest.raises(BundleError, match="is not among the files"):
        Bundle.open(folder)


def test_a_manifest_means_the_same_in_whatever_order_its_files_stand(folder, original):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "files": dict(reversed(data["files"].items()))}))
    assert Bundle.open(folder).id == original.id


def find_places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a JSON document."""
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        found += [place for key, one in inner for place in find_places(one, (*path, key))]
    return found


HOSTILE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**400,
        1e308,
        -1e308,
        5e-324,
        "",
        "x",
        "\0",
        "\ud800",
        "../x",
        [],
        [[]],
        {},
        {"": []},
    ]
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), odd=HOSTILE)
@pytest.mark.parametrize("name", ["manifest.json", "processor.json", "stats.json"])
def test_whatever_stands_anywhere_in_its_json_only_bundle_errors_come_out(folder, name, data, odd):
    before = {file: (folder / file).read_bytes() for file in ("manifest.json", name)}
    document = json.loads(before[name])
    *way, last = data.draw(st.sampled_from(find_places(document)))
    target = document
    for key in way:
        target = target[key]
    target[last] = odd
    if name == "manifest.json":
        edit_manifest(folder, lambda manifest: (manifest.clear(), manifest.update(document)))
    else:
        replace_file(folder, name, json.dumps(document).encode())
    try:
        Bundle.open(folder)
    except BundleError as error:
        str(error).encode()  # as whoever logs it does
    finally:
        for file, content in before.items():
            (folder / file).write_bytes(content)


def test_a_processor_of_another_policy_is_refused_though_its_hash_fits(folder):
    data = json.loads((folder / "processor.json").read_text())
    data["image_transform"]["size"] = 16
    replace_file(folder, "processor.json", json.dumps(data).encode())
    with pytest.raises(BundleError, match="does not follow from the files"):
        Bundle.open(folder)
    replace_file(folder, "processor.json", b"{}")
    with pytest.raises(BundleError, match="processor cannot be used"):
        Bundle.open(folder)


def test_an_unknown_graph_is_refused(original):
    with pytest.raises(BundleError, match=r"got 'decode'; expected \['policy'\]"):
        original.graph_path("decode")


def test_reports_are_kept_beside_the_id_and_merged_by_section(folder):
    bundle = Bundle.open(folder)
    assert bundle.report() == {}
    bundle.add_report({"verify": {"ok": True}})
    bundle.add_report({"evaluate": {"successes": 3}})
    bundle.add_report({"verify": {"ok": False}})
    again = Bundle.open(folder)
    assert again.id == bundle.id
    assert again.report() == {
        "bundle_id": bundle.id,
        "verify": {"ok": False},
        "evaluate": {"successes": 3},
    }
    assert sorted(os.listdir(folder.parent)) == ["bundle"], "no temporary file is left"


def test_no_section_of_a_report_can_say_that_it_is_another_bundles(folder):
    bundle = Bundle.open(folder)
    bundle.add_report({"bundle_id": "other", "verify": {"ok": True}})
    assert bundle.report() == {"bundle_id": bundle.id, "verify": {"ok": True}}


@pytest.mark.parametrize("content", ['{"bundle_id": "other"}', "{}"])
def test_a_report_of_another_bundle_or_of_none_is_refused(folder, content):
    bundle = Bundle.open(folder)
    (folder / "report.json").write_text(content)
    for call in (bundle.report, lambda: bundle.add_report({"verify": {}})):
        with pytest.raises(BundleError, match="another bundle"):
            call()


def test_a_report_that_cannot_be_written_says_what_to_do(folder):
    bundle = Bundle.open(folder.rename(folder.with_name(250 * "b")))  # no room for a longer name
    with pytest.raises(BundleError, match=r"report.json cannot be written.*fix: copy the bundle"):
        bundle.add_report({"verify": {"ok": True}})
    assert bundle.report() == {} and os.listdir(folder.parent) == [bundle.path.name]


def test_a_report_that_is_no_json_leaves_the_old_one(folder):
    bundle = Bundle.open(folder)
    bundle.add_report({"verify": {"ok": True}})
    with pytest.raises(ContractError, match="no exact JSON form"):
        bundle.add_report({"verify": float("nan")})
    assert bundle.report()["verify"] == {"ok": True}


def test_a_bundle_opens_while_its_report_is_written_and_others_may_read_it(folder, monkeypatch):
    opened, replace = [], os.replace

    def open_and_replace(source: object, target: object) -> None:
        opened.append(Bundle.open(folder).id)
        replace(source, target)

    monkeypatch.setattr(os, "replace", open_and_replace)
    bundle = Bundle.open(folder)
    bundle.add_report({"verify": {"ok": True}})
    assert opened == [bundle.id]
    assert (folder / "report.json").stat().st_mode & 0o777 == 0o644


def write(folder: Path, **changes) -> Bundle:
    processor = make_processor()
    arguments = {
        "dest": folder / "bundle",
        "processor": processor,
        "graphs": {"policy": make_graph(folder / "policy.onnx")},
        "golden": make_golden(processor),
        "provenance": {"precision": "fp32"},
    }
    arguments.update(changes)
    return write_bundle(arguments.pop("dest"), **arguments)


@pytest.mark.parametrize("place", ["file/bundle", 300 * "a"])
def test_a_bundle_that_can_lie_nowhere_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"):
        write(tmp_path, dest=tmp_path / place)


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs": {}},
        {"graphs": {"policy": "/nowhere/policy.onnx"}},
        {"golden": {}},
        {"provenance": {}},
        {"provenance": {"precision": "fp32", "when": object()}},
        {"provenance": {"precision": "fp32", "loss": float("nan")}},
        {"report": {"verify": object()}},
    ],
)
def test_a_failed_write_leaves_nothing_behind(tmp_path, changes):
    with pytest.raises((BundleError, ContractError)):
        write(tmp_path, **changes)
    assert set(os.listdir(tmp_path)) <= {"policy.onnx"}


def test_what_a_robot_would_refuse_is_not_written(tmp_path):
    graph = onnx.load(make_graph(tmp_path / "odd.onnx"))
    weights = graph.graph.initializer[0]
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="elsewhere.bin")
    (tmp_path / "odd.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError, match="does not vouch for"):
        write(tmp_path, graphs={"policy": tmp_path / "odd.onnx"})
    assert sorted(os.listdir(tmp_path)) == ["odd.onnx", "policy.onnx"]


@pytest.mark.parametrize("name", ["../x", "../../x", "X", "a-b", "1", "", "a\n"])
def test_a_graph_is_named_by_a_word_that_leads_nowhere_else(tmp_path, name):
    graph = make_graph(tmp_path / "policy.onnx")
    with pytest.raises(BundleError, match="wrong graphs"):
        write(tmp_path, graphs={"policy": graph, name: graph})
    assert os.listdir(tmp_path) == ["policy.onnx"]


def test_the_disk_has_all_of_a_bundle_before_it_has_its_name(tmp_path, monkeypatch):
    synced, at_the_move = set(), []
    fsync, rename = os.fsync, os.rename

    def note_sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def note_move(source: Path, target: Path) -> None:
        missing = {source, *source.rglob("*")} - synced
        at_the_move.append((source.parent, missing, tmp_path in synced))
        rename(source, target)

    (tmp_path / "policy.onnx.data").write_bytes(b"weights")
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_move)
    write(tmp_path)
    assert at_the_move == [(tmp_path, set(), False)]
    assert tmp_path in synced, "and then the name, too"


def test_a_write_that_dies_at_the_last_moment_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(BundleError, match="No space left"):
        write(tmp_path)
    assert os.listdir(tmp_path) == ["policy.onnx"]


@pytest.mark.parametrize(
    "occupy", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/nowhere")]
)
def test_what_stands_in_the_way_is_never_overwritten(tmp_path, occupy):
    occupy(tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists already"):
        write(tmp_path)


def test_a_report_can_be_written_along_and_parents_are_made(tmp_path):
    bundle = write(
        tmp_path, dest=tmp_path / "deep" / "er" / "bundle", report={"evaluate": {"n": 1}}
    )
    assert Bundle.open(bundle.path).report()["evaluate"] == {"n": 1}
    assert (bundle.path.stat().st_mode & 0o777) == 0o755


def test_weights_beside_a_graph_are_taken_along(tmp_path):
    graph = make_graph(tmp_path / "export.onnx")
    (tmp_path / "export.onnx.data").write_bytes(b"weights")
    bundle = write(tmp_path, graphs={"policy": graph})
    assert (bundle.path / "model" / "export.onnx.data").read_bytes() == b"weights"
    assert "model/export.onnx.data" in bundle.manifest["files"]


def test_weights_of_two_graphs_never_overwrite_each_other(tmp_path):
    graphs = {}
    for name in ("policy", "other"):
        (tmp_path / name).mkdir()
        graphs[name] = make_graph(tmp_path / name / "export.onnx")
        (tmp_path / name / "export.onnx.data").write_bytes(name.encode())
    with pytest.raises(BundleError, match=r"share a file name: got export\.onnx\.data"):
        write(tmp_path, graphs=graphs)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("link", [False, True])
def test_a_graph_is_the_same_file_only_on_demand_even_if_a_link_leads_to_it(tmp_path, link):
    graph = make_graph(tmp_path / "export.onnx")
    (tmp_path / "latest.onnx").symlink_to(graph)
    bundle = write(tmp_path, graphs={"policy": tmp_path / "latest.onnx"}, link=link)
    assert bundle.graph_path().read_bytes() == graph.read_bytes()
    assert bundle.graph_path().samefile(graph) is link


def test_a_report_that_two_change_at_once_keeps_what_both_put_there(folder):
    def add(number):
        Bundle.open(folder).change_report(
            lambda report: {"proofs": {**report.get("proofs", {}), str(number): 1}}
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert len(Bundle.open(folder).report()["proofs"]) == 24


# -- limits that a policy asks for --------------------------------------------------------------
LIMITS = {"max_linear_m_s": 0.1, "max_linear_m_s2": 0.5, "max_linear_m_s3": 5.0}


def test_limits_are_kept_in_the_manifest_and_most_bundles_have_none(original, tmp_path):
    assert original.limits == {} and "limits" not in original.manifest
    (tmp_path / "limited").mkdir()
    bundle = make_bundle(tmp_path / "limited", limits=LIMITS)
    assert Bundle.open(bundle.path).limits == LIMITS
    assert bundle.id == original.id, "the files are the same"
    edited = json.loads((bundle.path / "manifest.json").read_text())
    edited["limits"]["max_linear_m_s"] = 9.0
    (bundle.path / "manifest.json").write_text(json.dumps(edited))
    with pytest.raises(BundleError, match="altered"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_speed": 1.0}, "max_linear_m_s"),
        ({"max_linear_m_s": 0.0}, "above 0"),
        ({"max_linear_m_s": True}, "above 0"),
        ({"max_linear_m_s": 10**400}, "a finite number"),
        ({"max_linear_m_s": "fast"}, "above 0"),
        ({"max_angular_rad_s3": 1.0}, "max_angular_rad_s2 beside it"),
        ([0.1], "an object"),
    ],
)
def test_limits_that_are_none_are_refused_when_written_and_when_read(folder, limits, says):
    (folder.parent / "limited").mkdir()
    with pytest.raises(ContractError, match=says):
        make_bundle(folder.parent / "limited", limits=limits)
    edit_manifest(folder, lambda data: data.update(limits=limits))
    with pytest.raises(BundleError, match=says):
        Bundle.open(folder)
