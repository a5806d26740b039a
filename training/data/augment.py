"""OpenVLA's image augmentation, drawn from a seed of its own for every sample of every epoch.

Ranges and order are those of prismatic's RLDS pipeline (crop, brightness, contrast, saturation,
hue; values clipped to [0, 1] after each). Two departures: every range has a draw of its own (there,
one seed served all, so that for instance brightness and contrast rose together), and the result
is rounded to whole levels instead of cut off, which would darken pictures by half a level.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from training.data.config import AugmentConfig

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_TINY = np.float32(1e-9)  # a spread of 0 is grey: whatever is divided by it is multiplied by 0


def augment(image: UInt8Array, config: AugmentConfig, seed: tuple[int, int, int]) -> UInt8Array:
    """Return an augmented copy of a square picture (S, S, 3) uint8 RGB.

    `seed` is (run, epoch, sample): the same three give the same picture on any machine and worker.
    """
    draw = np.random.default_rng(seed)
    at_x, at_y = _draw_place(draw)
    shift, contrast, saturation, hue = draw.uniform(-1.0, 1.0, 4)
    cropped = crop_square(image, config.crop_area, at_x, at_y)
    planes = np.ascontiguousarray(cropped.transpose(2, 0, 1)).astype(np.float32)
    planes *= np.float32(1.0 / 255.0)
    planes += np.float32(shift * config.brightness)
    np.clip(planes, 0.0, 1.0, out=planes)
    planes = change_contrast(planes, 1.0 + contrast * config.contrast)
    planes = change_saturation(planes, 1.0 + saturation * config.saturation)
    planes = turn_hue(planes, hue * config.hue)
    planes *= np.float32(255.0)
    levels: UInt8Array = np.rint(planes, out=planes).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def draw_window(config: AugmentConfig, seed: tuple[int, int, int]) -> tuple[float, ...]:
    """What `augment` shows of a picture: left, top, right, bottom as shares of its sides."""
    kept = math.sqrt(config.crop_area)
    left, top = (float(at) * (1.0 - kept) for at in _draw_place(np.random.default_rng(seed)))
    return left, top, left + kept, top + kept


def _draw_place(draw: np.random.Generator) -> Float64Array:
    """Where the crop lies within its free play, (x, y) in [0, 1]: the first of every draw."""
    return draw.random(2)


def crop_square(image: UInt8Array, area: float, at_x: float, at_y: float) -> UInt8Array:
    """Cut a square of `area` (share) at (at_x, at_y) in [0, 1] of the free play; scale it back."""
    from PIL import Image

    side = image.shape[0]
    kept = side * math.sqrt(area)
    left, top = at_x * (side - kept), at_y * (side - kept)
    box = (left, top, left + kept, top + kept)
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.uint8)


def change_contrast(planes: Float32Array, factor: float) -> Float32Array:
    """Spread values (3, S, S) in [0, 1] about each channel's mean by `factor`."""
    mean = planes.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    spread: Float32Array = planes * np.float32(factor)
    spread += mean * np.float32(1.0 - factor)
    np.clip(spread, 0.0, 1.0, out=spread)
    return spread


def change_saturation(planes: Float32Array, factor: float) -> Float32Array:
    """Multiply the saturation (HSV) of values (3, S, S) in [0, 1], at most to full saturation.

    With value and hue kept, a channel's distance from the largest one scales with saturation.
    """
    value, low = _extremes(planes)
    spread = value - low
    scale = value / np.maximum(spread, _TINY)  # the factor that would saturate fully
    np.minimum(scale, np.float32(factor), out=scale)
    changed = planes - value
    changed *= scale
    changed += value
    return np.clip(changed, 0.0, 1.0, out=changed)


def turn_hue(planes: Float32Array, turn: float) -> Float32Array:
    """Turn the hue (HSV) of values (3, S, S) in [0, 1] by `turn` of the colour circle."""
    red, green, blue = planes
    value, low = _extremes(planes)
    spread = value - low
    per_spread = np.float32(1.0) / np.maximum(spread, _TINY)
    sixth = np.where(
        value == red,
        (green - blue) * per_spread,
        np.where(value == green, 2.0 + (blue - red) * per_spread, 4.0 + (red - green) * per_spread),
    ).astype(np.float32, copy=False)
    sixth += np.float32(6.0 * turn)
    turned = np.empty_like(planes)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        place = sixth + np.float32(offset)
        place -= np.float32(6.0) * np.floor(place * np.float32(1.0 / 6.0))
        np.minimum(place, np.float32(4.0) - place, out=place)
        np.clip(place, 0.0, 1.0, out=place)
        place *= spread
        np.subtract(value, place, out=turned[channel])
    return np.clip(turned, 0.0, 1.0, out=turned)


def _extremes(planes: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Largest and smallest of the three channels, (S, S) each."""
    red, green, blue = planes
    high: Float32Array = np.maximum(np.maximum(red, green), blue)
    low: Float32Array = np.minimum(np.minimum(red, green), blue)
    return high, low
