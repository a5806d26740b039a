"""Labelled pictures: a folder of one's own, the drawings in the wheel, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sight import write_pictures

from training.sight import load_pictures
from training.sight.drawings import LABELS, find_drawings, list_drawings, render_drawing
from training.sight.pictures import PICTURE_PX, pick_evenly, place
from vla_align_ros.errors import ConfigurationError

needs_drawings = pytest.mark.skipif(
    find_drawings() is None, reason="needs the extra [sight]: the drawings in the wheel emosvg"
)


def test_a_folder_gives_labels_things_and_views(tmp_path: Path) -> None:
    known = load_pictures(str(write_pictures(tmp_path)), 4, 3)
    assert known is not None
    assert known.images.shape == (2 * 4 * 3, PICTURE_PX, PICTURE_PX, 3)
    assert known.names == ("box", "disc")
    assert np.bincount(known.labels).tolist() == [12, 12]
    assert np.bincount(known.things).tolist() == [3] * 8
    assert len({known.images[k].tobytes() for k in range(24)}) == 24


def test_the_same_folder_gives_the_same_pictures(tmp_path: Path) -> None:
    root = str(write_pictures(tmp_path))
    one, two, fewer = (load_pictures(root, things, 2) for things in (6, 6, 5))
    assert one is not None and two is not None and fewer is not None
    assert one.fingerprint == two.fingerprint != fewer.fingerprint


def test_opaque_photographs_fill_the_square(tmp_path: Path) -> None:
    for label, colour in (("red", (200, 10, 10)), ("blue", (10, 10, 200))):
        (tmp_path / label).mkdir()
        Image.new("RGB", (300, 100), colour).save(tmp_path / label / "a.png")
    known = load_pictures(str(tmp_path), 1, 1)
    assert known is not None
    assert (known.images[known.names.index("red")] == (200, 10, 10)).all()


def test_a_thing_is_placed_whole_on_a_background() -> None:
    thing = np.zeros((50, 50, 4), np.uint8)
    thing[..., 3] = 255
    thing[0, 0, 3] = 0  # transparent somewhere: a drawing, not a photograph
    sides = []
    for seed in range(20):
        black = (place(thing, np.random.default_rng(seed)) < 2).all(-1)
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        sides.append(len(rows) / PICTURE_PX)
        assert abs(len(rows) - len(columns)) <= 2  # still square: nothing was cut off
    assert 0.4 < min(sides) < max(sides) < 0.87 and max(sides) - min(sides) > 0.2


def test_pictures_are_picked_evenly() -> None:
    found = [("a", Path(str(n))) for n in range(9)] + [("b", Path("x"))]
    assert [str(p) for _, p in pick_evenly(found, 3)] == ["0", "4", "8", "x"]


@pytest.mark.parametrize("labels", [(), ("only",)])
def test_fewer_than_two_labels_are_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    write_pictures(tmp_path, labels)
    with pytest.raises(ConfigurationError, match=r"labelled.*got .*expected.*watch.pictures"):
        load_pictures(str(tmp_path), 4, 1)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="0 pictures of 0 labels"):
        load_pictures(str(tmp_path / "none"), 4, 1)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    root = write_pictures(tmp_path)
    (root / "box" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ConfigurationError, match=r"0\.png.*expected a picture"):
        load_pictures(str(root), 6, 1)


def test_a_picture_of_more_than_eight_bits_is_refused_and_not_taken_for_white(
    tmp_path: Path,
) -> None:
    root = write_pictures(tmp_path)
    depth = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray(depth).save(next(root.iterdir()) / "depth.png")
    with pytest.raises(ConfigurationError, match=r"depth\.png: grey in more than 8 bits"):
        load_pictures(str(root), 16, 1)


def test_labels_name_each_drawing_once() -> None:
    characters = [c for own in LABELS.values() for c in own]
    assert len(characters) == len(set(characters))
    assert min(map(len, LABELS.values())) >= 12


@needs_drawings
def test_the_wheel_has_every_drawing_that_is_named() -> None:
    folder = find_drawings()
    assert folder is not None
    found = list_drawings(folder)
    assert len(found) == sum(map(len, LABELS.values()))
    assert {label for label, _ in found} == set(LABELS)


@needs_drawings
def test_drawings_are_rendered_with_colour_and_transparency() -> None:
    pytest.importorskip("resvg_py", reason="needs the extra [sight]: resvg_py renders drawings")
    folder = find_drawings()
    assert folder is not None
    picture = render_drawing(folder / "1F34E.svg")  # an apple
    alpha = picture[..., 3]
    assert picture.dtype == np.uint8 and picture.shape[2] == 4
    assert 0.2 < (alpha > 128).mean() < 0.8 and alpha[0, 0] == 0
    red, green, blue = picture[alpha > 200][:, :3].mean(0)
    assert red > green + 40 and red > blue + 40


def test_without_the_wheel_there_are_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sight.pictures.find_drawings", lambda: None)
    assert load_pictures(None, 4, 1) is None


def test_a_wheel_with_other_drawings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"other drawings.*1F34E\.svg"):
        list_drawings(tmp_path)
