"""Builds the networks that a configuration describes: the student, its adapter, the aligner."""

from __future__ import annotations

import dataclasses
import math

import torch

from training.adapters import AdapterReport, apply_adapter
from training.alignment import Aligner, Teacher
from training.alignment.teachers import build_teacher
from training.config import RunConfig
from training.memory import apply_memory
from training.model import PrismaticVLA, VlaConfig
from training.model.checkpoint import DESCRIPTION, find_weights, holds_model, read_json
from training.model.openvla import find_folder, load_openvla, open_shards, openvla_config
from training.model.openvla.files import CONFIG, read_document
from training.objective import Objective
from training.recipes import find_recipe
from training.settings import flatten, store
from training.vqa import with_vocabulary_head
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError

_VOCABULARY_MULTIPLE = 64


def fit_to_data(config: RunConfig, processor: Processor) -> RunConfig:
    """Give the network the sizes that only the data know: words of a new LLM, width of the state.

    A from-scratch LLM gets a vocabulary that holds the words and, behind them, the action bins.
    """
    model = fit_vocabulary(config, processor.tokenizer.vocabulary_size)
    if model.state is not None and processor.spec.state is not None:
        state = dataclasses.replace(model.state, dim=len(processor.spec.state.names))
        model = dataclasses.replace(model, state=state)
    return dataclasses.replace(config, model=model)


def fit_vocabulary(config: RunConfig, words: int) -> VlaConfig:
    """The network with the vocabulary that `words` and the losses need."""
    model = config.model
    if config.vqa is not None or config.loss.tokens > 0:
        model = with_vocabulary_head(model)
    if model.llm.config is not None and "vocab_size" not in model.llm.config:
        bins = model.head.kind == "tokens" or config.loss.tokens > 0
        needed = max(1, words + (model.head.bins if bins else 0))
        size = math.ceil(needed / _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
        llm = dataclasses.replace(model.llm, config={**model.llm.config, "vocab_size": size})
        model = dataclasses.replace(model, llm=llm)
    return model


def find_base(config: RunConfig) -> RunConfig:
    """Take the network's shape from what the run starts from, if from anything.

    From an OpenVLA checkpoint, or from a finished run of ours, to which committed actions may come.
    `base` becomes what `find_weights` makes of it.

    Raises:
        ConfigurationError: nothing is there, or a setting asks for another shape.
    """
    if config.base is None:
        return config
    config = dataclasses.replace(config, base=find_weights(config.base))
    folder = find_folder(str(config.base))
    if holds_model(folder):
        _refuse_shape(config, "head.committed")
        model = VlaConfig.from_dict(read_json(folder / DESCRIPTION))
        told = config.model.head.committed or model.head.committed
        head = dataclasses.replace(model.head, committed=told)
        return dataclasses.replace(config, model=dataclasses.replace(model, head=head))
    _refuse_shape(config, "attention_backend")
    model = openvla_config(
        read_document(folder, CONFIG),
        open_shards(folder).shapes,
        attention_backend=config.model.attention_backend,
    )
    return dataclasses.replace(config, model=model)


def _refuse_shape(config: RunConfig, free: str) -> None:
    """Nothing of the network but `free` may differ from the recipe's: the base decides it."""
    recipe = flatten(store(find_recipe(config.recipe).model))
    asked = flatten(store(config.model))
    other = [key for key in {**recipe, **asked} if recipe.get(key) != asked.get(key)]
    if refused := [key for key in other if key != free]:
        raise ConfigurationError(
            "The network's shape comes from what the run starts from",
            got=", ".join(f"model.{key}" for key in refused),
            expected=f"none but model.{free} beside a base ({config.base})",
            fix="leave the setting out, or train without a base",
        )


def build_student(
    config: RunConfig, processor: Processor, device: torch.device | str | None = None
) -> tuple[PrismaticVLA, AdapterReport]:
    """Build the network from `config.seed` and the weights it starts from, with its adapter.

    The same configuration and processor give the same network, bit for bit, wherever it is built:
    what a checkpoint leaves out is made again by this. device: where quantised layers go.
    """
    config = fit_to_data(config, processor)
    torch.manual_seed(config.seed)
    if holds_model(config.base):
        model = PrismaticVLA.load(str(config.base)).train()
        if (told := config.model.head.committed) != model.config.head.committed:
            model.take_committed(told)
    elif config.base is not None:
        dtype = frozen_dtype(config) if config.adapter.kind != "none" else torch.float32
        backend = config.model.attention_backend
        model = load_openvla(config.base, dtype=dtype, attention_backend=backend).model
    else:
        model = PrismaticVLA(config.model)
    report = apply_adapter(
        model, config.adapter, compute_dtype=compute_dtype(config), device=device
    )
    return model, report


def build_objective(config: RunConfig, model: PrismaticVLA, teacher: Teacher | None) -> Objective:
    """Put what a step minimises around `model`; applies what saves its memory."""
    aligner = None
    if teacher is not None:
        widths = (model.llm_width, sum(tower.width for tower in model.vision))
        layers = int(model.llm.config.num_hidden_layers)
        aligner = Aligner(config.alignment, teacher.width, *widths, layers)
    apply_memory(model, config.memory)
    return Objective(
        model, aligner, config.loss, vqa_weight=config.vqa.weight if config.vqa else 0.0
    )


def find_teacher(config: RunConfig) -> Teacher | None:
    """The frozen teacher on the CPU; None where lambda is 0, and nothing is loaded then."""
    if config.alignment.weight == 0:
        return None
    return build_teacher(config.teacher, compute_dtype(config), "cpu")


def frozen_dtype(config: RunConfig) -> torch.dtype:
    """In what an adapter leaves what it freezes, where that is not quantised.

    OpenVLA's as published, in bfloat16, unless the run computes in float32; any other network in
    float32, as it was built.
    """
    of_openvla = config.base is not None and not holds_model(config.base)
    return compute_dtype(config) if of_openvla else torch.float32


def compute_dtype(config: RunConfig) -> torch.dtype:
    """What the run's precision computes in."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32
