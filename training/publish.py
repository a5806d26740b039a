"""A trained OpenVLA goes back to its published layout, LoRA merged or apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from training.adapter_files import adapter_state_dict, full_state_dict
from training.adapters import lora_config
from training.merging import merged_state_dict
from training.model import PrismaticVLA
from training.model.openvla import OpenVlaCheckpoint, write_openvla, write_openvla_adapter
from vla_align_ros.errors import ConfigurationError


def save_openvla(
    model: PrismaticVLA,
    source: OpenVlaCheckpoint | Path,
    out: str | Path,
    *,
    lora: Literal["merged", "apart"] = "merged",
    base: str | None = None,
    norm_stats: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` in OpenVLA's layout, for any tool that opens OpenVLA.

    Args:
        model: loaded by `load_openvla`, trained or not, with an adapter or none; it stays as it is.
        source: what it was loaded from.
        out: a folder that does not exist yet.
        lora: "merged" writes a whole checkpoint, "apart" adapter_model.safetensors and
            adapter_config.json, which peft opens on top of the published model; a projector that
            trained in full goes along.
        base: where others find the base of an adapter, e.g. openvla/openvla-7b.
        norm_stats: statistics by data set that replace the base's, in config.json (merged) and
            dataset_statistics.json.

    Raises:
        TrainingError: if the model is not of `source`'s shape or has nothing to write, or if with
            "apart" a tower or the language model was trained in full.
        ConfigurationError: if `out` exists, or `lora` is none of the two.
    """
    folder = source.folder if isinstance(source, OpenVlaCheckpoint) else Path(source)
    out = Path(out)
    if lora == "merged":
        write_openvla(merged_state_dict(model), folder, out, norm_stats=norm_stats)
    elif lora == "apart":
        adapter = adapter_state_dict(model)
        settings = _plain(lora_config(model).to_dict()) if adapter else {}
        full = full_state_dict(model)
        write_openvla_adapter(
            adapter, settings, folder, out, full=full, base=base, norm_stats=norm_stats
        )
    else:
        raise ConfigurationError(
            "no such way to write LoRA", got=repr(lora), expected='"merged" or "apart"'
        )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a peft configuration as JSON values, without the names of our own layers."""
    sets = {key: sorted(value) for key, value in settings.items() if isinstance(value, set)}
    return {**settings, **sets, "target_modules": None}
