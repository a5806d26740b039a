"""The first gate: each graph's outputs against the fp32 reference, beside the noise of bfloat16.

How far a result may be off depends on the network, so the error is judged as a multiple of what
rounding to bfloat16 alone does to the same output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.inference.base import Backend
from vla_align_ros.inference.pipeline import GraphPipeline

Arrays = dict[str, npt.NDArray[Any]]

LEAST_FLOOR = 1e-6
"""Noise below which a floor says nothing: float32's own."""

UNBOUNDED = 1e12
"""Stands for an infinite error, which JSON lacks."""


class Recorder:
    """A backend that notes what goes in and comes out of another."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name
        self.inputs: Sequence[TensorSpec] = backend.inputs
        self.outputs: Sequence[TensorSpec] = backend.outputs
        self.calls: list[tuple[Arrays, Arrays]] = []

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the other backend; keep copies."""
        outputs = self._backend.infer(inputs)
        copies = ({k: np.array(v) for k, v in part.items()} for part in (inputs, outputs))
        self.calls.append((next(copies), next(copies)))
        return outputs

    def close(self) -> None:
        """Close the other backend."""
        self._backend.close()


def record_graphs(
    specs: Sequence[GraphSpec],
    backends: Mapping[str, Backend],
    samples: Sequence[Mapping[str, npt.NDArray[Any]]],
) -> dict[str, list[tuple[Arrays, Arrays]]]:
    """Run a policy on samples; return each graph's calls: (inputs, outputs), in order."""
    recorders = {spec.name: Recorder(backends[spec.name]) for spec in specs}
    pipeline = GraphPipeline(specs, recorders)
    for sample in samples:
        pipeline.infer(sample)
    return {name: recorder.calls for name, recorder in recorders.items()}


def measure_outputs(
    calls: Sequence[tuple[Arrays, Arrays]], candidate: Backend
) -> dict[str, dict[str, float]]:
    """Give a graph's recorded inputs to another engine, and compare what comes out.

    Returns:
        By output: {"error": relative_rms} of real ones, {"agreement": share} of whole ones.
    """
    found = [candidate.infer(inputs) for inputs, _ in calls]
    result: dict[str, dict[str, float]] = {}
    for name, value in calls[0][1].items():
        reference = np.stack([outputs[name] for _, outputs in calls])
        other = np.stack([outputs[name] for outputs in found])
        if value.dtype.kind == "f":
            result[name] = {"error": relative_rms(other, reference)}
        else:
            result[name] = {"agreement": float((other == reference).mean())}
    return result


def relative_rms(values: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Root mean square of the difference, as a share of the reference's.

    ``UNBOUNDED`` if a value is not finite.
    """
    wanted = np.asarray(reference, dtype=np.float64)
    difference = np.asarray(values, dtype=np.float64) - wanted
    scale = float(np.sqrt(np.square(wanted).mean()))
    error = float(np.sqrt(np.square(difference).mean())) / max(scale, LEAST_FLOOR)
    return error if np.isfinite(error) else UNBOUNDED


def judge_numbers(
    errors: Mapping[str, Mapping[str, Mapping[str, float]]],
    floors: Mapping[str, Mapping[str, Mapping[str, float]]],
    limit: float,
    agreement: float,
) -> dict[str, Any]:
    """Hold each output's error against a multiple of its floor, and whole numbers to agreement.

    Args:
        errors, floors: by graph and output, as `measure_outputs` gives them; a floor that is not
            finite is none. limit: largest multiple. agreement: least share of equal whole numbers.

    Returns:
        {"ok": bool, "outputs": {"graph.output": {"error", "floor", "ratio", "limit", "ok"} or
        {"agreement", "limit", "ok"}}}.
    """
    outputs: dict[str, dict[str, Any]] = {}
    for graph, found in errors.items():
        for name, entry in found.items():
            if "agreement" in entry:
                share = entry["agreement"]
                row = {"agreement": share, "limit": agreement, "ok": share >= agreement}
            else:
                noise = floors[graph][name]["error"]
                floor = max(noise if noise < UNBOUNDED else 0.0, LEAST_FLOOR)
                ratio = entry["error"] / floor
                row = {"error": entry["error"], "floor": floor, "ratio": ratio}
                row |= {"limit": limit, "ok": bool(ratio <= limit)}
            outputs[f"{graph}.{name}"] = row
    return {"ok": all(row["ok"] for row in outputs.values()), "outputs": outputs}
