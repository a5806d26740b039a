"""A published OpenVLA checkpoint read into PrismaticVLA: no remote code, no second copy in RAM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from training.model.config import VlaConfig
from training.model.openvla.configuration import openvla_config
from training.model.openvla.files import CONFIG, Shards, find_folder, open_shards, read_document
from training.model.openvla.keys import compare_tensors, to_ours, to_published
from training.model.openvla.processor import build_openvla_processor, read_norm_stats
from training.model.prismatic import PrismaticVLA
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class OpenVlaCheckpoint:
    """An OpenVLA checkpoint, open.

    model: in eval mode. processor: for the data set that was asked for or is the only one in
    `norm_stats`; None if there are several and none was named (then build_openvla_processor).
    norm_stats: statistics by data set, as published. folder: where its files lie.
    """

    model: PrismaticVLA
    processor: Processor | None
    norm_stats: dict[str, Any]
    folder: Path


def load_openvla(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    unnorm_key: str | None = None,
    attention_backend: Literal["eager", "sdpa"] = "sdpa",
) -> OpenVlaCheckpoint:
    """Load a checkpoint in OpenVLA's Hugging Face layout.

    Args:
        source: its folder, or a hub repository such as openvla/openvla-7b.
        dtype: of the weights in memory (published: bfloat16); rotary tables stay float32.
        device: where they go, tensor by tensor.
        revision: branch, tag or commit of a repository.
        unnorm_key: data set whose statistics the processor uses.
        attention_backend: of the language model.

    Raises:
        ConfigurationError: if the checkpoint cannot be found, read or is of an unsupported kind.
        TrainingError: if its tensors are not those that its configuration describes.
    """
    folder = find_folder(source, revision)
    document, shards = read_document(folder, CONFIG), open_shards(folder)
    config = openvla_config(document, shards.shapes, attention_backend=attention_backend)
    model = build_empty(config)
    check_tensors(model, shards)
    fill_model(model, shards, dtype, device)
    norm_stats = read_norm_stats(folder)
    named = unnorm_key is not None or len(norm_stats) == 1
    processor = build_openvla_processor(folder, unnorm_key) if named else None
    return OpenVlaCheckpoint(model.eval(), processor, norm_stats, folder)


def build_empty(config: VlaConfig) -> PrismaticVLA:
    """Build the network on the meta device: names, shapes and no storage."""
    with torch.device("meta"):
        return PrismaticVLA(config, pretrained=False)


def published_shapes(model: PrismaticVLA) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors by published name."""
    return {to_published(name): tuple(value.shape) for name, value in model.state_dict().items()}


def check_tensors(model: PrismaticVLA, shards: Shards) -> None:
    """Refuse a checkpoint that lacks a tensor, has one too many or one of another shape."""
    wrong = compare_tensors(published_shapes(model), shards.shapes)
    if any(wrong.values()):
        raise TrainingError(
            "tensors of the checkpoint are not those that its configuration describes",
            got="; ".join(
                f"{len(names)} {kind.replace('_', ' ')} such as {names[0]}"
                for kind, names in wrong.items()
                if names
            ),
            expected="an OpenVLA checkpoint as published",
            fix=f"check {shards.folder}: a LoRA folder is opened on top of its base",
        )


def fill_model(
    model: PrismaticVLA, shards: Shards, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Give a model from `build_empty` its weights, one shard after the other."""
    by_file: dict[str, list[str]] = {}
    for name in model.state_dict():
        published = to_published(name)
        by_file.setdefault(shards.files[published], []).append(published)
    for members in by_file.values():
        tensors = shards.read(members)
        state = {to_ours(name): value.to(device, dtype) for name, value in tensors.items()}
        model.load_state_dict(state, strict=False, assign=True)
    compute_buffers(model, device)


def compute_buffers(model: PrismaticVLA, device: torch.device | str) -> None:
    """Compute what no checkpoint stores: the rotary embedding's tables, from its configuration."""
    for module in model.modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if empty:
            kind: Any = type(module)
            fresh = dict(kind(config=module.config).named_buffers(recurse=False))
            for name in empty:
                module.register_buffer(name, fresh[name].to(device), persistent=False)
