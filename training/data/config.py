"""What of the data a run uses, and how: the `data` part of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from training.settings import LATER
from vla_align_ros.errors import ConfigurationError

Gripper = Literal[
    "fraction_open",
    "fraction_closed",
    "signed_open",
    "signed_closed",
    "percent_open",
    "percent_closed",
]


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """OpenVLA's image augmentation (prismatic's RLDS pipeline): its ranges are the defaults.

    crop_area: share of the picture's area that a square crop at a random place keeps. brightness:
    largest shift of values in [0, 1]. contrast, saturation: factors within 1 -/+ this. hue: largest
    turn, as a share of the colour circle.
    """

    enabled: bool = False
    crop_area: float = 0.9
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __post_init__(self) -> None:
        """Check the ranges; ConfigurationError names the field."""
        _check("augment.crop_area", self.crop_area, 0.0 < self.crop_area <= 1.0, "a share up to 1")
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            _check(f"augment.{name}", value, 0.0 <= value <= 1.0, "a number from 0 to 1")
        _check("augment.hue", self.hue, 0.0 <= self.hue <= 0.5, "a share from 0 to 0.5")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What the samples are made of.

    image_size: model input in px. validation: share of the episodes held out, by episode. cache:
    keep features of frozen networks on disk; only without augmentation, see `keeps_features`.

    cameras: names to look for in each data set, in this order (without `observation.images.`);
    empty takes the only one there is. state_key, action_key: features of proprioception and action.
    action_names: which seven named values of the action are dx dy dz drx dry drz gripper; empty
    takes all, which must not be named as something else, as does a data set of seven values that
    lacks these names. gripper: what the recorded gripper values mean; grippers: what those of some
    data sets of a mixture mean instead, by the data set's name. rate_hz: the rate of the policy,
    needed only where data sets of several rates are mixed; it is one of theirs, and nothing is
    resampled. frame: in whose axes actions and state are recorded; the arm's command_frame must be
    the same.

    instructions: train on what these, word for word, ask for, and leave the rest out; empty takes
    all. Statistics are those of the whole data.
    drop_near_zero: leave out frames that move less than near_zero_m metres and near_zero_rad
    radians and do not switch the gripper. decode: "once" decodes the videos in advance into a file
    beside the data; "online" decodes each picture when it is drawn and keeps up to decode_cache_gb
    of them in memory. skip_broken: train without episodes whose videos are damaged. workers:
    threads that prepare batches ahead (0 prepares them in the loop); they never change a batch.
    """

    image_size: int = 224
    validation: float = 0.05
    cache: bool = True
    cameras: tuple[str, ...] = ()
    state_key: str = "observation.state"
    action_key: str = "action"
    action_names: tuple[str, ...] = ()
    gripper: Gripper = "fraction_open"
    grippers: Mapping[str, str] | None = field(default=None, metadata=LATER)
    rate_hz: float | None = None
    frame: str = field(default="base_link", metadata=LATER)
    instructions: tuple[str, ...] = field(default=(), metadata=LATER)
    drop_near_zero: bool = False
    near_zero_m: float = 0.01
    near_zero_rad: float = 0.06
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    decode: Literal["once", "online"] = "once"
    decode_cache_gb: float = 2.0
    skip_broken: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        """Check the values; ConfigurationError names the field."""
        positive = "a number above 0"
        _check("image_size", self.image_size, self.image_size >= 1, "1 px or more")
        _check(
            "validation", self.validation, 0.0 < self.validation < 1.0, "a share between 0 and 1"
        )
        _check("rate_hz", self.rate_hz, self.rate_hz is None or self.rate_hz > 0.0, positive)
        _check("near_zero_m", self.near_zero_m, self.near_zero_m >= 0.0, "0 or more metres")
        _check("near_zero_rad", self.near_zero_rad, self.near_zero_rad >= 0.0, "0 or more radians")
        _check("decode_cache_gb", self.decode_cache_gb, self.decode_cache_gb >= 0.0, "0 or more GB")
        _check("workers", self.workers, self.workers >= 0, "0 or more")
        names = self.action_names
        _check("action_names", names, len(names) in (0, 7), "seven names, or none")
        for name, meaning in (self.grippers or {}).items():
            expected = "one of " + ", ".join(get_args(Gripper))
            _check(f"grippers[{name!r}]", repr(meaning), meaning in get_args(Gripper), expected)
        _check("frame", repr(self.frame), bool(self.frame.strip()), "a frame's name")

    def gripper_of(self, name: str) -> str:
        """What the gripper values of the data set `name` mean."""
        return (self.grippers or {}).get(name, self.gripper)

    @property
    def keeps_features(self) -> bool:
        """Whether features of frozen networks may be cached: the pictures never change."""
        return self.cache and not self.augment.enabled

    @property
    def crop(self) -> float:
        """Area that the robot's centred crop keeps: that of the random crop in training."""
        return self.augment.crop_area if self.augment.enabled else 1.0


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigurationError(
            f"Wrong value for data.{name}", got=value, expected=expected, fix="correct --set"
        )
