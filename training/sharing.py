"""Puts a run's networks where they compute: on a device, whole or in shards."""

from __future__ import annotations

import torch
from torch import nn

from training.config import RunConfig
from training.memory import find_blocks
from training.parallel import Ranks, distribute
from training.setup_run import RunParts
from vla_align_ros.errors import TrainingError


def autocast(config: RunConfig, ranks: Ranks) -> torch.autocast:
    """The context in which the network runs: bfloat16 where the run's precision says so."""
    enabled = config.precision == "bf16"
    return torch.autocast(ranks.device.type, torch.bfloat16, enabled=enabled)


def share_objective(parts: RunParts, ranks: Ranks) -> nn.Module:
    """Put the networks on the rank's device and share them as `config.parallel` says."""
    config = parts.config
    if config.optim.vision_lr is None:  # before DDP looks for what trains
        parts.objective.model.vision.requires_grad_(False)
    if parts.teacher is not None:
        parts.teacher.to(ranks.device)
    _check_shardable(config)
    dtype = None if config.precision == "fp32" else torch.bfloat16
    # FSDP settles a block's dtypes by what trains in the first step: a tower that is let go later
    # is gathered as it is.
    late = config.optim.vision_from_step > 0
    blocks = [
        (block, None if late and name.startswith("vision") else dtype)
        for name, block in find_blocks(parts.objective.model)
    ]
    return distribute(parts.objective, config.parallel, ranks, blocks=blocks, dtype=dtype)


def _check_shardable(config: RunConfig) -> None:
    if config.parallel.strategy == "fsdp" and config.adapter.quantize == "int8":
        raise TrainingError(
            "8-bit weights cannot be sharded",
            got="adapter.quantize int8 with parallel.strategy fsdp",
            expected="ddp, or nf4",
            fix="--set adapter.quantize=nf4 or parallel.strategy=ddp",
        )
