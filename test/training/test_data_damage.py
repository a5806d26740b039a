"""Damaged videos are named by episode; asked for, training goes on without them and counts them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lab_data import LENGTHS, encode, make_episodes, write_v2, write_v3
from test_data_lab import TOP, open_data
from tiny_data import write_dataset

from training.data.health import check_videos
from training.data.reader import LeRobotReader
from training.data.schema import CHUNK_KEY
from vla_align_ros.cli import main
from vla_align_ros.errors import DataError

VIDEO = "videos/chunk-000/observation.images.top/episode_00000{}.mp4"


def check_top(root: Path, **options: Any) -> dict[int, str]:
    return check_videos(LeRobotReader(root), "observation.images.top", **options)


def damage(root: Path, kind: str) -> None:
    path = root / VIDEO.format(1)
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "missing":
        path.unlink()
    elif kind == "short":
        encode(path, make_episodes()[1].images["top"][:6])
    elif kind == "hole":  # as a failed download leaves; the file's table of contents is whole
        start = content.index(b"mdat") + 4
        size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
        path.write_bytes(
            content[: start + size // 2] + bytes(size // 4) + content[start:][size * 3 // 4 :]
        )


@pytest.mark.parametrize("decode", ["once", "online"])
@pytest.mark.parametrize("kind", ["cut", "missing", "short"])
def test_a_damaged_video_names_its_episode_and_can_be_skipped(
    tmp_path: Path, kind: str, decode: Any
) -> None:
    root = write_v2(tmp_path / "some", make_episodes())
    # The same bytes: encoded twice, a picture now and then differs by a few levels.
    intact = shutil.copytree(root, tmp_path / "intact")
    damage(root, kind)
    config = replace(TOP, decode=decode)
    whole = open_data([intact], config)
    with pytest.raises(DataError, match=r"damaged videos: got episode 1 \(.*--skip-broken"):
        open_data([root], config)
    for _ in range(2):  # the second time from what was remembered
        data = open_data([root], replace(config, skip_broken=True))
        assert list(data.broken) == [1]
        used = np.concatenate([data.indices("train"), data.indices("val")])
        assert set(data.episode[used]) == {0, 2, 3} and len(used) == 25 - LENGTHS[1]
        assert not data.images(np.arange(5, 14)).any()  # black for caches of features
        np.testing.assert_array_equal(data.images(used), whole.images(used))
    with pytest.raises(DataError, match="damaged videos: got episode 1"):
        open_data([root], config)


def test_a_file_that_is_cut_short_spoils_only_its_later_episodes(tmp_path: Path) -> None:
    root = write_v3(tmp_path, make_episodes(), video_borders=(0,))
    path = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    frames = np.concatenate([episode.images["top"] for episode in make_episodes()])
    encode(path, frames[:16])  # episodes 0 and 1 are whole, 2 begins
    for decode in ("once", "online"):
        config = replace(TOP, decode=decode, skip_broken=True)
        data = open_data([root], config)
        assert list(data.broken) == [2, 3]
        assert "2 of 4 frames" in data.broken[2]


def test_damage_inside_a_file_is_found_by_decoding(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes(), gop=30)
    damage(root, "hole")
    assert check_top(root) == {}  # by its packets the file is whole
    data = open_data([root], replace(TOP, decode="online"))
    with pytest.raises(DataError, match=r"Episode 1 of .* cannot be decoded.*vla-align data check"):
        data.images(np.arange(5, 14))
    assert data.images(np.arange(5)).any()  # the others can still be read
    found = check_top(root, decode=True)
    assert list(found) == [1]
    assert check_top(root) == found  # and the quick check knows it from now on
    skipping = open_data([root], replace(TOP, decode="online", skip_broken=True))
    assert list(skipping.broken) == [1]


@pytest.mark.parametrize("decode", ["once", "online"])
def test_a_video_that_was_mended_is_used_again(tmp_path: Path, decode: Any) -> None:
    root = write_v2(tmp_path, make_episodes(), gop=30)
    config = replace(TOP, decode=decode, skip_broken=True)
    path = root / VIDEO.format(1)
    content = path.read_bytes()
    damage(root, "hole")  # as long as the whole file
    assert list(check_top(root, decode=True)) == [1]
    data = open_data([root], config)
    assert list(data.broken) == [1] and not data.images(np.arange(5, 14)).any()
    path.write_bytes(content)
    later_s = path.stat().st_mtime + 60.0
    os.utime(path, (later_s, later_s))
    assert check_top(root) == {} == check_top(root, decode=True)
    mended = open_data([root], replace(config, skip_broken=False))
    assert not mended.broken and mended.images(np.arange(5, 14)).any(axis=(1, 2, 3)).all()
    assert mended.pictures_key(0) != data.pictures_key(0)  # features were of black pictures


@pytest.mark.parametrize("decode", ["once", "online"])
def test_a_damaged_packet_spoils_its_own_episode_alone(tmp_path: Path, decode: Any) -> None:
    import av

    root = write_v3(tmp_path, make_episodes(), video_borders=(0,), codec="libsvtav1")
    whole = open_data([root], replace(TOP, decode="online"))
    path = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.pts is not None]
    content, bad = bytearray(path.read_bytes()), packets[LENGTHS[0] + 3]
    assert bad.pos is not None
    content[bad.pos : bad.pos + bad.size] = b"\xff" * bad.size
    path.write_bytes(content)
    assert list(check_top(root, decode=True)) == [1]
    data = open_data([root], replace(TOP, decode=decode, skip_broken=True))
    assert list(data.broken) == [1]
    used = np.concatenate([data.indices("train"), data.indices("val")])
    np.testing.assert_array_equal(data.images(used), whole.images(used))


def test_damaged_pictures_in_tables_are_named_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = write_v2(tmp_path, make_episodes(), pictures=True)
    path = root / "data/chunk-000/episode_000003.parquet"
    table = pq.read_table(path)
    cells = table["observation.images.top"].to_pylist()
    cells[2] = {"bytes": cells[2]["bytes"][:60], "path": None}
    place = table.column_names.index("observation.images.top")
    pq.write_table(table.set_column(place, "observation.images.top", pa.array(cells)), path)
    with pytest.raises(DataError, match=r"damaged videos: got episode 3 \(2 of 7 frames"):
        open_data([root])
    online = open_data([root], replace(TOP, decode="online"))
    with pytest.raises(DataError, match="picture in episode 3"):
        online.images(np.array([20]))
    data = open_data([root], replace(TOP, skip_broken=True))
    assert list(data.broken) == [3]
    assert check_top(root, decode=True) == {
        3: data.broken[3],
    }


def test_the_command_lists_damage_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v2(tmp_path, make_episodes())
    assert main(["data", "check", str(root), "--camera", "top", "--json"]) == 0
    damage(root, "cut")
    capsys.readouterr()
    assert main(["data", "check", str(root), "--camera", "top", "--json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("episode 1: ")
    assert list(json.loads(lines[-1])["broken"]) == ["1"]


def test_the_command_lists_numbers_that_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = make_episodes()
    episodes[1].action[1, 0] = np.nan
    episodes[1].state[:2, 0] = np.inf
    root = write_v2(tmp_path, episodes)
    assert main(["data", "check", str(root), "--camera", "top", "--json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    told = "action is not finite in 1 frames, observation.state is not finite in 2 frames"
    assert json.loads(lines[-1])["broken"] == {"1": told}
    damage(root, "cut")
    main(["data", "check", str(root), "--camera", "top", "--json"])
    broken = json.loads(capsys.readouterr().out.splitlines()[-1])["broken"]
    assert list(broken) == ["1"] and broken["1"].endswith(f"; {told}")


def test_the_command_looks_at_ready_made_chunks_as_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, 3)
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table[CHUNK_KEY].to_pylist()
    rows[0][3][1] = float("nan")
    place = table.column_names.index(CHUNK_KEY)
    column = pa.array(rows, type=table[CHUNK_KEY].type)
    pq.write_table(table.set_column(place, CHUNK_KEY, column), path)
    assert main(["data", "check", str(tmp_path), "--quick"]) == 1
    assert "episode 0: action_chunk is not finite in 1 frames" in capsys.readouterr().out
