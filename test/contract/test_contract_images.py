"""Pictures: every encoding without a copy, one deterministic transform, nothing malformed."""

from __future__ import annotations

import array
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vla_align_ros.contract.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageTransform,
    decode_compressed,
    to_rgb,
)
from vla_align_ros.errors import ContractError

ORDERS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)}
pictures = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def encode(rgb: np.ndarray, encoding: str, padding: int) -> tuple[bytes, int]:
    """Lay out an RGB picture as sensor_msgs/Image does, alpha and padding set to 77."""
    height, width = rgb.shape[:2]
    channels = 1 if encoding == "mono8" else 4 if "a" in encoding else 3
    rows = np.full((height, width, channels), 77, dtype=np.uint8)
    if encoding == "mono8":
        rows[..., 0] = rgb[..., 0]
    else:
        rows[..., ORDERS[encoding]] = rgb
    padded = np.full((height, width * channels + padding), 77, dtype=np.uint8)
    padded[:, : width * channels] = rows.reshape(height, -1)
    return padded.tobytes(), padded.shape[1]


@given(pictures, st.sampled_from([*ORDERS, "mono8"]), st.integers(0, 5), st.booleans())
def test_every_encoding_gives_the_same_rgb(rgb, encoding, padding, is_bigendian):
    if encoding == "mono8":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    data, step = encode(rgb, encoding, padding)
    found = to_rgb(data, encoding, *rgb.shape[:2], step, is_bigendian)
    np.testing.assert_array_equal(found, rgb)


@pytest.mark.parametrize("encoding", [*ORDERS, "mono8"])
def test_the_buffer_of_a_ros_message_is_viewed_and_not_copied(encoding):
    rgb = np.zeros((4, 5, 3), dtype=np.uint8)
    data, step = encode(rgb, encoding, 3)
    message = array.array("B", data)
    found = to_rgb(message, encoding, 4, 5, step)
    assert np.shares_memory(found, np.frombuffer(message, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"\0" * 12, "yuv422", 2, 2, 6), "encoding is not supported"),
        ((b"\0" * 12, "8UC3", 2, 2, 6), "encoding is not supported"),
        ((b"\0" * 11, "rgb8", 2, 2, 6), "wrong length: got 11 bytes; expected 12"),
        ((b"\0" * 13, "rgb8", 2, 2, 6), "wrong length"),
        ((b"\0" * 10, "rgb8", 2, 2, 5), "step from 6"),
        ((b"", "rgb8", 0, 2, 6), "size makes no sense"),
        ((b"", "rgb8", 2, 0, 0), "size makes no sense"),
    ],
)
def test_a_malformed_message_is_refused(arguments, message):
    with pytest.raises(ContractError, match=message):
        to_rgb(*arguments)


def compress(rgb: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, form)
    return stream.getvalue()


@given(pictures)
def test_png_comes_back_bit_for_bit(rgb):
    np.testing.assert_array_equal(decode_compressed(compress(rgb, "PNG")), rgb)


def test_jpeg_and_gray_pictures_become_rgb():
    rgb = np.full((32, 48, 3), (200, 30, 90), dtype=np.uint8)
    found = decode_compressed(memoryview(compress(rgb, "JPEG")))
    assert found.shape == rgb.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - rgb).max() <= 4
    gray = np.full((4, 5), 9, dtype=np.uint8)
    np.testing.assert_array_equal(decode_compressed(compress(gray, "PNG")), np.full((4, 5, 3), 9))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0, 1, 20, 0.5, 0.9])
def test_a_truncated_picture_is_refused(form, kept):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = compress(noise, form)
    length = int(kept * len(data)) if isinstance(kept, float) else kept
    with pytest.raises(ContractError, match="cannot be decoded"):
        decode_compressed(data[:length])


def test_other_formats_are_not_even_tried():
    with pytest.raises(ContractError, match="one whole JPEG or PNG"):
        decode_compressed(compress(np.zeros((4, 4, 3), np.uint8), "TIFF"))


def test_a_picture_too_large_for_memory_is_refused(monkeypatch):
    monkeypatch.setattr("vla_align_ros.contract.images.MAX_PIXELS", 15)
    with pytest.raises(ContractError, match="more than 15 pixels"):
        decode_compressed(compress(np.zeros((4, 4, 3), np.uint8), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ContractError, match="cannot be decoded"):
            decode_compressed(compress(np.zeros((4, 4, 3), np.uint8), "PNG"))


def test_grey_in_more_than_eight_bits_is_refused_and_not_made_white():
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    with pytest.raises(ContractError, match=r"cannot be decoded.*more than 8 bits"):
        decode_compressed(compress(depth, "PNG"))


def test_a_broken_colour_profile_behind_the_pixels_is_refused():
    content = compress(np.zeros((3, 4, 3), np.uint8), "PNG")
    name = b"iCCPabc\0"  # and no method of compression, let alone a profile
    chunk = struct.pack(">I", len(name) - 4) + name + struct.pack(">I", zlib.crc32(name))
    with pytest.raises(ContractError, match="cannot be decoded"):
        decode_compressed(content[:-12] + chunk + content[-12:])


@given(pictures, st.integers(1, 20), st.floats(0.3, 1.0))
def test_the_transform_is_resize_then_normalize_bit_for_bit(rgb, size, crop):
    transform = ImageTransform(size, crop=crop)
    small = transform.resize(rgb)
    assert small.shape == (size, size, 3) and small.dtype == np.uint8
    # A batch, as training makes it, gives the very bits of one picture, as the node makes it.
    batch = transform.normalize(np.stack([small, small]))
    single = transform(rgb)
    assert single.dtype == np.float32 and single.flags.c_contiguous
    assert batch.tobytes() == np.stack([single, single]).tobytes()


@given(pictures, st.sampled_from(["bicubic", "bilinear", "lanczos"]))
def test_memory_layout_of_the_source_does_not_matter(rgb, interpolation):
    transform = ImageTransform(6, crop=0.9, interpolation=interpolation)
    mirrored = np.ascontiguousarray(rgb[:, :, ::-1])[:, :, ::-1]
    assert transform(mirrored).tobytes() == transform(rgb).tobytes()
    assert transform(np.asfortranarray(rgb)).tobytes() == transform(rgb).tobytes()


def test_a_picture_of_the_right_size_is_not_resampled():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = ImageTransform(8).resize(rgb)
    np.testing.assert_array_equal(found, rgb)
    assert not np.shares_memory(found, rgb)


def test_a_picture_of_the_right_size_is_cropped_all_the_same():
    rgb = np.zeros((8, 8, 3), dtype=np.uint8)
    rgb[2:6, 2:6] = 255
    found = ImageTransform(8, crop=0.25, interpolation="bilinear").resize(rgb)
    assert (found[1:7, 1:7] == 255).all()


def test_normalize_is_the_formula_of_the_towers():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    other = ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    transform = ImageTransform(5, extra_towers=(other,))
    found = transform.normalize(rgb)
    assert transform.channels == 6 and found.shape == (2, 6, 5, 5)
    unit = rgb.transpose(0, 3, 1, 2) / 255.0
    for tower, (mean, std) in enumerate([(IMAGENET_MEAN, IMAGENET_STD), other]):
        expected = (unit - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        np.testing.assert_allclose(found[:, 3 * tower : 3 * tower + 3], expected, atol=1e-6)


def test_crop_keeps_the_centre():
    rgb = np.zeros((100, 200, 3), dtype=np.uint8)
    rgb[25:75, 50:150] = 255
    assert (
        ImageTransform(10, crop=0.25, interpolation="bilinear").resize(rgb)[1:9, 1:9] == 255
    ).all()
    assert (ImageTransform(10).resize(rgb)[0] == 0).all()


def test_the_same_picture_gives_the_same_bytes_in_every_release():
    ramp = np.arange(30 * 40 * 3, dtype=np.uint32).reshape(30, 40, 3) % 251
    small = ImageTransform(8, crop=0.9).resize(ramp.astype(np.uint8))
    assert small[0, :2].tolist() == [[132, 132, 119], [81, 75, 76]]


def test_transform_comes_back_from_json_unchanged():
    transform = ImageTransform(
        224, (0.5,) * 3, (0.5,) * 3, 0.9, ((IMAGENET_MEAN, IMAGENET_STD),), "lanczos"
    )
    copy = ImageTransform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert copy == transform
    with pytest.raises(ContractError, match="wrong keys"):
        ImageTransform.from_dict({**transform.to_dict(), "colour": "bgr"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 0},
        {"size": 10**9},
        {"size": True},
        {"size": 8, "crop": 0.0},
        {"size": 8, "crop": 1.1},
        {"size": 8, "crop": "all"},
        {"size": 8, "std": (0.0, 1.0, 1.0)},
        {"size": 8, "mean": (float("nan"), 1.0, 1.0)},
        {"size": 8, "mean": (10**400, 1.0, 1.0)},
        {"size": 8, "mean": 0.5},
        {"size": 8, "extra_towers": ((IMAGENET_MEAN,),)},
        {"size": 8, "extra_towers": 5},
        {"size": 8, "interpolation": "nearest"},
    ],
)
def test_a_transform_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ContractError, match="expected"):
        ImageTransform(**arguments)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_picture_is_refused(image):
    with pytest.raises(ContractError, match="uint8"):
        ImageTransform(8).resize(image)


def test_normalize_refuses_a_picture_that_was_not_resized():
    with pytest.raises(ContractError, match="call resize first"):
        ImageTransform(8).normalize(np.zeros((9, 8, 3), np.uint8))
