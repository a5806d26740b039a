"""Caches that others may damage or reach, files that are replaced in one step, strict JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.files import (
    claim_folder,
    read_json_object,
    read_sealed,
    replace_durably,
    seal,
    user_cache,
)
from vla_align_ros.errors import BundleError


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
