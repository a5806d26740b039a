"""C-RADIO teachers: spatial features of the backbone, adaptors left out (arXiv 2312.06709)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.alignment.teachers.base import ModuleTeacher
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.pixels import NORMALISATIONS, PixelRecipe
from training.alignment.teachers.pretrained import Layout, cut_model, load_pretrained
from training.alignment.teachers.remote import RemoteTeacher, load_remote, require_opt_in
from training.alignment.teachers.sources import Source
from training.fingerprint import fingerprint_architecture, fingerprint_weights

LAYOUT = Layout("RadioModel", "encoder.layer", None, lambda config: int(config.num_summary_tokens))
PATCH_PX = 16
# Architecture in a published config.json -> attention heads, which no weight tells.
HEADS = {
    "vit_small": 6,
    "vit_base": 12,
    "vit_large": 16,
    "vit_huge": 16,
    "vit_so400m": 16,
    "vit_giant": 24,
}
_PREFIX = "radio_model.model."
# Weights without a say in the spatial features, but for the conditioner, which RadioModel has.
_READABLE = (
    "radio_model.adaptors.",
    "radio_model.inter_feature_normalizer.",
    "radio_model.input_conditioner.",
    "radio_model.summary_idxs",
)


def build_radio(
    config: TeacherConfig, dtype: torch.dtype, device: torch.device | str
) -> ModuleTeacher:
    """C-RADIO by transformers' own RadioModel, or by the repository's code where allowed."""
    source = Source(config.source, config.revision)
    if config.remote_code:
        return RemoteRadio(config, load_remote(source, dtype), dtype, device)
    values = source.read_config()
    return RadioTeacher(config, source, _native_config(config, source, values), dtype, device)


def _recipe(patch: int) -> PixelRecipe:
    """Pixels in [0, 1]: the network normalises them itself. The paper resizes bilinearly."""
    mean, std = NORMALISATIONS["unit"]
    return PixelRecipe(patch, mean, std, "bilinear")


class RadioTeacher(ModuleTeacher):
    """C-RADIO in transformers; no code of the repository runs. `layer` counts its blocks."""

    def __init__(
        self,
        config: TeacherConfig,
        source: Source,
        native: Any,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        # In float32, to which the conditioner's mean and deviation belong whatever the precision:
        # the rest is cast below.
        model: Any = load_pretrained(LAYOUT.model, source, torch.float32, native)
        cut_model(model, LAYOUT, config)
        self._prefix = LAYOUT.prefix(model.config)
        self._conditioner: Any = model.make_preprocessor_external().to(device)
        super().__init__(
            config.name,
            model,
            _recipe(int(model.config.patch_size)).choose(config.pixels),
            dtype=dtype,
            device=device,
            decides=f"radio {fingerprint_architecture(model.config)}, layer {config.layer}, "
            f"{fingerprint_weights(self._conditioner.state_dict())}",
        )

    def to(self, device: torch.device | str) -> RadioTeacher:
        """Move the weights to `device`."""
        self._conditioner.to(device)
        return super().to(device)

    def _look(self, pixels: Tensor) -> Tensor:
        conditioned = self._conditioner(pixels.float()).to(self._dtype)
        states: Tensor = self._model(conditioned).last_hidden_state[:, self._prefix :]
        return states


class RemoteRadio(RemoteTeacher):
    """C-RADIO by the repository's code: pixels in [0, 1] to (summary, spatial features)."""

    def __init__(
        self, config: TeacherConfig, model: Any, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        step = int(getattr(model, "min_resolution_step", None) or model.patch_size)
        super().__init__(config, model, _recipe(step), dtype, device)

    def _look(self, pixels: Tensor) -> Tensor:
        output = self._model(pixels.to(self._dtype))
        if isinstance(output, dict):  # with adaptors, which are not asked
            output = output["backbone"]
        features: Tensor = output[1]
        return features


def _native_config(config: TeacherConfig, source: Source, values: Mapping[str, Any]) -> Any:
    """RadioConfig of a repository that has one, or of the older layout with its `args`.

    The older layout (C-RADIO v2 and v3) names a timm architecture and leaves the rest to code;
    shapes of the weights say the rest here. What they cannot say (windowed attention, normalised
    features, layer scales) is refused, so that no feature is silently another one.
    """
    from transformers import RadioConfig

    if values.get("model_type") == "radio" and "hidden_size" in values:
        return RadioConfig.from_dict(dict(values))
    arguments = values.get("args")
    if not isinstance(arguments, Mapping):
        require_opt_in(config, "config.json has neither model_type radio nor args")
        raise AssertionError("unreachable")
    shapes = source.weight_shapes()
    reason = _why_unreadable(values, arguments, shapes)
    if reason:
        require_opt_in(config, reason)
    generator = f"{_PREFIX}patch_generator."
    width, patch_values = shapes[f"{generator}embedder.weight"]
    patch = math.isqrt(patch_values // 3)
    tokens = shapes[f"{generator}cls_token.token"][0]
    summaries = [
        index
        for index, teacher in enumerate(arguments.get("teachers", ()))
        if teacher.get("use_summary", True)
    ]
    classes = max(summaries, default=0) + 1
    return RadioConfig(
        hidden_size=width,
        num_hidden_layers=_count_blocks(shapes),
        num_attention_heads=_count_heads(arguments) or 0,
        mlp_ratio=shapes[f"{_PREFIX}blocks.0.mlp.fc1.weight"][0] / width,
        qkv_bias=f"{_PREFIX}blocks.0.attn.qkv.bias" in shapes,
        patch_size=patch,
        image_size=14 * patch,
        max_img_size=patch * math.isqrt(shapes[f"{generator}pos_embed"][1]),
        num_cls_tokens=classes,
        num_registers=tokens - classes,
        summary_idxs=summaries or [0],
    )


def _count_heads(arguments: Mapping[str, Any]) -> int | None:
    """Attention heads of the named architecture, None if it is not a plain one."""
    own = (arguments.get("model_kwargs") or {}).get("num_heads")
    if own is not None:
        return int(own)
    family = "_".join(str(arguments.get("model")).split("_")[:2])
    return HEADS.get(family)


def _count_blocks(shapes: Mapping[str, Any]) -> int:
    start = f"{_PREFIX}blocks."
    numbers = {
        int(key.removeprefix(start).split(".")[0]) for key in shapes if key.startswith(start)
    }
    return len(numbers)


def _why_unreadable(
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> str | None:
    """What in a published checkpoint RadioModel has no place for; None if all of it has one."""
    if _count_heads(arguments) is None:
        return f"the architecture {arguments.get('model')!r} is not a plain vision transformer"
    for key in ("vitdet_window_size", "feature_normalizer_config"):
        if values.get(key) is not None:
            return f"config.json sets {key}"
    if arguments.get("model_norm"):
        return "its output is normalised (model_norm)"
    generator = {f"patch_generator.{name}" for name in _GENERATOR}
    needed = {f"{_PREFIX}{name}" for name in (*generator, "blocks.0.mlp.fc1.weight")}
    if not needed <= set(shapes):
        return f"its weights lack {sorted(needed - set(shapes))[0]}"
    for key in shapes:
        name = key.removeprefix(_PREFIX)
        known = name in generator or _is_block_weight(name) or key.startswith(_READABLE)
        if not known:
            return f"its weight {key} belongs to another architecture"
    return None


_GENERATOR = ("embedder.weight", "pos_embed", "cls_token.token")
_BLOCK = {
    f"{module}.{kind}"
    for module in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
}


def _is_block_weight(name: str) -> bool:
    start, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    return start == "blocks" and number.isdigit() and inner in _BLOCK
