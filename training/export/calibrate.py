"""How large activations become before each product, measured on real samples of the data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.graph_file import load_graph, save_graph
from training.export.products import find_products
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.inference.base import Backend, open_backend

Inputs = Mapping[str, npt.NDArray[Any]]

_GROUP_BYTES = 128 << 20
_TAILS = (1.0, 0.9999, 0.999, 0.99)  # shares of the values within the candidates for a range
_KEPT_VALUES = 100_000  # of each activation, evenly spaced, over all samples


def measure_ranges(
    source: Path, drive: Callable[[Backend], None], calls: int, method: str, *, threads: int = 1
) -> dict[str, float]:
    """Return by product the absolute activation that shall be the largest code.

    For int8 the range that loses least in squares is taken, since one outlier would coarsen all
    other values; fp8 has steps that grow with the value, and takes the largest.

    Args:
        source: float32 graph. drive: runs an engine of it on samples, the same at each call; some
            values are looked at in each. calls: of the engine in it. method: "int8" or "fp8".
    """
    model = load_graph(source)
    products = find_products(model)
    by_value: dict[str, list[str]] = {}
    for product in products:
        by_value.setdefault(product.activation.name, []).append(product.name)
    sizes = {p.activation.name: 4 * int(np.prod(p.activation.shape.numpy())) for p in products}
    found: dict[str, float] = {}
    for group in _split(sizes):
        for name, values in _collect(source, group, drive, calls, threads).items():
            peak = float(np.abs(values).max())
            chosen = choose_range(values) if method == "int8" else peak
            found.update(dict.fromkeys(by_value[name], chosen))
    return found


def choose_range(values: npt.NDArray[np.float32], largest_code: int = 127) -> float:
    """Return the range, among quantiles of |values|, whose rounding loses least in squares."""
    magnitudes = np.abs(values)
    candidates = np.unique(np.quantile(magnitudes, _TAILS))
    best, least = float(candidates[-1]), np.inf
    for candidate in candidates[candidates > 0.0]:
        step = candidate / largest_code
        rounded = np.rint(values / step).clip(-largest_code, largest_code) * step
        loss = float(np.square(values - rounded).mean())
        if loss < least:
            best, least = float(candidate), loss
    return best


def _split(sizes: Mapping[str, int]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > _GROUP_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


class _Collector:
    """An engine that keeps numbers of some inner values: `share` a call, and the largest.

    They are kept while it runs, so that nothing of a policy's calls need be recorded.
    """

    def __init__(self, backend: Backend, names: Sequence[str], share: int) -> None:
        self._backend = backend
        self._share = share
        self.name = backend.name
        self.inputs: Sequence[TensorSpec] = backend.inputs
        self.outputs: Sequence[TensorSpec] = backend.outputs
        self.kept: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[Any]]:
        """Run the engine."""
        found = self._backend.infer(inputs)
        for name, kept in self.kept.items():
            flat = found[name].reshape(-1)
            picked = flat[:: max(1, flat.size // self._share)]
            peak = flat[[int(np.abs(flat).argmax())]]
            kept.append(np.concatenate([picked, peak]).astype(np.float32))
        return found

    def close(self) -> None:
        """Close the engine."""
        self._backend.close()


def _collect(
    source: Path, names: Sequence[str], drive: Callable[[Backend], None], calls: int, threads: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Run the graph with some inner values as outputs; of each, keep evenly spaced numbers."""
    model = load_graph(source)
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    outputs = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in outputs)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        path = Path(folder) / "graph.onnx"
        save_graph(model, path)
        backend = open_backend("onnx", path, threads=threads)
        collector = _Collector(backend, names, max(1, _KEPT_VALUES // calls))
        try:
            drive(collector)
        finally:
            backend.close()
    return {name: np.concatenate(parts) for name, parts in collector.kept.items()}
