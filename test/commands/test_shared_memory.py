"""The doctor tells what killed processes left in shared memory, and leaves alone what is in use."""

from __future__ import annotations

import fcntl

import pytest

from vla_align_ros.commands.shared_memory import check_left_overs, check_room, find_left_overs


def test_shared_memory_has_room_here():
    assert check_room().found.endswith("MiB free")


def test_an_empty_folder_holds_no_left_overs(tmp_path):
    assert check_left_overs(tmp_path).ok
    assert check_left_overs(tmp_path / "none").ok, "no shared memory at all is check_room's finding"


@pytest.mark.parametrize(
    ("name", "kind", "lock"),
    [
        ("fastrtps_216d5543689b2b5f", "_el", fcntl.LOCK_EX),
        ("fastrtps_port7411", "_el", fcntl.LOCK_EX),
        ("fastdds_port7400", "_sl", fcntl.LOCK_SH),
    ],
)
def test_a_segment_is_left_over_as_soon_as_nobody_holds_its_lock(tmp_path, name, kind, lock):
    (tmp_path / name).write_bytes(bytes(3 << 20))
    (tmp_path / "another").touch()
    with (tmp_path / f"{name}{kind}").open("wb") as held:
        fcntl.flock(held, lock)
        assert check_left_overs(tmp_path).ok
    assert find_left_overs(tmp_path) == [tmp_path / name]
    finding = check_left_overs(tmp_path)
    assert not finding.ok and "1 segments" in finding.found and "3.0 MiB" in finding.found
    assert f"rm -f {tmp_path}/*fastrtps_*" in finding.fix


def test_a_lock_without_its_segment_counts_too(tmp_path):
    (tmp_path / "fastrtps_port7425_el").touch()
    assert not check_left_overs(tmp_path).ok


def test_looking_takes_nothing_away_and_holds_no_lock(tmp_path):
    lock = tmp_path / "fastrtps_port7411_el"
    lock.touch()
    find_left_overs(tmp_path)
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
