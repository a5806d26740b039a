"""Pictures are put together as published, pixel by pixel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

if any(importlib.util.find_spec(module) is None for module in ("cv2", "torch")):
    pytest.skip("needs the extras [sim] and [train]", allow_module_level=True)

import cv2
import torch

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim.put_on_plate import pictures

HEIGHT, WIDTH = 48, 64
Parts = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]


@pytest.fixture
def scene() -> Parts:
    rng = np.random.default_rng(0)
    picture, table = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    foreground = np.zeros((HEIGHT, WIDTH), bool)
    foreground[10:30, 20:50] = rng.random((20, 30)) < 0.7
    foreground[10, 20] = foreground[29, 49] = True
    return picture, foreground, table


def test_the_table_shows_where_nothing_stands(scene: Parts) -> None:
    picture, foreground, table = scene
    seen = pictures.put_behind(picture, foreground, table)
    np.testing.assert_array_equal(seen[foreground], picture[foreground])
    np.testing.assert_array_equal(seen[~foreground], table[~foreground])


@pytest.mark.parametrize("mix", [0.3, 0.5])
def test_a_texture_over_robot_and_objects(scene: Parts, mix: float) -> None:
    """Second implementation: the texture stretched by torch, as in the public code."""
    picture, foreground, table = scene
    texture = np.random.default_rng(1).integers(0, 256, picture.shape, dtype=np.uint8)
    seen = pictures.blend_foreground(picture, foreground, table, texture, mix)
    stretched = torch.nn.functional.interpolate(
        torch.from_numpy(texture).permute(2, 0, 1)[None].float(),
        size=(20, 30),
        mode="bilinear",
        align_corners=False,
    )[0].permute(1, 2, 0)
    wanted = picture.astype(float)
    wanted[10:30, 20:50] = stretched.numpy() * mix + wanted[10:30, 20:50] * (1 - mix)
    np.testing.assert_array_equal(seen[~foreground], table[~foreground])
    np.testing.assert_allclose(seen[foreground], wanted[foreground], atol=1.01)


def test_a_texture_over_everything(scene: Parts) -> None:
    picture, foreground, table = scene
    texture = np.random.default_rng(2).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    seen = pictures.blend_whole(picture, foreground, table, texture, 0.5)
    behind = pictures.put_behind(picture, foreground, table).astype(float)
    y, x = (10 + 29) // 2, (20 + 49) // 2
    wanted = behind * 0.5 + texture[y : y + HEIGHT, x : x + WIDTH] * 0.5
    np.testing.assert_allclose(seen, wanted, atol=1.01)


def test_an_empty_mask_has_no_box_and_nothing_breaks(scene: Parts) -> None:
    picture, _, table = scene
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    assert pictures.bounding_box(nothing) == (0, 0, 0, 0)
    np.testing.assert_array_equal(
        pictures.blend_foreground(picture, nothing, table, table, 0.3), table
    )


def test_a_picture_is_read_as_rgb_at_the_size_asked_for(tmp_path: Path) -> None:
    red = np.zeros((30, 40, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)
    read = pictures.read_picture(tmp_path / "red.png", 8, 6)
    assert read.shape == (6, 8, 3) and read[0, 0].tolist() == [200, 0, 0]
    with pytest.raises(SimulationError, match="cannot be read"):
        pictures.read_picture(tmp_path / "none.png", 8, 6)
