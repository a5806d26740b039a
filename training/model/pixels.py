"""How the pictures of each vision tower are normalised, read from where its weights came from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from training.model.config import VisionConfig
from training.model.vision import build_timm, import_timm
from vla_align_ros.contract.images import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, Triple
from vla_align_ros.errors import ConfigurationError

HALF: Triple = (0.5, 0.5, 0.5)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


def build_image_transform(vision: Sequence[VisionConfig], *, crop: float = 1.0) -> ImageTransform:
    """Return the transform for all towers of a model: three channels each, in their order.

    crop: fraction of the area that a centred crop keeps.
    """
    sizes = sorted({tower.image_size for tower in vision})
    if len(sizes) != 1:
        raise ConfigurationError(
            "The towers want pictures of different sizes",
            got=f"{sizes} px",
            expected="one size for all, which is resized once",
            fix="choose towers with the same patch, or equal VisionConfig.image_size",
        )
    first, *others = [pixel_statistics(tower) for tower in vision]
    return ImageTransform(sizes[0], *first, crop=crop, extra_towers=tuple(others))


def pixel_statistics(tower: VisionConfig) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of pixels in [0, 1] that a tower was trained with.

    Of a timm model, those that timm publishes with it; of pretrained Hugging Face weights, those in
    preprocessor_config.json; otherwise by family: 0.5 for SigLIP, CLIP's own, and ImageNet's for
    all others (DINOv2, DINOv3).
    """
    if tower.source.startswith("timm:"):
        return _find_timm_pixels(tower)
    if tower.source == "transformers" and tower.pretrained is not None:
        values = _read_preprocessor(tower.pretrained)
        mean, std = values.get("image_mean"), values.get("image_std")
        if mean is not None and std is not None:
            return _triple(mean), _triple(std)
    name = tower.source
    if tower.source == "transformers":
        name = str((tower.backbone or {}).get("model_type", "")) or _model_type(
            str(tower.pretrained)
        )
    if "siglip" in name.lower():
        return HALF, HALF
    return (CLIP_MEAN, CLIP_STD) if "clip" in name.lower() else (IMAGENET_MEAN, IMAGENET_STD)


def _find_timm_pixels(tower: VisionConfig) -> tuple[Triple, Triple]:
    """What timm lists of a model by its name; a hub's, which it does not list, is built."""
    name = tower.source.removeprefix("timm:")
    with contextlib.suppress(RuntimeError):  # an unknown tag: building it says so
        listed = import_timm(tower.source).get_pretrained_cfg(name)
        if listed is not None:
            return _triple(listed.mean), _triple(listed.std)
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and not looked at
        return timm_pixels(build_timm(tower, pretrained=False))


def timm_pixels(model: Any) -> tuple[Triple, Triple]:
    """Return what timm's pretrained configuration of a model says: mean and deviation."""
    published = model.pretrained_cfg
    return _triple(published["mean"]), _triple(published["std"])


def _read_preprocessor(source: str) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError):  # many checkpoints carry no such file
        return {}
    return dict(values)


def _model_type(source: str) -> str:
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(source).model_type)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)
