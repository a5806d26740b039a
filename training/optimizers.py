"""The optimizer of a run: which parameters it moves, in which groups, at which rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from training.quantize import import_bitsandbytes
from vla_align_ros.errors import ConfigurationError

BETA1 = 0.9
Group = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW with a linear warm-up, then a constant rate or a cosine to `final_fraction` of it.

    name "adamw8bit": bitsandbytes' AdamW with moments of 8 bits, block by block; tensors below 4096
    elements and embeddings keep 32. schedule "constant" with warmup_steps 0 is the paper's.
    vision_lr applies to the vision tower, which is held still for the first `vision_from_step`
    steps and then follows a warm-up and schedule of its own; None freezes it for good.
    clip: maximum gradient norm.
    """

    name: Literal["adamw", "adamw8bit"] = "adamw"
    steps: int = 1000
    batch_size: int = 64
    lr: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    vision_lr: float | None = 3e-5
    vision_from_step: int = 0
    vision_warmup_steps: int = 200
    warmup_steps: int = 200
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        vision_lr = self.vision_lr if self.vision_lr is not None else 0.0
        names, schedules = ("adamw", "adamw8bit"), ("cosine", "constant")
        _check("name", self.name, self.name in names, '"adamw" or "adamw8bit"')
        _check("schedule", self.schedule, self.schedule in schedules, '"cosine" or "constant"')
        for name in ("steps", "batch_size"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("vision_from_step", "vision_warmup_steps", "warmup_steps", "weight_decay"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check("lr", self.lr, self.lr > 0, "more than 0")
        _check("vision_lr", self.vision_lr, vision_lr >= 0, "0 or more, or null")
        _check("final_fraction", self.final_fraction, 0 <= self.final_fraction <= 1, "0 to 1")
        _check("beta2", self.beta2, 0 <= self.beta2 < 1, "0 or more, below 1")
        _check("clip", self.clip, self.clip > 0, "more than 0")


def schedule(step: int, warmup: int, total: int, final: float) -> float:
    """Share of the peak rate at `step` of `total`: linear warm-up, then a cosine to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def main_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate of everything but the vision tower at `step`."""
    return optim.lr * _share(optim, step, optim.warmup_steps, optim.steps)


def vision_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate of the vision tower at `step`; 0 while it is frozen.

    It has a warm-up and a schedule of its own, from the step on which the tower is let go.
    """
    start = optim.vision_from_step
    if optim.vision_lr is None or step < start:
        return 0.0
    share = _share(optim, step - start, optim.vision_warmup_steps, optim.steps - start)
    return optim.vision_lr * share


def build_optimizer(objective: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Make the optimizer of all that trains in `objective`: its `model` and its `aligner`, if any.

    Groups have the keys "name", "vision" (whether the vision rate applies) and the usual ones; only
    matrices decay. A parameter without requires_grad is left out for good. vision_lr None takes the
    gradient from the vision tower here. Call it after adapters, activation checkpointing and
    sharding. Raises ConfigurationError if nothing trains, or for 8-bit moments of sharded
    parameters, which bitsandbytes does not have.
    """
    model: Any = objective.model
    if optim.vision_lr is None:
        model.vision.requires_grad_(False)
    members = [
        (part, parameter)
        for part, named in model.parameter_groups().items()
        for _, parameter in named
    ]
    aligner = getattr(objective, "aligner", None)
    members += [("aligner", p) for p in (aligner.parameters() if aligner is not None else ())]
    trained = [(part, parameter) for part, parameter in members if parameter.requires_grad]
    if not trained:
        raise ConfigurationError(
            "Nothing trains",
            got=f"{len(members)} parameters, all of them frozen",
            expected="at least one with a gradient",
            fix="correct --set optim.vision_lr or adapter",
        )
    if optim.name == "adamw8bit":
        return _build_adamw8bit(model, trained, optim)
    groups = _group(trained, optim, wide=frozenset())
    # On a GPU one kernel for all: by torch's documentation its default takes a copy more of them.
    fused = all(parameter.is_cuda for _, parameter in trained)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(BETA1, optim.beta2), fused=fused or None)


def set_rates(optimizer: torch.optim.Optimizer, optim: OptimConfig, step: int) -> bool:
    """Set the rates of `step` and let the tower's parameters go or hold them still.

    Only parameters that the optimizer holds are touched, so that what lies below an adapter stays
    frozen. Returns whether the vision tower is frozen in this step.
    """
    vision = vision_rate(optim, step)
    for group in optimizer.param_groups:
        group["lr"] = vision if group["vision"] else main_rate(optim, step)
        if group["vision"]:
            for parameter in group["params"]:
                parameter.requires_grad_(vision > 0.0)
    return vision == 0.0


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that the optimizer moves, in its order (to clip the gradient)."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def count_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of the optimizer's own tensors in bytes; shared ones count once."""
    found = {
        value.data_ptr(): value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(found.values())


def _share(optim: OptimConfig, step: int, warmup: int, total: int) -> float:
    final = 1.0 if optim.schedule == "constant" else optim.final_fraction
    return schedule(step, warmup, total, final)


def _group(
    trained: list[tuple[str, nn.Parameter]], optim: OptimConfig, wide: frozenset[int]
) -> list[Group]:
    """Parameter groups in order of first appearance; `wide`: ids of those with 32-bit moments."""
    groups: dict[str, Group] = {}
    for part, parameter in trained:
        # The aligner's parameters are never sharded: torch updates no group that mixes both kinds.
        name = part if part in ("vision", "aligner") else "main"
        is_matrix, is_wide = parameter.ndim > 1, id(parameter) in wide
        name += ("" if is_matrix else ".vectors") + (".embeddings" if is_wide else "")
        fresh = {
            "params": [],
            "name": name,
            "vision": part == "vision",
            "weight_decay": optim.weight_decay if is_matrix else 0.0,
            "optim_bits": 32 if is_wide else 8,
        }
        groups.setdefault(name, fresh)["params"].append(parameter)
    return list(groups.values())


def _build_adamw8bit(
    model: nn.Module, trained: list[tuple[str, nn.Parameter]], optim: OptimConfig
) -> torch.optim.Optimizer:
    from torch.distributed.tensor import DTensor

    base: Any = import_bitsandbytes().optim.AdamW8bit
    if any(isinstance(parameter, DTensor) for _, parameter in trained):
        raise ConfigurationError(
            "8-bit moments of sharded parameters do not exist",
            got="optim.name adamw8bit with FSDP",
            expected="adamw with FSDP, or adamw8bit on one process or with DDP",
            fix="--set optim.name=adamw",
        )

    class AdamW8bit(base):  # type: ignore[misc]
        """Takes the number of bits from the group; the library's override is global by id."""

        def get_config(self, gindex: int, pindex: int, group: Group) -> Group:
            config: Group = super().get_config(gindex, pindex, group)
            return {**config, "optim_bits": group["optim_bits"]}

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    groups = _group(trained, optim, frozenset(id(table.weight) for table in tables))
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=optim.lr, betas=(BETA1, optim.beta2))
    return optimizer


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigurationError(
            f"Wrong value for optim.{name}", got=value, expected=expected, fix="correct --set"
        )
