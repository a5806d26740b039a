"""Augmentation: OpenVLA's operations, one draw a sample and epoch, one picture for both eyes."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import make_processor, write_dataset

from training.data.augment import (
    augment,
    change_contrast,
    change_saturation,
    crop_square,
    draw_window,
    turn_hue,
)
from training.data.config import AugmentConfig, DataConfig
from training.data.dataset import ActionChunkDataset, dataset_statistics
from training.data.loader import BatchLoader
from training.data.sampler import SampleSampler
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.errors import ConfigurationError

OPENVLA = AugmentConfig(enabled=True)
NOTHING = AugmentConfig(True, 1.0, 0.0, 0.0, 0.0, 0.0)


def picture(seed: int = 0, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def planes(seed: int, side: int = 24) -> np.ndarray:
    """Random values (3, S, S) in [0, 1]."""
    return picture(seed, side).transpose(2, 0, 1).astype(np.float32) / 255


def per_pixel(
    pixels: np.ndarray, change: Callable[[float, float, float], tuple[float, float, float]]
) -> np.ndarray:
    """Apply a change of (hue, saturation, value) pixel by pixel, with the standard library."""
    flat = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*map(float, pixel))))
        for pixel in pixels.reshape(3, -1).T
    ]
    return np.asarray(flat).T.reshape(pixels.shape)


@given(st.integers(0, 999), st.floats(0.5, 1.5))
def test_saturation_equals_the_standard_library_s(seed: int, factor: float) -> None:
    pixels = planes(seed, 6)
    wanted = per_pixel(pixels, lambda h, s, v: (h, min(1.0, s * factor), v))
    np.testing.assert_allclose(change_saturation(pixels, factor), wanted, atol=2e-5)


@given(st.integers(0, 999), st.floats(-0.5, 0.5))
def test_hue_equals_the_standard_library_s(seed: int, turn: float) -> None:
    pixels = planes(seed, 6)
    pixels[:, 0] = 0.5  # grey has no hue
    wanted = per_pixel(pixels, lambda h, s, v: ((h + turn) % 1.0, s, v))
    np.testing.assert_allclose(turn_hue(pixels, turn), wanted, atol=2e-5)


def test_contrast_keeps_each_channel_s_mean() -> None:
    pixels = np.clip(planes(1), 0.3, 0.7)
    changed = change_contrast(pixels, 1.2)
    np.testing.assert_allclose(changed.mean((1, 2)), pixels.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(changed.std((1, 2)), 1.2 * pixels.std((1, 2)), rtol=1e-4)


def test_a_crop_keeps_the_area_and_reaches_the_corners() -> None:
    ramp = np.tile(np.linspace(0, 255, 100), (100, 1)).astype(np.uint8)
    image = np.stack([ramp, ramp.T, ramp], axis=-1)
    left, right = (crop_square(image, 0.81, at, 0.5)[50, :, 0].astype(int) for at in (0.0, 1.0))
    assert left[0] <= 1 and abs(left[-1] - 0.9 * 255) < 3  # 90 % of the side
    assert right[-1] >= 254 and abs(right[0] - 0.1 * 255) < 3
    np.testing.assert_array_equal(crop_square(image, 1.0, 0.3, 0.9), image)


def test_without_ranges_a_picture_stays_as_it_is() -> None:
    np.testing.assert_array_equal(augment(picture(), NOTHING, (0, 1, 2)), picture())


def test_a_picture_follows_from_seed_epoch_and_sample_alone() -> None:
    first = augment(picture(), OPENVLA, (3, 1, 7))
    np.testing.assert_array_equal(augment(picture(), OPENVLA, (3, 1, 7)), first)
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert (augment(picture(), OPENVLA, other) != first).any()


def test_a_window_is_what_the_augmented_picture_shows() -> None:
    ramp = np.tile(np.linspace(0, 255, 200), (200, 1)).astype(np.uint8)
    image = np.stack([ramp, ramp.T, ramp], axis=-1)
    seen = set()
    for sample in range(6):
        only_cropped = replace(NOTHING, crop_area=0.64)
        shown = augment(image, only_cropped, (4, 1, sample)).astype(float) / 255
        left, top, right, bottom = draw_window(only_cropped, (4, 1, sample))
        assert right - left == pytest.approx(0.8) and bottom - top == pytest.approx(0.8)
        found = shown[100, 0, 0], shown[0, 100, 1], shown[100, -1, 0], shown[-1, 100, 1]
        np.testing.assert_allclose(found, (left, top, right, bottom), atol=0.01)
        seen.add(left)
    assert len(seen) == 6


def test_draws_fill_the_ranges_and_do_not_move_together() -> None:
    """Brightness of grey pictures, saturation of a red one: each spread over its range."""
    grey = np.full((8, 8, 3), 128, np.uint8)
    pale = np.broadcast_to(np.array([200, 100, 100], np.uint8), (8, 8, 3)).copy()
    levels, saturations = [], []
    only = replace(NOTHING, brightness=0.2, saturation=0.2)
    for sample in range(400):
        level = augment(grey, only, (0, 0, sample)).mean() / 255
        levels.append(level - 128 / 255)
        red, green, _ = augment(pale, only, (0, 0, sample))[0, 0] / 255
        saturations.append((red - green) / (100 / 255))  # the spread scales with saturation
    assert -0.2 <= min(levels) < -0.18 and 0.18 < max(levels) <= 0.2
    assert min(saturations) < 0.84 and max(saturations) > 1.16
    assert abs(np.corrcoef(levels, saturations)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop_area", 0.0), ("crop_area", 1.1), ("brightness", -0.1), ("hue", 0.6)],
)
def test_ranges_out_of_bounds_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"data.augment.{name}: got {value}"):
        AugmentConfig(**{name: value})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    write_dataset(folder, 6)
    return folder


def make_data(root: Path, cache: Path, decode: str, seed: int = 5) -> ActionChunkDataset:
    config = DataConfig(
        validation=0.4,
        augment=OPENVLA,
        decode=decode,  # type: ignore[arg-type]
    )
    processor = make_processor(dataset_statistics([root], config, cache_dir=cache))
    assert processor.image_transform.crop == config.crop == 0.9
    return ActionChunkDataset([root], processor, config, seed=seed, cache_dir=cache)


def test_student_and_teacher_see_one_augmented_picture(root: Path, tmp_path: Path) -> None:
    data = make_data(root, tmp_path, "once")
    rows = np.array([3, 0, 3])
    batch = data.batch(rows, passes=np.array([0, 0, 1]))
    images = batch["images"].numpy()
    wanted = data.processor.image_transform.normalize(images)
    np.testing.assert_array_equal(batch["pixel_values"].numpy(), wanted)
    assert (images[0] != images[2]).any()  # the same frame in another pass
    whole = replace(data.processor.image_transform, crop=1.0)
    shown = data.camera_pictures(rows)
    for place, (row, number) in enumerate(zip(rows, (0, 0, 1), strict=True)):
        again = augment(whole.resize(shown[place]), OPENVLA, (5, number, int(row)))
        np.testing.assert_array_equal(images[place], again)


def test_without_passes_pictures_are_the_robot_s_with_its_centred_crop(
    root: Path, tmp_path: Path
) -> None:
    rows = np.arange(5)
    transform = ImageTransform(size=32, crop=0.9)
    for decode in ("once", "online"):
        data = make_data(root, tmp_path, decode)
        wanted = np.stack([transform.resize(image) for image in data.camera_pictures(rows)])
        np.testing.assert_array_equal(data.batch(rows)["images"].numpy(), wanted)


def test_windows_are_the_draw_s_in_training_and_the_centred_one_elsewhere(
    root: Path, tmp_path: Path
) -> None:
    data = make_data(root, tmp_path, "once")
    rows, passes = np.array([3, 0, 3]), np.array([0, 0, 1])
    drawn = [
        draw_window(OPENVLA, (5, int(n), int(row))) for row, n in zip(rows, passes, strict=True)
    ]
    np.testing.assert_array_equal(data.windows(rows, passes), drawn)
    low = (1 - 0.9**0.5) / 2
    np.testing.assert_allclose(data.windows(rows), [[low, low, 1 - low, 1 - low]] * 3)
    assert data.windows(rows[:0], passes[:0]).shape == data.windows(rows[:0]).shape == (0, 4)


def test_workers_and_the_way_of_decoding_change_no_batch(root: Path, tmp_path: Path) -> None:
    def batches(decode: str, workers: int, seed: int = 5) -> list[np.ndarray]:
        data = make_data(root, tmp_path, decode, seed)
        sampler = SampleSampler(data.indices("train"), 4, seed=1)

        def make(draws: object) -> dict[str, object]:
            return data.batch(draws.indices, passes=draws.passes)  # type: ignore[attr-defined]

        with BatchLoader(make, sampler, workers=workers) as loader:
            return [loader.next()["images"].numpy() for _ in range(8)]

    first = batches("once", 0)
    for decode, workers in (("online", 0), ("online", 1), ("online", 2), ("once", 2)):
        for one, other in zip(first, batches(decode, workers), strict=True):
            np.testing.assert_array_equal(one, other)
    assert any((a != b).any() for a, b in zip(first, batches("once", 0, 6), strict=True))
