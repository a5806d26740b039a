"""The only code that decodes, crops, resizes and lays out pictures, for training and robot.

Resizing is Pillow's: antialiased, in fixed-point arithmetic, so the same bytes come out on every
machine (bicubic without a crop is what OpenVLA's published processor does, too). Pillow is imported
on first use.
"""

from __future__ import annotations

import array
import io
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.files import require_keys
from vla_align_ros.errors import ContractError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

MAX_PIXELS = 64 * 1024 * 1024
_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


def to_rgb(
    data: bytes | bytearray | memoryview | array.array[int] | UInt8Array,
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool = False,
) -> UInt8Array:
    """View a sensor_msgs/Image buffer as RGB, without copying (mono8 is broadcast).

    Args:
        data: the message's bytes, ``height * step`` of them.
        encoding: rgb8, bgr8, rgba8, bgra8 or mono8 (REP 118 names).
        height: rows. width: columns. step: bytes from one row to the next, padding included.
        is_bigendian: has no meaning for one-byte channels; accepted so that a message fits.

    Returns:
        (height, width, 3) uint8 RGB, a read-only view that keeps ``data`` alive.

    Raises:
        ContractError: unknown encoding, a size that is not positive, or a buffer of another length.
    """
    channels = _CHANNELS.get(encoding)
    if channels is None:
        raise ContractError(
            "image encoding is not supported",
            got=repr(encoding),
            expected=" or ".join(_CHANNELS),
            fix="set the camera driver's encoding",
        )
    if height < 1 or width < 1 or step < width * channels:
        raise ContractError(
            "image size makes no sense",
            got=f"{height}x{width} with step {step}",
            expected=f"positive sizes and a step from {width * channels}",
        )
    flat = np.frombuffer(data, dtype=np.uint8)
    if flat.size != height * step:
        raise ContractError(
            "image buffer has the wrong length",
            got=f"{flat.size} bytes",
            expected=f"{height * step} ({height} rows of {step})",
            fix="check for truncated messages from the camera driver",
        )
    rows = flat.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    if channels == 1:
        rgb = np.broadcast_to(rows, (height, width, 3))
    else:
        rgb = rows[:, :, 2::-1] if encoding.startswith("bgr") else rows[:, :, :3]
    rgb.flags.writeable = False
    return rgb


def decode_compressed(data: bytes | bytearray | memoryview) -> UInt8Array:
    """Decode a JPEG or PNG picture, as sensor_msgs/CompressedImage carries it.

    Returns:
        (H, W, 3) uint8 RGB. Orientation tags are ignored, as cameras write none.

    Raises:
        ContractError: if it is no whole JPEG or PNG, has more than ``MAX_PIXELS`` pixels, or is
            grey in more than 8 bits, as depth is.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(bytes(data)), formats=("JPEG", "PNG")) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(
                        f"{picture.width}x{picture.height} is more than {MAX_PIXELS} pixels"
                    )
                if picture.mode.startswith("I"):  # Pillow would make all above 255 white
                    raise ValueError("grey in more than 8 bits")
                return np.array(picture.convert("RGB"), dtype=np.uint8)
    except (
        OSError,
        ValueError,
        SyntaxError,
        IndexError,  # of a profile without its end, behind the pixels
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as cause:
        raise ContractError(
            "compressed image cannot be decoded",
            got=f"{len(data)} bytes ({cause})",
            expected="one whole JPEG or PNG picture",
            fix="check the format that the image transport publishes",
        ) from cause


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """From a camera's picture to a model's input: centre crop, resize to a square, normalise.

    Args:
        size: side of the square model input, in pixels.
        mean: per channel, of values in [0, 1]. std: the same, positive.
        crop: fraction of the picture's area that a centred crop keeps (OpenVLA uses 0.9).
        extra_towers: further (mean, std) pairs; each adds three channels, as OpenVLA's six.
        interpolation: bicubic, bilinear or lanczos, always antialiased.

    Raises:
        ContractError: if a value is out of range.
    """

    size: int
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    crop: float = 1.0
    extra_towers: tuple[tuple[Triple, Triple], ...] = ()
    interpolation: str = "bicubic"
    _table: Float32Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (
            isinstance(self.size, bool)
            or not isinstance(self.size, int)
            or not 1 <= self.size <= 8192
        ):
            raise ContractError(
                "model input size is wrong", got=repr(self.size), expected="1 to 8192 pixels"
            )
        if not isinstance(self.crop, (int, float)) or not 0.0 < self.crop <= 1.0:
            raise ContractError(
                "crop is no area fraction", got=repr(self.crop), expected="above 0, at most 1"
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise ContractError(
                "interpolation is unknown",
                got=repr(self.interpolation),
                expected=" or ".join(_INTERPOLATIONS),
            )
        object.__setattr__(self, "crop", float(self.crop))
        object.__setattr__(self, "mean", _read_triple(self.mean, "mean", positive=False))
        object.__setattr__(self, "std", _read_triple(self.std, "std", positive=True))
        object.__setattr__(self, "extra_towers", _read_towers(self.extra_towers))
        object.__setattr__(self, "_table", self._build_table())

    @property
    def channels(self) -> int:
        """Channels of the model input: three a tower."""
        return 3 * (1 + len(self.extra_towers))

    def resize(self, image: npt.ArrayLike) -> UInt8Array:
        """Crop and resize one (H, W, 3) uint8 RGB picture to (size, size, 3) uint8.

        The picture is stretched to a square, as OpenVLA does. Raises ContractError on other input.
        """
        from PIL import Image

        pixels = check_image(image)
        height, width = pixels.shape[:2]
        if (height, width) == (self.size, self.size) and self.crop == 1.0:
            return np.array(pixels)
        method = getattr(Image, self.interpolation.upper())
        box = self.crop_box(width, height)
        resized = Image.fromarray(pixels).resize((self.size, self.size), method, box=box)
        return np.array(resized, dtype=np.uint8)

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What is seen of a picture of this size: left, top, right, bottom in pixels."""
        low = (1.0 - math.sqrt(self.crop)) / 2.0
        return (width * low, height * low, width * (1.0 - low), height * (1.0 - low))

    def normalize(self, images: npt.ArrayLike) -> Float32Array:
        """Normalise (..., size, size, 3) uint8 pictures to (..., channels, size, size) float32."""
        pixels = np.asarray(images)
        if pixels.dtype != np.uint8 or pixels.shape[-3:] != (self.size, self.size, 3):
            raise ContractError(
                "picture does not fit the model input",
                got=f"{pixels.dtype} {pixels.shape}",
                expected=f"uint8 (..., {self.size}, {self.size}, 3)",
                fix="call resize first",
            )
        shape = (*pixels.shape[:-3], self.channels, self.size, self.size)
        output: Float32Array = np.empty(shape, dtype=np.float32)
        for channel, table in enumerate(self._table):
            output[..., channel, :, :] = table[pixels[..., channel % 3]]
        return output

    def __call__(self, image: npt.ArrayLike) -> Float32Array:
        """Resize and normalise one (H, W, 3) uint8 picture to (channels, size, size) float32."""
        return self.normalize(self.resize(image))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop": self.crop,
            "extra_towers": [[list(mean), list(std)] for mean, std in self.extra_towers],
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_dict(cls, data: object) -> ImageTransform:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        names = ("size", "mean", "std", "crop", "extra_towers", "interpolation")
        return cls(**require_keys(data, names, "image transform"))

    def _build_table(self) -> Float32Array:
        towers = ((self.mean, self.std), *self.extra_towers)
        mean = np.array([tower[0] for tower in towers], dtype=np.float32).reshape(-1, 1)
        std = np.array([tower[1] for tower in towers], dtype=np.float32).reshape(-1, 1)
        unit = np.arange(256, dtype=np.float32) / np.float32(255)
        table: Float32Array = (unit - mean) / std
        table.flags.writeable = False
        return table


def check_image(image: npt.ArrayLike) -> UInt8Array:
    """Return ``image`` as contiguous (H, W, 3) uint8; ContractError if it is anything else."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ContractError(
            "image has the wrong form",
            got=f"{pixels.dtype} {pixels.shape}",
            expected="uint8 (height, width, 3), RGB",
        )
    return np.ascontiguousarray(pixels)


def _read_triple(values: object, what: str, *, positive: bool) -> Triple:
    numbers = tuple(values) if isinstance(values, (tuple, list)) else ()
    valid = len(numbers) == 3 and all(
        isinstance(number, (int, float)) and (1e-3 if positive else -1e3) <= number <= 1e3
        for number in numbers
    )
    if not valid:
        raise ContractError(
            f"image {what} is wrong",
            got=repr(values),
            expected="three numbers from " + ("0.001 to 1000" if positive else "-1000 to 1000"),
        )
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _read_towers(towers: object) -> tuple[tuple[Triple, Triple], ...]:
    pairs = tuple(towers) if isinstance(towers, (tuple, list)) else (towers,)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ContractError(
            "image towers are wrong", got=repr(towers), expected="(mean, std) pairs"
        )
    return tuple(
        (_read_triple(mean, "mean", positive=False), _read_triple(std, "std", positive=True))
        for mean, std in pairs
    )
