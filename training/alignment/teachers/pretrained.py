"""Teachers that transformers knows: DINOv2, DINOv3, SigLIP, SigLIP2, in their published layouts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.alignment.teachers.base import ModuleTeacher, take_layer
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.pixels import NORMALISATIONS, PixelRecipe
from training.alignment.teachers.sources import Source
from training.fingerprint import fingerprint_architecture


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model of transformers keeps what a teacher needs.

    model: its class. blocks, norm: paths of the list of blocks and of the norm behind them. prefix:
    tokens before the patches (class and registers). resizes: forward takes
    `interpolate_pos_encoding`; the others fit any picture by themselves.
    """

    model: str
    blocks: str
    norm: str | None
    prefix: Callable[[Any], int]
    resizes: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "dinov2": Layout("Dinov2Model", "encoder.layer", "layernorm", lambda _: 1),
    "dinov2_with_registers": Layout(
        "Dinov2WithRegistersModel",
        "encoder.layer",
        "layernorm",
        lambda config: 1 + int(config.num_register_tokens),
    ),
    "dinov3_vit": Layout(
        "DINOv3ViTModel", "model.layer", "norm", lambda config: 1 + int(config.num_register_tokens)
    ),
    "siglip_vision_model": Layout(
        "SiglipVisionModel", "encoder.layers", "post_layernorm", lambda _: 0, resizes=True
    ),
    "siglip2_vision_model": Layout(
        "Siglip2VisionModel", "encoder.layers", "post_layernorm", lambda _: 0
    ),
}
# Family -> its model types, and normalisation and interpolation where none are published with it.
# SigLIP2 checkpoints of one size are models of type siglip, those of any size (NaFlex) siglip2.
FAMILY_TYPES: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "dinov2": (("dinov2", "dinov2_with_registers"), "imagenet", "bicubic"),
    "dinov3": (("dinov3_vit",), "imagenet", "bilinear"),
    "siglip": (("siglip", "siglip_vision_model"), "half", "bicubic"),
    "siglip2": (
        ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
        "half",
        "bilinear",
    ),
}


class PretrainedTeacher(ModuleTeacher):
    """A vision transformer of transformers: patch features of a hidden state, or normalised last.

    Class and register tokens are left out. SigLIP's pooling head is not run.
    """

    def __init__(
        self, config: TeacherConfig, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        source = Source(config.source, config.revision)
        values = source.read_config()
        types, normalisation, interpolation = FAMILY_TYPES[config.family]
        kind = str(values.get("model_type"))
        if kind not in types:
            raise source.refuse(
                f"a model of type {kind!r}", f"{config.family}: {' or '.join(types)}"
            )
        if "vision_config" in values:
            kind = {"siglip": "siglip_vision_model"}.get(kind, "siglip2_vision_model")
        self._layout = LAYOUTS[kind]
        model: Any = load_pretrained(self._layout.model, source, dtype)
        self._prefix = self._layout.prefix(model.config)
        self._flattens = kind == "siglip2_vision_model"
        cut_model(model, self._layout, config)
        mean, std = NORMALISATIONS[normalisation]
        recipe = PixelRecipe(int(model.config.patch_size), mean, std, interpolation)
        if config.pixels == "auto":
            recipe = recipe.adopt(source.read_pixels())
        super().__init__(
            config.name,
            model,
            recipe.choose(config.pixels),
            dtype=dtype,
            device=device,
            decides=f"{kind} {fingerprint_architecture(model.config)}, layer {config.layer}",
        )

    def _look(self, pixels: Tensor) -> Tensor:
        if self._flattens:
            return self._look_at_patches(pixels.to(self._dtype))
        extra = {"interpolate_pos_encoding": True} if self._layout.resizes else {}
        output = self._model(pixel_values=pixels.to(self._dtype), **extra)
        states: Tensor = output.last_hidden_state[:, self._prefix :]
        return states

    def _look_at_patches(self, pixels: Tensor) -> Tensor:
        """SigLIP2 of any size takes patches, each row by row with the colour fastest."""
        patch = self.recipe.patch
        batch, channels, height, width = pixels.shape
        rows, columns = height // patch, width // patch
        cut = pixels.reshape(batch, channels, rows, patch, columns, patch)
        flat = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
        shapes = torch.tensor([[rows, columns]], device=pixels.device).expand(batch, 2)
        output = self._model(
            pixel_values=flat,
            pixel_attention_mask=torch.ones(flat.shape[:2], dtype=torch.long, device=pixels.device),
            spatial_shapes=shapes,
        )
        states: Tensor = output.last_hidden_state
        return states


def load_pretrained(
    class_name: str, source: Source, dtype: torch.dtype, config: Any | None = None
) -> nn.Module:
    """Load a class of transformers from safetensors; every weight it has must be in the files.

    No code of the source runs. ConfigurationError if the files cannot be read or lack a weight.
    """
    import transformers

    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            source.location,
            config=config,
            revision=source.revision,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise source.refuse(lines[0], f"weights of a {class_name} as safetensors") from error
    lacking = sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])})
    lacking = [key for key in lacking if not key.startswith(("head.", "pooler."))]
    if lacking:
        raise source.refuse(
            f"no fitting weights for {', '.join(lacking[:3])} ({len(lacking)} in all)",
            f"every weight of a {class_name}",
        )
    loaded: nn.Module = model
    return loaded


def cut_model(model: Any, layout: Layout, config: TeacherConfig) -> None:
    """Keep what leads to the wanted features: the blocks up to a layer, and no pooling."""
    take_layer(operator.attrgetter(layout.blocks)(model), config.layer, config.name)
    if config.layer is not None and layout.norm is not None:
        setattr(model, layout.norm, nn.Identity())
    if getattr(model, "use_head", False):
        model.use_head = False
        del model.head
