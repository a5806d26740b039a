"""Adapted tiny networks, a loss on them, and adapters that have already moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build, tiny_config, tiny_inputs
from torch import Tensor, nn

from training.adapters import AdapterConfig, apply_adapter
from training.model import PrismaticVLA, VlaConfig, chunk_l1_loss

_PEFT = pytest.importorskip("peft", reason="needs the extra [lora]")


def adapted(
    config: VlaConfig | None = None, *, moved: bool = True, seed: int = 0, **settings: Any
) -> PrismaticVLA:
    """A tiny network with LoRA of rank 4 in float32; `moved`: B is not zero any more."""
    model = build(config or tiny_config(), seed)
    values: dict[str, Any] = {"kind": "lora", "rank": 4, "alpha": 8}
    apply_adapter(model, AdapterConfig(**{**values, **settings}), compute_dtype=torch.float32)
    if moved:
        move(model)
    return model


def move(model: nn.Module, seed: int = 1, size: float = 0.05) -> None:
    """Change everything that trains, as a run would have."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def chunk_loss(model: PrismaticVLA, **inputs: Any) -> Tensor:
    """The L1 of a chunk head against fixed targets."""
    actions = model(**(inputs or tiny_inputs())).actions
    assert actions is not None
    target = torch.linspace(-1.0, 1.0, actions.numel()).view_as(actions)
    return chunk_l1_loss(actions, target)


def gradients(model: PrismaticVLA) -> dict[str, Tensor]:
    """Gradients of `chunk_loss` in training mode, by name."""
    model.train().zero_grad(set_to_none=True)
    chunk_loss(model).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@contextmanager
def one_rank(folder: Path) -> Iterator[Any]:
    """A process group of this process alone, and its mesh: parameters are sharded all the same."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()
