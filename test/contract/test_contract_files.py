"""Caches that others may damage or reach, files that are replaced in one step, strict JSON."""

from __future__ import annotations

import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.files import (
    MAX_JSON_BYTES,
    claim_folder,
    hash_file,
    lock_folder,
    read_json_object,
    read_sealed,
    readable_json,
    replace_durably,
    require_keys,
    seal,
    user_cache,
)
from vla_align_ros.errors import BundleError, ContractError


@given(content=st.binary(max_size=200))
def test_what_was_sealed_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "cache"
    path.write_bytes(seal(content))
    assert read_sealed(path) == content


@given(content=st.binary(min_size=1, max_size=200), data=st.data())
def test_what_is_cut_or_changed_is_nothing(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path, sealed = tmp_path_factory.mktemp("sealed") / "cache", bytearray(seal(content))
    place = data.draw(st.integers(0, len(sealed) - 1))
    if data.draw(st.booleans()):
        sealed[place] ^= data.draw(st.integers(1, 255))
    else:
        del sealed[place:]
    path.write_bytes(bytes(sealed))
    assert read_sealed(path) == b""


def test_json_for_people_is_sorted_and_ends_its_line() -> None:
    assert readable_json({"b": 1, "a": [2]}) == b'{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'


def test_a_missing_file_is_nothing(tmp_path: Path) -> None:
    assert read_sealed(tmp_path / "none") == b""


def test_a_folder_is_made_for_the_user_alone_and_refused_once_others_can_reach_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "above" / "own"
    claim_folder(folder)
    claim_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o701)
    with pytest.raises(PermissionError, match="chmod 700"):
        claim_folder(folder)


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_folder(tmp_path / "own")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(PermissionError, match="not the user's alone"):
        claim_folder(tmp_path / "own")


def test_where_folders_cannot_be_locked_one_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = os.listdir("/proc/self/fd")
    with lock_folder(tmp_path):
        (tmp_path / "file").touch()
    assert os.listdir("/proc/self/fd") == before, "and leaves nothing open"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path, workplace = tmp_path / "file", tmp_path / "workplace"
    workplace.mkdir()
    replace_durably(path, b"first", workplace)
    assert path.read_bytes() == b"first" and path.stat().st_mode & 0o777 == 0o600
    replace_durably(path, b"second", workplace, mode=0o644)
    assert path.read_bytes() == b"second" and path.stat().st_mode & 0o777 == 0o644
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_durably(path, b"third", workplace)
    assert path.is_dir() and not list(workplace.iterdir())


def test_the_disk_has_a_files_content_before_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, workplace, events = tmp_path / "file", tmp_path / "workplace", list[object]()
    workplace.mkdir()
    sync, move = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(place.read_bytes() if place.is_file() else place)
        sync(descriptor)

    def note_move(source: str, target: Path) -> None:
        events.append("moved")
        move(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_move)
    replace_durably(path, b"content", workplace)
    assert events == [b"content", "moved", tmp_path]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_that_is_not_finite_is_no_json(tmp_path: Path, number: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": [{{"b": {number}}}]}}')
    with pytest.raises(BundleError, match=r"cannot read x\.json"):
        read_json_object(path, BundleError)


@pytest.mark.parametrize("asked", ["", "cache", "./cache", "~/cache", None])
def test_a_base_folder_that_is_not_absolute_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if asked is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", asked)
    assert user_cache("engines") == tmp_path / ".cache" / "vla_align_ros" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert user_cache("engines") == tmp_path / "other" / "vla_align_ros" / "engines"


def test_json_is_read_as_deep_as_it_can_be_hashed_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"

    def write(levels: int) -> None:
        lists = levels - 1
        path.write_text('{"a": ' + "[" * lists + "]" * lists + "}")

    write(64)
    assert set(read_json_object(path)) == {"a"}
    for levels in (65, *range(900, 1000), 10**5):  # with hundreds Python fails here or there
        write(levels)
        with pytest.raises(BundleError, match=r"cannot read x\.json"):
            read_json_object(path, BundleError)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '{"b": [{"a": 1, "a": 2}]}', "[]", "3", '"a"']
)
def test_what_is_no_object_or_has_a_key_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=r"cannot read x\.json"):
        read_json_object(path, BundleError)


def test_json_that_would_fill_the_memory_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"{}".ljust(MAX_JSON_BYTES))
    assert read_json_object(path) == {}
    path.write_bytes(b"{}".ljust(MAX_JSON_BYTES + 1))
    with pytest.raises(BundleError, match=f"more than {MAX_JSON_BYTES} bytes"):
        read_json_object(path, BundleError)


@pytest.mark.parametrize("data", [{"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}, ["a", "b"]])
def test_keys_are_exactly_those_that_are_wanted(data: object) -> None:
    assert require_keys({"b": 2, "a": 1}, ("a", "b"), "it") == {"a": 1, "b": 2}
    with pytest.raises(ContractError, match=r"expected \['a', 'b'\]"):
        require_keys(data, ("a", "b"), "it")


def test_a_file_of_several_blocks_is_hashed_whole_and_counted(tmp_path: Path) -> None:
    content = bytes(range(256)) * (5 << 12)  # 5 MiB
    (tmp_path / "file").write_bytes(content + b"end")
    found = hash_file(tmp_path / "file")
    assert found == (hashlib.sha256(content + b"end").hexdigest(), len(content) + 3)


def test_nothing_but_a_regular_file_is_hashed_and_a_pipe_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "link", tmp_path, Path(os.devnull)):
        with pytest.raises(OSError):
            hash_file(path)
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(hash_file, tmp_path / "pipe")
        in_time = wait([hashing], timeout=10.0).done
        os.close(os.open(tmp_path / "pipe", os.O_RDWR))  # lets go of whoever waits
    assert in_time and isinstance(hashing.exception(), OSError)
