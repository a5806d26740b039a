"""The assets are found, checked against what was published, and stand-ins are named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from plate_assets import NO_ASSETS, made_up_assets, real_assets

from vla_align_ros.cli import main
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.sim.put_on_plate import assets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three published files, of which one is altered and one is missing."""
    monkeypatch.delenv(assets.VARIABLE, raising=False)
    lists = tmp_path / "carrot" / assets.OBJECTS
    lists.mkdir(parents=True)
    entry = {"name": "carrot", "bbox": {"min": [0, 0, 0], "max": [1, 2, 3]}, "density": 5}
    (lists / "model_db.json").write_text(json.dumps({"001": entry}))
    (tmp_path / "altered.glb").write_text("not the original")
    (tmp_path / assets.ROBOT).parent.mkdir(parents=True)
    (tmp_path / assets.ROBOT).write_text("<robot/>")
    listing = tmp_path / "listing"
    same = assets.blob_id(lists / "model_db.json")
    names = [f"{same} carrot/{assets.OBJECTS}/model_db.json", f"{'0' * 40} altered.glb"]
    listing.write_text("\n".join([*names, f"{'1' * 40} gone with spaces.glb"]) + "\n")
    monkeypatch.setattr(assets, "read_listing", lambda: _read(listing))
    return tmp_path


def _read(listing: Path) -> dict[str, str]:
    return {line.split(" ", 1)[1]: line[:40] for line in listing.read_text().splitlines()}


def test_altered_and_missing_files_are_told_apart(folder: Path) -> None:
    check = assets.check_assets(folder)
    assert (check.matching, check.missing) == (1, ("gone with spaces.glb",))
    assert check.altered == ("altered.glb",) and not check.complete
    names = list(check.stand_ins())
    assert names[0] == "altered.glb" and names[1].startswith(assets.STAGE)


@pytest.mark.parametrize("name", ["altered.glb", assets.ROBOT, assets.STAGE])
def test_another_file_in_place_of_one_changes_the_digest(folder: Path, name: str) -> None:
    before = assets.check_assets(folder).digest
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("another stand-in")
    assert assets.check_assets(folder).digest != before


def test_the_id_is_git_s(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"some bytes\n")
    answer = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True)
    assert assets.blob_id(path) == answer.stdout.strip()


def test_the_shipped_listing_covers_every_list_of_models() -> None:
    listing = assets.read_listing()
    assert len(listing) == 515 and all(len(blob) == 40 for blob in listing.values())
    for name in (assets.OBJECTS, assets.PLATES, assets.TABLES, *assets.BOARD_FOLDERS):
        assert f"carrot/{name}/model_db.json" in listing


def test_the_folder_is_found_by_option_or_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert assets.find_root(folder) == folder
    with pytest.raises(ConfigurationError, match=assets.VARIABLE):
        assets.find_root(None)
    monkeypatch.setenv(assets.VARIABLE, str(folder))
    assert assets.find_root(None) == folder
    with pytest.raises(ConfigurationError, match="vla-align assets"):
        assets.find_root(folder / "carrot")


def test_the_command_says_where_to_get_them_and_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["assets", "--json"]) == 0
    told = capsys.readouterr().out
    assert "github.com/CognitiveAISystems/BlindVLA" in told and "Nothing to check" in told
    assert json.loads(told.splitlines()[-1])["root"] is None
    assert main(["assets", str(folder), "--json"]) == 1
    told = capsys.readouterr().out
    answer = json.loads(told.splitlines()[-1])
    assert answer["missing"] == ["gone with spaces.glb"]
    assert "not the original, a stand-in: altered.glb" in told


def test_a_broken_list_is_one_clear_error(folder: Path) -> None:
    (folder / "carrot" / assets.OBJECTS / "model_db.json").write_text("{")
    with pytest.raises(ConfigurationError, match="list of models"):
        assets.read_assets(folder)


def test_the_published_lists_are_as_long_as_the_tests_assume() -> None:
    published = real_assets()
    if published is None:
        pytest.skip(NO_ASSETS)
    made_up = made_up_assets()
    for name in ("objects", "plates", "tables"):
        assert len(getattr(published, name)) == len(getattr(made_up, name))
    for folder, boards in made_up.boards.items():
        assert len(published.boards[folder]) == len(boards)
    ours, theirs = (
        [(board.words["color"], board.words["shape"]) for board in lists.boards["more_shape"]]
        for lists in (made_up, published)
    )
    assert ours == theirs
    assert assets.check_assets(published.root).complete
