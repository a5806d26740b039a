"""What a run would be, before it: do the tensors fit, and how much memory does a GPU need?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from training.config import RunConfig
from training.dry_run import dry_run
from training.layouts import estimate_layouts, name_dtype
from training.model import PrismaticVLA, VlaConfig
from training.model.checkpoint import find_weights, holds_model
from training.model.llm import read_text_config
from training.model.smollm import SMOLLM2, load_smollm2
from training.recipes import find_recipe
from training.settings import override
from training.setup_model import find_base, fit_vocabulary, frozen_dtype


def preview(
    recipe: str, *, base: str | None = None, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Check `recipe` without data and without a single weight in memory.

    Returns JSON values: "parameters", "missing_keys", "unexpected_keys" (against the checkpoint
    that the run starts from; `base` None: OpenVLA-7B's published list, if that is the recipe's),
    "memory_gb" (GB a GPU by layout; optimizer AdamW) and "assumptions". See `training.dry_run`. The
    N GPUs of a layout divide the run's batch. Of an LLM from scratch the words are left out of the
    vocabulary, which only the data know.
    """
    own = find_recipe(recipe)
    config = override(own, settings)
    if base is None and config.base != own.base:  # given by a setting
        base = config.base
    options: dict[str, Any] = {
        "batch_size": max(1, config.optim.batch_size // config.parallel.accumulate),
        "rank": config.adapter.rank,
        "checkpointing": config.memory.checkpointing,
        "divided": True,
    }
    if base is not None:
        base = find_weights(base)
        config = dataclasses.replace(config, base=base)
    options["frozen"] = frozen_dtype(config)
    if holds_model(config.base):
        return {"recipe": recipe, **_preview_student(find_base(config), options)}
    if config.base is not None:
        return {"recipe": recipe, **dry_run(base, **options)}
    return {"recipe": recipe, **_preview_student(config, options)}


def _preview_student(config: RunConfig, options: dict[str, Any]) -> dict[str, Any]:
    described = _describe(fit_vocabulary(config, words=0))
    layouts = estimate_layouts(described, **options)
    with torch.device("meta"):
        model = PrismaticVLA(described, pretrained=False)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "missing_keys": [],
        "unexpected_keys": [],
        "memory_gb": {name: round(parts["total"], 2) for name, parts in layouts.items()},
        "assumptions": {
            **{key: options[key] for key in ("batch_size", "rank", "checkpointing")},
            "batch_divided_by_n": options["divided"],
            "lora_frozen_in": name_dtype(options["frozen"]),
            "vocabulary_size": described.llm.config and described.llm.config.get("vocab_size"),
        },
    }


def _describe(config: VlaConfig) -> VlaConfig:
    """Name the shape of a pretrained language model, to build it without its weights."""
    llm = config.llm
    if llm.config is not None or llm.pretrained is None:
        return config
    if llm.pretrained == SMOLLM2:
        shape = load_smollm2("eager").config.to_dict()
    else:
        shape = read_text_config(llm.pretrained).to_dict()
    return dataclasses.replace(config, llm=dataclasses.replace(llm, config=shape))
