"""Caches that may be damaged: what is not whole is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.files import read_sealed, seal


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
