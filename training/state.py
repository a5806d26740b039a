"""What a run must remember to go on as if never stopped: weights, optimizer, random numbers."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.adapters import AdapterReport
from training.checkpoint import CheckpointReader
from training.parallel import Ranks
from vla_align_ros.errors import TrainingError

OBJECTIVE, OPTIMIZER, RANDOM = "objective/", "optimizer/", "random/"


def collect_tensors(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    keep: Callable[[str], bool],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors by name, plain values of the optimizer) for a checkpoint.

    The weights are those of `objective` whose name `keep` accepts: the teacher-side projectors are
    among them. The optimizer's are named by parameter, so that they fit any number of ranks.
    """
    tensors = {OBJECTIVE + name: value for name, value in list_weights(objective, keep).items()}
    plain: dict[str, dict[str, Any]] = {}
    names = {parameter: name for name, parameter in objective.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{names[parameter]}/{key}"] = value
            else:
                plain.setdefault(names[parameter], {})[key] = value
    for kind, value in _read_random(ranks.device).items():
        tensors[f"{RANDOM}{ranks.rank}/{kind}"] = value
    return tensors, plain


def restore_tensors(
    reader: CheckpointReader,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    keep: Callable[[str], bool],
    plain: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Fill what `collect_tensors` saved, in place; False if this rank has no random state there.

    Weights that are missing or unknown are a TrainingError.
    """
    weights = {OBJECTIVE + name: value for name, value in list_weights(objective, keep).items()}
    check_same_names(reader, weights)
    parameters = dict(objective.named_parameters())
    counted_there = _find_fused(optimizer)
    moments: dict[str, Tensor] = {}
    for name, entry in reader.stored.items():
        if name.startswith(OPTIMIZER):
            of, _, _ = name[len(OPTIMIZER) :].rpartition("/")
            parameter = parameters[of]
            moments[name] = _template(
                parameter,
                entry.size,
                entry.properties.dtype,
                scalar_device=parameter.device if id(parameter) in counted_there else "cpu",
            )
    own = f"{RANDOM}{ranks.rank}/"
    kept_random = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.stored.items()
        if name.startswith(own)
    }
    reader.fill({**weights, **moments, **kept_random})
    for name, value in moments.items():
        of, _, key = name[len(OPTIMIZER) :].rpartition("/")
        optimizer.state[parameters[of]][key] = value
    for of, values in plain.items():
        optimizer.state[parameters[of]].update(values)
    _write_random({name[len(own) :]: value for name, value in kept_random.items()}, ranks.device)
    return bool(kept_random)


def list_weights(objective: nn.Module, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Weights and buffers to save, by name; shards stay shards."""
    state = objective.state_dict()
    return {
        name: value for name, value in state.items() if isinstance(value, Tensor) and keep(name)
    }


def check_same_names(
    reader: CheckpointReader, weights: Mapping[str, Tensor], *, below: str = OBJECTIVE
) -> None:
    """Refuse weights `below` a name that the run lacks or that the checkpoint lacks."""
    stored = {name for name in reader.stored if name.startswith(below)}
    if differing := sorted(stored ^ set(weights)):
        one = differing[0]
        raise TrainingError(
            f"{reader.path} does not fit the run",
            got=f"{len(differing)} weights in only one of them, as {one[len(OBJECTIVE) :]}",
            expected="the same weights in both",
            fix="continue with the version of this package that began the run",
        )


def check_same_base(reader: CheckpointReader, base: int) -> None:
    """Refuse frozen weights, by their `sum_bits`, that are not those of a checkpoint's run."""
    if reader.state["base"] != base:
        raise TrainingError(
            f"{reader.path} was trained on other frozen weights",
            got=f"checksum {base}",
            expected=f"checksum {reader.state['base']}",
            fix="continue with the base model that the run began with",
        )


def choose_weights(
    objective: nn.Module, adapter: AdapterReport, *, adapted: bool
) -> tuple[Callable[[str], bool], dict[str, Tensor]]:
    """Return (whether a weight goes into checkpoints, by its name; the weights left out).

    All of them do but in an `adapted` run: there the frozen ones, which never change, are made
    again from where the run started, and are only checked to be the same (`sum_bits`).
    """
    if not adapted:
        return lambda name: True, {}
    parameters = {name.removeprefix("model."): p for name, p in objective.named_parameters()}
    trained = set(adapter.trained)
    buffers = {name for name, _ in objective.named_buffers()}

    def keeps(name: str) -> bool:
        own = name.removeprefix("model.")
        return own == name or own in trained or name in buffers

    left = {
        name: parameter
        for name, parameter in parameters.items()
        if name not in trained and not name.startswith("aligner.")
    }
    return keeps, left


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Give a rank random numbers of its own (dropout), which follow from these three numbers."""
    drawn = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint64)
    torch.manual_seed(int(drawn[0] >> np.uint64(1)))
    random.seed(int(drawn[1]))
    np.random.seed(int(drawn[1] & np.uint64(0xFFFFFFFF)))


def sum_bits(tensors: Mapping[str, Tensor]) -> int:
    """A number that changes with any bit of `tensors` and not with how ranks share them.

    It is the sum over all elements' bits as integers, which no order of summation rounds. All ranks
    call it.
    """
    total = 0
    for name, tensor in sorted(tensors.items()):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        raw = local.detach().contiguous().view(-1)
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[raw.element_size()]
        part = raw.view(kind).sum(dtype=torch.int64)
        if isinstance(tensor, DTensor):
            torch.distributed.all_reduce(part)
        total += (zlib.crc32(name.encode()) + 1) * int(part)
    return total % 2**63


def _find_fused(optimizer: torch.optim.Optimizer) -> set[int]:
    """Ids of the parameters whose count of steps the optimizer wants on their own device."""
    return {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }


def _template(
    parameter: Tensor, size: torch.Size, dtype: torch.dtype, *, scalar_device: torch.device | str
) -> Tensor:
    """Room for one tensor of the optimizer's: sharded as the parameter if it has its shape."""
    if size == parameter.shape and size:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype, device=parameter.device if size else scalar_device)


def _read_random(device: torch.device) -> dict[str, Tensor]:
    states = {
        "torch": torch.get_rng_state(),
        "python": _encode(random.getstate()),
        "numpy": _encode([_plain(part) for part in np.random.get_state()]),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _write_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    if not states:
        return
    torch.set_rng_state(states["torch"])
    version, numbers, gauss = _decode(states["python"])
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = _decode(states["numpy"])
    np.random.set_state((kind, np.asarray(keys, np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _encode(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(value: Tensor) -> Any:
    return json.loads(value.numpy().tobytes())
