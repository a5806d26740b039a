"""What one inference does on the device: runs of engines and copies between fixed buffers.

Worked out once from the tensors of a policy's graphs. Tensors of one name share one buffer, so
that what a graph gives lies where the next one takes it; keys and values never leave theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.spec import ACTION_DIM, TensorSpec
from vla_align_ros.errors import BackendError

_NEW = ("new_keys", "new_values")
STEPS = "steps"
"""Constant buffer of the decoding steps' numbers, int64."""

Graphs = Mapping[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]]
"""Graph -> its inputs and outputs."""


@dataclass(frozen=True, slots=True)
class Run:
    """Run a graph's engine."""

    graph: str


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy bytes between two buffers on the device; offsets in bytes."""

    source: str
    target: str
    size_bytes: int
    source_at: int = 0
    target_at: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """One inference.

    Attributes:
        buffers: on the device, by name. steps: in order. inputs: copied to the device before the
        first step. outputs: copied from it after the last. constants: copied once.
    """

    buffers: Mapping[str, TensorSpec]
    steps: tuple[Run | Copy, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: Mapping[str, npt.NDArray[np.int64]]


def plan_program(graphs: Graphs) -> Program:
    """Plan the inference of a policy.

    Args:
        graphs: "policy", with "vision" before it or not; or "vision", "prefill" and "decode".

    Raises:
        BackendError: if the graphs make no policy, a shape is not fixed, or two graphs differ in a
            tensor that they share.
    """
    names = acting_graphs(graphs)
    if names not in (["policy"], ["vision", "policy"], ["vision", "prefill", "decode"]):
        raise BackendError(
            "engines make no policy",
            got=sorted(graphs),
            expected="policy, vision+policy or vision+prefill+decode",
            fix="build the engines again",
        )
    buffers = _share_buffers({name: graphs[name] for name in names})
    if "decode" in names:
        return _plan_tokens(graphs, buffers)
    made = {tensor.name for name in names for tensor in graphs[name][1]}
    taken = [tensor for name in names for tensor in graphs[name][0]]
    return Program(
        buffers,
        tuple(Run(name) for name in names),
        tuple({t.name: t for t in taken if t.name not in made}.values()),
        tuple(graphs["policy"][1]),
        {},
    )


def acting_graphs(names: Iterable[str]) -> list[str]:
    """Return those of the graphs that act, in the order in which they run."""
    return [name for name in ("vision", "prefill", "decode", "policy") if name in set(names)]


def count_bytes(tensor: TensorSpec) -> int:
    """Return the size of a tensor of fixed shape, in bytes."""
    count = math.prod(int(extent or 1) for extent in tensor.shape)
    return count * np.dtype(tensor.dtype).itemsize


def _plan_tokens(graphs: Graphs, buffers: dict[str, TensorSpec]) -> Program:
    """Prefill gives the first token, decode each further one from the cache that it adds to."""
    for name in ("token", "next_token", "action", "step", "keys", "values", *_NEW):
        if name not in buffers:
            raise BackendError(
                "engines of a token policy lack a tensor", got=sorted(buffers), expected=name
            )
    more = ACTION_DIM - 1
    read = int(buffers["keys"].shape[0] or 0) - more
    if read < 1 or count_bytes(buffers["new_keys"]) * (read + more) != count_bytes(buffers["keys"]):
        raise BackendError(
            "cache does not fit its rows",
            got=f"keys {buffers['keys'].shape}, new_keys {buffers['new_keys'].shape}",
            expected=f"more than {more} rows of one new_keys each",
        )
    actions = TensorSpec("actions", "float32", (1, 1, ACTION_DIM))
    tokens = TensorSpec("tokens", "int64", (1, ACTION_DIM))
    buffers |= {
        "actions": actions,
        "tokens": tokens,
        STEPS: TensorSpec(STEPS, "int64", (more,)),
    }
    steps: list[Run | Copy] = [Run("vision"), Run("prefill")]
    steps += [Copy("token", "tokens", 8), Copy("action", "actions", 4)]
    for step in range(more):
        steps += [Copy(STEPS, "step", 8, source_at=8 * step), Run("decode")]
        for cache in ("keys", "values"):
            row = count_bytes(buffers[f"new_{cache}"])
            steps.append(Copy(f"new_{cache}", cache, row, target_at=row * (read + step)))
        steps += [
            Copy("next_token", "token", 8),
            Copy("next_token", "tokens", 8, target_at=8 * (step + 1)),
            Copy("action", "actions", 4, target_at=4 * (step + 1)),
        ]
    made = {t.name for name in ("vision", "prefill") for t in graphs[name][1]} | {"step"}
    taken = [t for name in ("vision", "prefill", "decode") for t in graphs[name][0]]
    inputs = tuple({t.name: t for t in taken if t.name not in made}.values())
    constants = {STEPS: np.arange(more, dtype=np.int64)}
    return Program(buffers, tuple(steps), inputs, (actions, tokens), constants)


def _share_buffers(graphs: Graphs) -> dict[str, TensorSpec]:
    """Return one buffer a tensor name; BackendError where two graphs see it differently."""
    buffers: dict[str, TensorSpec] = {}
    for name, (inputs, outputs) in graphs.items():
        for tensor in (*inputs, *outputs):
            if None in tensor.shape:
                raise BackendError(
                    f"tensor {tensor.name!r} of {name} has no fixed shape",
                    got=tensor.shape,
                    expected="fixed extents",
                )
            if buffers.setdefault(tensor.name, tensor) != tensor:
                raise BackendError(
                    f"engines differ in the tensor {tensor.name!r}",
                    got=tensor,
                    expected=buffers[tensor.name],
                    fix="build the engines again, all at once",
                )
    return buffers
