"""Activation checkpointing and compilation, block by block of the network's transformers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training.model import PrismaticVLA
from vla_align_ros.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """What trades time for memory, and compile time for step time.

    checkpointing: keep only each transformer block's input and compute the block again in the
    backward pass. compile: torch.compile each block; blocks of one shape share one compilation.
    """

    checkpointing: bool = False
    compile: bool = False


def apply_memory(model: PrismaticVLA, config: MemoryConfig) -> int:
    """Apply `config` to `model` in place; returns how many blocks it changed.

    After adapters, before sharding and before building the optimizer. Parameter names stay.
    """
    if config.checkpointing:
        checkpoint_blocks(model)
    if config.compile:
        compile_blocks(model)
    return len(find_blocks(model)) if config.checkpointing or config.compile else 0


def find_blocks(model: PrismaticVLA) -> list[tuple[str, nn.Module]]:
    """Name and module of every transformer block: of each vision tower, then of the LLM.

    The blocks of a stack are the children of that list of layers which has the most parameters.
    """
    roots = [(f"vision.{i}", tower) for i, tower in enumerate(model.vision)]
    found = []
    for name, root in [*roots, ("llm", model.llm)]:
        stacks = [
            (inner, module)
            for inner, module in root.named_modules()
            if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0
        ]
        if not stacks:
            raise ConfigurationError(
                "No transformer blocks found",
                got=f"{type(root).__name__} at {name}",
                expected="an nn.ModuleList or nn.Sequential of blocks",
                fix="switch off checkpointing, compiling and sharding for this network",
            )
        inner, stack = max(stacks, key=lambda pair: _count_parameters(pair[1]))
        found += [(f"{name}.{inner}.{index}", block) for index, block in stack.named_children()]
    return found


def checkpoint_blocks(model: PrismaticVLA) -> int:
    """Recompute every block in the backward pass; returns how many. Gradients stay equal.

    Random states are restored for it, so dropout repeats. Evaluation is not affected.
    """
    blocks = find_blocks(model)
    for _, block in blocks:
        if not getattr(block, "is_checkpointed", False):
            block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]
    return len(blocks)


def compile_blocks(model: PrismaticVLA, *, backend: str = "inductor") -> int:
    """Compile every block in place by torch.compile; returns how many.

    Compilation itself happens in the first steps; shapes are static, so keep the prompt's length
    fixed, as the tokenizer does.
    """
    blocks = find_blocks(model)
    for _, block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a block's class that checkpoints its forward.

    Swapping the class keeps parameter names, isinstance and copying, which wrapping would not.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        compute = functools.partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

    members = {"forward": forward, "is_checkpointed": True, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), members)


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
