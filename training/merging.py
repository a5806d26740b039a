"""Adapters folded into dense weights, for export, saving and whatever knows no adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.adapters import ADAPTER, adapted_layers, has_adapter
from training.files import replace_atomically, told_as_oserror
from training.model import PrismaticVLA
from training.model.checkpoint import DESCRIPTION, WEIGHTS, check_finite, write_json
from training.quantize import dense_weight


@torch.no_grad()
def merge_adapter(model: PrismaticVLA) -> PrismaticVLA:
    """Fold the adapter into dense weights in place; returns `model`, a plain network again.

    W + alpha / r B A, added in float32 and stored in W's dtype. Quantised layers become dense: W is
    then what training multiplied with, not the weight before quantisation. Nothing is frozen after
    it. A model without adapter is left as it is.
    """
    if not has_adapter(model):
        return model
    for name, layer in list(adapted_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _merged_linear(name, layer))
    for attribute in ("peft_config", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(attribute, None)
    return model.requires_grad_(True)


@torch.no_grad()
def merged_state_dict(model: PrismaticVLA) -> dict[str, Tensor]:
    """What `merge_adapter(model).state_dict()` would be, leaving `model` as it is.

    Tensors that no adapter changes share the model's memory.
    """
    layers = dict(adapted_layers(model))
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        owner = next((name for name in _parents(key) if name in layers), None)
        if owner is None:
            state[key] = value
        elif f"{owner}.weight" not in state:
            linear = _merged_linear(owner, layers[owner])
            state.update({f"{owner}.{k}": v for k, v in linear.state_dict().items()})
    return state


def save_merged(model: PrismaticVLA, folder: str | Path) -> None:
    """Write model.json and model.safetensors as `PrismaticVLA.save`, with the adapter folded in.

    The model itself goes on training; `PrismaticVLA.load` reads the folder without peft.
    """
    folder = Path(folder)
    if not has_adapter(model):
        model.save(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(merged_state_dict(model), folder / WEIGHTS)
    write_json(model.describe(), folder / DESCRIPTION)


def _merged_linear(name: str, layer: Any) -> nn.Linear:
    """The dense layer that does what an adapted one does."""
    base = layer.get_base_layer()
    weight = dense_weight(base)
    merged = (weight.float() + layer.get_delta_weight(ADAPTER).float()).to(weight.dtype)
    check_finite(f"The merged weight of {name}", merged)
    linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    linear.weight = nn.Parameter(merged)
    if base.bias is not None:
        linear.bias = nn.Parameter(base.bias.detach())
    return linear.train(layer.training)


def _parents(key: str) -> list[str]:
    """Every module that the tensor called `key` may belong to: a.b.c gives a and a.b."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def write_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write tensors whole or not at all; of those that share memory the first by name is kept.

    That is the one that safetensors' own `save_model` keeps: both ways give the same file.
    """
    first: dict[tuple[int, int], str] = {}
    for name, value in sorted(state.items()):
        first.setdefault((value.data_ptr(), value.numel()), name)
    kept = set(first.values())
    unshared = {k: v.contiguous() for k, v in state.items() if k in kept}
    with replace_atomically(path) as temporary, told_as_oserror(path):
        save_file(unshared, temporary, metadata={"format": "pt"})
