"""Where a run computes: its ranks and device, and how they share parameters and gradients."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vla_align_ros.errors import ConfigurationError, TrainingError

WAIT_FOR_CACHES = timedelta(hours=6)
_HANGS = timedelta(minutes=30)
# Ways into the network beside forward; FSDP gathers parameters only at those that it knows.
_MODEL_ENTRIES = ("encode_images", "forward_from_features", "predict", "generate_tokens")


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """How the ranks that the launcher starts share the work.

    strategy: "ddp", every rank holds everything, or "fsdp", parameters, gradients and optimizer
    state are sharded (FSDP2). accumulate: pieces that a rank's share of a batch is computed in, one
    after the other. device: "auto" takes CUDA where there is any.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        """Check the number of pieces."""
        if self.accumulate < 1:
            raise ConfigurationError(
                "Wrong value for parallel.accumulate",
                got=self.accumulate,
                expected="1 or more",
                fix="correct --set",
            )


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run, and what they tell each other."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    waiting: Any = None  # a process group that is patient, for work that one rank does alone

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.world > 1:
            dist.barrier(group=self.waiting)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let rank 0 through first, so that it fills caches and files that the others find."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def agree(self, flags: Sequence[Tensor | bool]) -> list[bool]:
        """Which of the flags is set on any rank; one exchange, one wait for the device."""
        values = [torch.as_tensor(flag, device=self.device).float().reshape(()) for flag in flags]
        stacked = torch.stack(values)
        if self.world > 1:
            dist.all_reduce(stacked, op=dist.ReduceOp.MAX)
        return [value > 0.0 for value in cast("list[float]", stacked.tolist())]

    def mean(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Means of 0-dim tensors over the ranks."""
        values = torch.stack([whole(value).detach().float() for value in scalars.values()])
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return dict(zip(scalars, (values / self.world).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in their order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.waiting)
        return values


@contextmanager
def start_ranks(config: ParallelConfig) -> Iterator[Ranks]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), if it did."""
    rank, world, local = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    device = _pick_device(config.device, local)
    if world == 1:
        yield Ranks(device=device)
        return
    joined = dist.is_initialized()  # by who calls this, several times perhaps
    if not joined and device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_HANGS, device_id=device)
    elif not joined:
        dist.init_process_group("gloo", timeout=_HANGS)
    try:
        yield Ranks(rank, world, device, dist.new_group(backend="gloo", timeout=WAIT_FOR_CACHES))
    finally:
        if not joined:
            dist.destroy_process_group()


def _pick_device(wanted: str, local_rank: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if local_rank >= count:
        raise TrainingError(
            "There are fewer GPUs than processes on this machine",
            got=f"{count} CUDA devices for local rank {local_rank}",
            expected="one each",
            fix="start fewer processes, or --set parallel.device=cpu",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def distribute(
    objective: nn.Module,
    config: ParallelConfig,
    ranks: Ranks,
    *,
    blocks: Sequence[tuple[nn.Module, torch.dtype | None]] = (),
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Move `objective` to the rank's device and share it; returns what the step calls.

    With "fsdp" the parameters of each of `blocks`, and of the rest of `objective.model`, are
    sharded in place, and gathered when they are needed, in the block's dtype and in `dtype` (None:
    their own): build the optimizer afterwards. What else the objective holds stays whole. On one
    rank nothing is shared.
    """
    objective.to(ranks.device)
    if ranks.world == 1:
        return objective
    if config.strategy == "ddp":
        return DistributedDataParallel(objective, find_unused_parameters=True)
    # Nothing writes into what the network returns, which it warns about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    model = cast(nn.Module, objective.model)
    for block, own_dtype in blocks:
        fully_shard(block, mesh=mesh, mp_policy=_gather_in(own_dtype))
    fully_shard(model, mesh=mesh, mp_policy=_gather_in(dtype), reshard_after_forward=False)
    for name in _MODEL_ENTRIES:
        register_fsdp_forward_method(model, name)
    return objective


def _gather_in(dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """Gather parameters in `dtype`; add up gradients in float32. Autocast casts the inputs."""
    return MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)


def free_gathered(objective: nn.Module) -> None:
    """Let go of what FSDP gathered for an evaluation, which no backward pass follows."""
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def last_piece_only(forward: nn.Module, is_last: bool) -> Iterator[None]:
    """Exchange gradients after the last piece of an accumulated batch alone."""
    for module in forward.modules():
        # A module that is frozen now may never have been gathered, and has nothing to keep.
        if isinstance(module, FSDPModule) and any(p.requires_grad for p in module.parameters()):
            module.set_requires_gradient_sync(is_last, recurse=False)
    holds = isinstance(forward, DistributedDataParallel) and not is_last
    with forward.no_sync() if holds else nullcontext():
        yield


def clip_gradients(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """Scale gradients down to a common 2-norm of at most `largest`; returns the norm before."""
    with_gradient = [p for p in parameters if p.grad is not None]
    shards = [p for p in with_gradient if isinstance(p, DTensor)]
    if not shards:
        return nn.utils.clip_grad_norm_(with_gradient, largest)
    others = [p.grad for p in with_gradient if not isinstance(p, DTensor)]
    norms = [whole(nn.utils.get_total_norm([p.grad for p in shards]))]
    norms += [nn.utils.get_total_norm(others)] if others else []
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for part in (shards, [p for p in with_gradient if not isinstance(p, DTensor)]):
        nn.utils.clip_grads_with_norm_(part, largest, norm)
    return norm


def split_batch(batch: Mapping[str, Any], pieces: int) -> Iterator[dict[str, Any]]:
    """Cut a batch of B samples, and batches within it, into `pieces` of equal size, in order."""
    for number in range(pieces):
        yield _take_piece(batch, number, pieces)


def _take_piece(batch: Mapping[str, Any], number: int, pieces: int) -> dict[str, Any]:
    piece: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            piece[name] = _take_piece(value, number, pieces)
        else:
            size = len(value) // pieces
            piece[name] = value[number * size : (number + 1) * size]
    return piece


def move_batch(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Put a batch's tensors on `device`."""
    return {
        name: move_batch(value, device)
        if isinstance(value, Mapping)
        else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or what the ranks' shards make together."""
    if not isinstance(tensor, DTensor):
        return tensor
    gather = cast("Callable[[], Tensor]", tensor.full_tensor)
    return gather()
