"""An adapter by itself: as a dict of tensors, and as files that peft opens too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.adapters import adapted_layers, has_adapter, lora_config
from training.merging import write_tensors
from training.model import PrismaticVLA
from vla_align_ros.errors import TrainingError

LORA_FILE = "adapter_model.safetensors"
FULL_FILE = "trained_in_full.safetensors"
SETTINGS_FILE = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_LORA_NAME = re.compile(r"(.+)\.(lora_[AB])\.default\.(weight)")


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """LoRA matrices as "<layer>.lora_A.weight" (r, in) and "<layer>.lora_B.weight" (out, r)."""
    found = ((_LORA_NAME.fullmatch(name), value) for name, value in model.named_parameters())
    return {".".join(match.groups()): value.detach() for match, value in found if match}


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train in full beside an adapter, by their names in the model.

    Whole parts: a vision tower that a schedule holds still for now is among them if it has none.
    """
    adapted = {name.split(".")[0] for name, _ in adapted_layers(model)}
    return {
        name: value.detach()
        for name, value in model.named_parameters()
        if name.split(".")[0] not in adapted
    }


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill the adapter, or what trains in full, from the two dicts above (or their union).

    A missing, unknown or misshapen tensor is a TrainingError and changes nothing.
    """
    own = {
        **(adapter_state_dict(model) if any(".lora_" in name for name in state) else {}),
        **(full_state_dict(model) if any(".lora_" not in name for name in state) else {}),
    }
    wrong = sorted(own.keys() ^ state.keys()) or [
        name for name, value in state.items() if own[name].shape != value.shape
    ]
    if wrong:
        raise TrainingError(
            "The adapter does not fit the model",
            got=f"{len(wrong)} names or shapes differ, such as {wrong[0]}",
            expected=f"{len(own)} tensors of this model's adapter",
            fix="use the model, rank and layers that it was trained with",
        )
    for name, value in state.items():
        own[name].copy_(value)


def save_adapter(model: PrismaticVLA, folder: str | Path) -> None:
    """Write the adapter apart: adapter_config.json and adapter_model.safetensors as peft does.

    What trains in full goes beside them, into trained_in_full.safetensors. TrainingError if there
    is no adapter.
    """
    if not has_adapter(model):
        raise TrainingError(
            "There is no adapter to save",
            got="a model whose weights all train",
            expected="a model after apply_adapter",
            fix="save the whole model, or train with --set adapter.kind=lora",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lora = {f"{_PEFT_PREFIX}{name}": value for name, value in adapter_state_dict(model).items()}
    write_tensors(lora, folder / LORA_FILE)
    write_tensors(full_state_dict(model), folder / FULL_FILE)
    lora_config(model).save_pretrained(str(folder))


def load_adapter(model: PrismaticVLA, folder: str | Path) -> None:
    """Fill the adapter of `model` and what trains in full from `save_adapter`'s folder, bit by bit.

    The model must have been given an adapter of the same rank, scale and layers. A missing file, or
    one that does not fit, is a TrainingError that changes nothing.
    """
    folder = Path(folder)
    if not has_adapter(model):
        raise TrainingError(
            "The model has no adapter to fill",
            got="a model before apply_adapter",
            expected="an adapter of the same rank and layers",
            fix="apply_adapter with the configuration of the run",
        )
    try:
        lora, full = (load_file(folder / name) for name in (LORA_FILE, FULL_FILE))
        scale = float(json.loads((folder / SETTINGS_FILE).read_text())["lora_alpha"])
    except Exception as error:
        raise TrainingError(
            "The adapter cannot be read",
            got=f"{folder}: {error}",
            expected=f"{LORA_FILE}, {FULL_FILE} and {SETTINGS_FILE}",
            fix="give a folder that save_adapter wrote",
        ) from error
    if scale != lora_config(model).lora_alpha:
        raise TrainingError(
            "The adapter does not fit the model",
            got=f"alpha {scale:g} in {folder}",
            expected=f"alpha {lora_config(model).lora_alpha:g}, by which this model scales",
            fix="use the model, rank, alpha and layers that it was trained with",
        )
    plain = {name.removeprefix(_PEFT_PREFIX): value for name, value in lora.items()}
    load_adapter_state(model, {**plain, **full})
