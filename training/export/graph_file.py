"""ONNX graphs on disk, read and written without torch, so that a robot can make engines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

OPSET = 21

_EXTERNAL_FROM_BYTES = 1024
_ONE_FILE_UP_TO_BYTES = 1 << 30  # protobuf ends at 2 GiB
_IN_FLIGHT_BYTES = 1 << 28  # of weights that are read and not yet written


def save_graphs(models: Iterable[tuple[str, Any]], folder: Path) -> None:
    """Write a policy's graphs, in order, as `<graph>.onnx`, one after the other.

    The decoding shares its weights with the prefill before it, which is the same network.
    """
    saved = Path()
    for name, model in models:
        if name == "decode":
            share_weights(model, saved)
        saved = folder / f"{name}.onnx"
        save_graph(model, saved)


def save_graph(model: Any, path: Path) -> None:
    """Write a graph; large weights go to one file beside it, `<path>.data`, tensor by tensor.

    Weights that lie in that folder already, beside another graph, stay where they are; those that
    lie beside a graph elsewhere come along.
    """
    import onnx_ir as ir

    initializers = model.graph.initializers.values()
    moved = [value for value in initializers if not _lies_in(path.parent, value.const_value)]
    size = sum(value.const_value.nbytes for value in moved)
    beside = path.name + ".data" if size > _ONE_FILE_UP_TO_BYTES else None
    if beside is None:
        # A graph names the files of its weights by their names alone, as if they lay beside it.
        for value in moved:
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    ir.save(
        model,
        path,
        external_data=beside,
        size_threshold_bytes=_EXTERNAL_FROM_BYTES,
        max_in_flight_bytes=_IN_FLIGHT_BYTES,
    )


def share_weights(model: Any, other: Path) -> None:
    """Let a graph's weights be those that lie beside another graph of the same network.

    Only weights have names that mean the same in both; other constants are left alone.
    """
    import onnx_ir as ir

    beside = load_graph(other).graph.initializers
    for name, value in model.graph.initializers.items():
        twin = beside.get(name)
        if twin is None or not name.startswith("model.") or ".lifted" in name:
            continue
        same = (twin.dtype, twin.shape) == (value.dtype, value.shape)
        if same and isinstance(twin.const_value, ir.ExternalTensor):
            value.const_value = twin.const_value


def load_graph(path: Path) -> Any:
    """Read a graph as an `onnx_ir.Model`; weights beside it are mapped, not read."""
    import onnx_ir as ir

    return ir.load(path)


def _lies_in(folder: Path, tensor: Any) -> bool:
    import onnx_ir as ir

    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) == folder
