"""From raw pictures to a teacher's own input, sized so that its patches form the student's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.alignment.teachers.config import Pixels
from vla_align_ros.contract.images import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, Triple
from vla_align_ros.errors import ConfigurationError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": (CLIP_MEAN, CLIP_STD),
}
_INTERPOLATION_OF_PILLOW = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_BYTE = 1.0 / 255.0


@dataclass(frozen=True, slots=True)
class PixelRecipe:
    """How one teacher wants its pictures: patch side in px, normalisation, interpolation.

    The picture, never the features, is resized: to patch * grid px a side, so that a teacher of
    patch 16 sees 256 px where a student of patch 14 sees 224 px, and both have 16 x 16 patches.
    """

    patch: int
    mean: Triple
    std: Triple
    interpolation: str = "bicubic"

    def __call__(self, images: NDArray[np.uint8], grid: int) -> Tensor:
        """Turn (B, H, W, 3) uint8 RGB into (B, 3, patch * grid, patch * grid) float32."""
        transform = ImageTransform(
            size=self.patch * grid, mean=self.mean, std=self.std, interpolation=self.interpolation
        )
        resized = np.stack([transform.resize(image) for image in images])
        return torch.from_numpy(transform.normalize(resized))

    def choose(self, pixels: Pixels) -> PixelRecipe:
        """Normalise otherwise, unless `pixels` is "auto"."""
        if pixels == "auto":
            return self
        mean, std = NORMALISATIONS[pixels]
        return replace(self, mean=mean, std=std)

    def adopt(self, settings: Mapping[str, Any]) -> PixelRecipe:
        """Take normalisation and interpolation from a published preprocessor_config.json.

        Its sizes and crops are not taken: the student's grid decides the size, and both see the
        whole picture.
        """
        values: dict[str, Any] = {}
        if not settings.get("do_normalize", True):
            values["mean"], values["std"] = NORMALISATIONS["unit"]
        elif "image_mean" in settings and "image_std" in settings:
            values["mean"] = tuple(map(float, settings["image_mean"]))
            values["std"] = tuple(map(float, settings["image_std"]))
        factor = settings.get("rescale_factor", _BYTE)
        if not settings.get("do_rescale", True) or abs(factor - _BYTE) > 1e-9:
            raise ConfigurationError(
                "The teacher scales its pixels in an unknown way",
                got=f"do_rescale {settings.get('do_rescale', True)}, rescale_factor {factor}",
                expected="bytes divided by 255",
                fix="set teacher.pixels to unit, half, imagenet or clip",
            )
        if "resample" in settings:
            values["interpolation"] = _INTERPOLATION_OF_PILLOW.get(settings["resample"])
            if values["interpolation"] is None:
                raise ConfigurationError(
                    "The teacher resizes its pictures in an unknown way",
                    got=f"resample {settings['resample']} in preprocessor_config.json",
                    expected="1 (lanczos), 2 (bilinear) or 3 (bicubic)",
                    fix="correct the file in a copy of the teacher's folder",
                )
        return replace(self, **values)

    def describe(self) -> str:
        """All that decides a pixel, on one line; part of a fingerprint."""
        return f"patch {self.patch}, mean {self.mean}, std {self.std}, {self.interpolation}"
