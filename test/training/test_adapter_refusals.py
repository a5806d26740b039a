"""What LoRA refuses, and that each refusal says what to do and changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import adapted
from tiny_models import build, tiny_config
from torch import nn

from training.adapter_files import (
    FULL_FILE,
    LORA_FILE,
    adapter_state_dict,
    load_adapter,
    load_adapter_state,
    save_adapter,
)
from training.adapters import (
    AdapterConfig,
    adapted_layers,
    apply_adapter,
    describe_adapter,
    find_targets,
    has_adapter,
)
from training.merging import save_merged
from vla_align_ros.errors import ConfigurationError, TrainingError


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "dora"},
        {"rank": 0},
        {"alpha": 0},
        {"dropout": 1.0},
        {"init": "zeros"},
        {"full": ("head",)},
        {"full": ("vision", "projector", "llm")},
        {"quantize": "fp4"},
        {"kind": "none", "quantize": "nf4"},
        {"quantize": "nf4", "full": ("llm",)},
        {"quantize_vision": True},
        {"quantize": "nf4", "quantize_vision": True, "full": ("vision",)},
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"adapter\.\w+.*fix: correct --set"):
        AdapterConfig(**{"kind": "lora", **settings})


def test_refusals_say_what_is_wrong(tmp_path: Path) -> None:
    plain, model = build(tiny_config()), adapted()
    with pytest.raises(TrainingError, match="has an adapter already"):
        apply_adapter(model, AdapterConfig(kind="lora"))
    with pytest.raises(TrainingError, match="no adapter to save"):
        save_adapter(plain, tmp_path)
    with pytest.raises(TrainingError, match="no adapter to fill"):
        load_adapter(plain, tmp_path)
    with pytest.raises(TrainingError, match="cannot be read"):
        load_adapter(model, tmp_path)
    save_adapter(adapted(rank=2), tmp_path)
    before = adapter_state_dict(model)
    kept = {name: value.clone() for name, value in before.items()}
    with pytest.raises(TrainingError, match="does not fit"):
        load_adapter(model, tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in before.items())
    incomplete = dict(list(kept.items())[1:])
    with pytest.raises(TrainingError, match="names or shapes differ"):
        load_adapter_state(model, incomplete)
    (tmp_path / FULL_FILE).unlink()
    assert (tmp_path / LORA_FILE).exists()
    with pytest.raises(TrainingError, match="cannot be read"):
        load_adapter(model, tmp_path)
    plain.projector.fc1, plain.projector.fc2 = nn.Identity(), nn.Identity()
    with pytest.raises(ConfigurationError, match="no linear layer in projector"):
        find_targets(plain)


def test_an_adapter_of_another_scale_does_not_fit(tmp_path: Path) -> None:
    save_adapter(adapted(alpha=8), tmp_path)
    model = adapted(alpha=16)
    kept = {name: value.clone() for name, value in adapter_state_dict(model).items()}
    with pytest.raises(TrainingError, match=r"got alpha 8 in .*; expected alpha 16"):
        load_adapter(model, tmp_path)
    assert all(torch.equal(v, kept[name]) for name, v in adapter_state_dict(model).items())


@pytest.mark.parametrize(("library", "extra"), [("peft", "lora"), ("bitsandbytes", "qlora")])
def test_a_missing_library_is_answered_with_a_command(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_config())
    monkeypatch.setitem(sys.modules, library, None)  # as Python sees what is not installed
    with pytest.raises(ConfigurationError, match=rf"{library}.*pip install '\.\[{extra}\]'"):
        apply_adapter(model, AdapterConfig(kind="lora", quantize="nf4"))
    assert not has_adapter(model) and describe_adapter(model).quantized == ()


def test_an_adapter_that_is_not_finite_is_not_merged(tmp_path: Path) -> None:
    model = adapted()
    dict(adapted_layers(model))["projector.fc1"].lora_B["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"projector\.fc1 is not finite"):
        save_merged(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
