"""Keeps a graph's weights findable by their names, where the optimiser merged or renamed them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

TRANSPOSED = ".T"
"""Ends the name of a weight that the graph holds transposed: (inputs, outputs), as MatMul wants."""

KEY = "vla_align_ros.weights"
_LARGEST_BYTES = 32 << 20  # large weights are never merged or folded


def narrow_name(name: str, dtype: Any) -> str:
    """Return what a constant is called in another `onnx_ir.DataType`."""
    return f"{name}_{dtype.name.lower()}"


def note_lost_names(model: Any, read: Callable[[str], Tensor], names: Iterable[str]) -> None:
    """Write into the graph's metadata which initialiser holds a weight whose name is gone.

    Equal weights (layer norms that were never trained) are merged by the optimiser, and a weight
    that is only expanded becomes a constant of another name.

    Args:
        model: `onnx_ir.Model` after optimisation. read: gives a weight by name. names: of the
            weights that the graph had before it.
    """
    held = model.graph.initializers
    lost = [name for name in names if name not in held and name + TRANSPOSED not in held]
    wanted = {name: _digest(read(name).float().numpy()) for name in lost}
    shapes = {digest[0] for digest in wanted.values()}
    found: dict[Any, str] = {}
    for name, value in held.items():
        small = value.const_value is not None and value.const_value.nbytes <= _LARGEST_BYTES
        if small and tuple(value.shape.numpy()) in shapes:
            found.setdefault(_digest(value.const_value.numpy()), name)
    known = {name: found[digest] for name, digest in wanted.items() if digest in found}
    model.metadata_props[KEY] = json.dumps(known, sort_keys=True)


def read_named(model: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the weights of a graph by the names that the module has for them, untransposed.

    Of a weight that lies in 16 bits and in 32, the latter.
    """
    held: Mapping[str, Any] = model.graph.initializers
    found: dict[str, npt.NDArray[Any]] = {}
    for name, value in held.items():
        if value.const_value is None:
            continue
        array = np.array(value.const_value.numpy())
        narrow = narrow_name("", value.const_value.dtype)
        plain = name.removesuffix(narrow)
        turned = plain.endswith(TRANSPOSED)
        plain = plain.removesuffix(TRANSPOSED)
        if plain not in found or not name.endswith(narrow):
            found[plain] = np.ascontiguousarray(array.T) if turned else array
    for name, holder in json.loads(model.metadata_props.get(KEY, "{}")).items():
        if holder in found:
            found[name] = found[holder]
    return found


def _digest(array: npt.NDArray[Any]) -> tuple[tuple[int, ...], str]:
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
