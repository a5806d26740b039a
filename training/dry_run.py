"""A look at OpenVLA before days of training: every tensor's name and shape, memory a GPU."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import math
from pathlib import Path
from typing import Any

import torch

from training.layouts import estimate_layouts, name_dtype
from training.model.openvla import (
    build_empty,
    compare_tensors,
    find_carried,
    find_folder,
    open_shards,
    openvla_7b_json,
    openvla_config,
)
from training.model.openvla.files import CONFIG, read_document
from training.model.openvla.load import published_shapes
from vla_align_ros.errors import TrainingError

PUBLISHED = "openvla_7b_tensors.json.gz"
"""Names and shapes of openvla-7b's 982 tensors, listed by the published implementation."""


def dry_run(
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    batch_size: int = 1,
    prompt_tokens: int = 32,
    rank: int = 32,
    checkpointing: bool = False,
    divided: bool = False,
    frozen: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Check that PrismaticVLA and a checkpoint have the same tensors, without reading weights.

    Args:
        base: folder or repository of a checkpoint; None compares OpenVLA-7B at full size with the
            tensor list of the published implementation, and needs no file.
        revision: of a repository.
        batch_size, prompt_tokens, rank, checkpointing, divided, frozen: what memory depends on;
            see `training.layouts.estimate_layouts`.

    Returns:
        JSON values: "parameters" (of the checkpoint), "unused_parameters" (of them, those that
        OpenVLA never uses and PrismaticVLA leaves out), "trained_parameters" ("full" and "lora"),
        "tensors", "missing_keys" (the model needs, the checkpoint lacks), "unexpected_keys",
        "mismatched_shapes", "memory_gb" (GB a GPU by layout), "memory_parts_gb" (the same in
        parts), "assumptions".

    Raises:
        ConfigurationError: if the checkpoint cannot be found, read or is of an unsupported kind.
    """
    if base is None:
        source, document, shapes = "openvla/openvla-7b as published", openvla_7b_json(), None
        expected = read_published_tensors()
    else:
        folder = find_folder(base, revision)
        source, document = str(base), read_document(folder, CONFIG)
        expected = shapes = open_shards(folder).shapes
    config = openvla_config(document, shapes)
    wrong = compare_tensors(published_shapes(build_empty(config)), expected)
    layouts = estimate_layouts(
        config,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        rank=rank,
        checkpointing=checkpointing,
        divided=divided,
        frozen=frozen,
    )
    return {
        "source": source,
        "parameters": sum(map(math.prod, expected.values())),
        "unused_parameters": sum(math.prod(expected[name]) for name in find_carried(expected)),
        "trained_parameters": {  # their gradients are float32
            kind: round(layouts[kind]["gradients"] * 1e9 / 4) for kind in ("full", "lora")
        },
        "tensors": len(expected),
        **wrong,
        "memory_gb": {name: round(parts["total"], 2) for name, parts in layouts.items()},
        "memory_parts_gb": {
            name: {key: round(value, 3) for key, value in parts.items()}
            for name, parts in layouts.items()
        },
        "assumptions": {
            "batch_size": batch_size,
            "prompt_tokens": prompt_tokens,
            "lora_rank": rank,
            "checkpointing": checkpointing,
            "batch_divided_by_n": divided,
            "lora_frozen_in": name_dtype(frozen),
        },
    }


def read_published_tensors() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of openvla-7b's tensors as the published implementation has them."""
    file = importlib.resources.files("training.model.openvla") / PUBLISHED
    try:
        document = json.loads(gzip.decompress(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise TrainingError(
            "list of OpenVLA-7B's tensors cannot be read",
            got=str(error),
            expected=f"{PUBLISHED} in the installed package",
            fix="install the package again",
        ) from error
    return {name: tuple(shape) for name, shape in document["tensors"].items()}
