"""Theia teachers: the DeiT backbone's patch tokens, translators left out (arXiv 2407.20179)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from training.alignment.teachers.base import ModuleTeacher
from training.alignment.teachers.config import TeacherConfig
from training.alignment.teachers.pixels import NORMALISATIONS, PixelRecipe
from training.alignment.teachers.pretrained import Layout, cut_model
from training.alignment.teachers.remote import RemoteTeacher, load_remote, require_opt_in
from training.alignment.teachers.sources import Source
from training.fingerprint import fingerprint_architecture

LAYOUT = Layout("ViTModel", "layers", "layernorm", lambda _: 1, resizes=True)
HEAD_WIDTH = 64  # of every DeiT
_PREFIX = "backbone.model."
_RENAMED = (
    (r"^encoder\.layer\.", "layers."),
    (r"attention\.attention\.query", "attention.q_proj"),
    (r"attention\.attention\.key", "attention.k_proj"),
    (r"attention\.attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(layers\.\d+)\.output\.dense", r"\1.mlp.fc2"),
)


def build_theia(
    config: TeacherConfig, dtype: torch.dtype, device: torch.device | str
) -> ModuleTeacher:
    """Theia's backbone by transformers' ViTModel, or by the repository's code where allowed."""
    source = Source(config.source, config.revision)
    if config.remote_code:
        return RemoteTheia(config, load_remote(source, dtype), source, dtype, device)
    backbone = str(source.read_config().get("backbone"))
    if not re.fullmatch(r"(facebook/)?deit-(tiny|small|base)-patch16-224", backbone):
        require_opt_in(config, f"its backbone is {backbone!r}, not a plain DeiT")
    return TheiaTeacher(config, source, dtype, device)


def _recipe(config: TeacherConfig, source: Source, patch: int) -> PixelRecipe:
    """DeiT's preprocessing of the raw picture (the paper's code fed another network's pixels)."""
    mean, std = NORMALISATIONS["imagenet"]
    recipe = PixelRecipe(patch, mean, std, "bicubic")
    return recipe.adopt(source.read_pixels()) if config.pixels == "auto" else recipe


class TheiaTeacher(ModuleTeacher):
    """Theia's backbone in transformers; no code of the repository runs."""

    def __init__(
        self,
        config: TeacherConfig,
        source: Source,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        state = {_rename(key): value for key, value in source.read_weights(_PREFIX).items()}
        model: Any = _build_vit(source, state)
        cut_model(model, LAYOUT, config)
        super().__init__(
            config.name,
            model,
            _recipe(config, source, int(model.config.patch_size)).choose(config.pixels),
            dtype=dtype,
            device=device,
            decides=f"theia {fingerprint_architecture(model.config)}, layer {config.layer}",
        )

    def _look(self, pixels: Tensor) -> Tensor:
        output = self._model(pixel_values=pixels.to(self._dtype), interpolate_pos_encoding=True)
        states: Tensor = output.last_hidden_state[:, 1:]
        return states


class RemoteTheia(RemoteTeacher):
    """Theia by the repository's code: `forward_feature` of pixels that are already normalised."""

    def __init__(
        self,
        config: TeacherConfig,
        model: Any,
        source: Source,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        patch = int(model.backbone.model.config.patch_size)
        super().__init__(config, model, _recipe(config, source, patch), dtype, device)

    def _look(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._model.forward_feature(
            pixels.to(self._dtype),
            do_resize=False,
            do_rescale=False,
            do_normalize=False,
            interpolate_pos_encoding=True,
        )
        return features


def _rename(key: str) -> str:
    for old, new in _RENAMED:
        key = re.sub(old, new, key)
    return key


def _build_vit(source: Source, state: dict[str, Tensor]) -> Any:
    """A ViTModel of the shapes of `state`, with its weights."""
    from transformers import ViTConfig, ViTModel

    try:
        width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
        positions = state["embeddings.position_embeddings"].shape[1]
        inner = state["layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise source.refuse(
            f"no usable weight {error}", "weights of a DeiT under backbone.model."
        ) from error
    blocks = {key.split(".")[1] for key in state if key.startswith("layers.")}
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=inner,
        patch_size=patch,
        image_size=patch * round((positions - 1) ** 0.5),
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = ViTModel(config, add_pooling_layer=False)
    state = {key: value for key, value in state.items() if not key.startswith("pooler.")}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise source.refuse(
            str(error).splitlines()[1].strip(), "exactly the weights of a DeiT"
        ) from error
    return model
