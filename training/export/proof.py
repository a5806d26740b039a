"""Running an export's graphs on this machine: what they give, and how far that is off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.errors import ExportError, NonFiniteError
from vla_align_ros.inference.base import Backend, open_backend
from vla_align_ros.inference.pipeline import GraphPipeline
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.limits import find_golden_limits
from vla_align_ros.runtime.numbers import judge_numbers, measure_outputs, record_graphs

PARITY = 1e-4
"""Largest allowed difference of a normalised action between the fp32 graphs and torch."""

_RECORDED_BYTES = 1 << 30

Arrays = dict[str, npt.NDArray[Any]]
Errors = dict[str, dict[str, dict[str, float]]]


@contextlib.contextmanager
def opened(
    specs: Sequence[GraphSpec], folder: Path, *, fused: bool = False
) -> Iterator[dict[str, Backend]]:
    """Open `<graph>.onnx` of a folder on ONNX Runtime; close them again.

    Exactly as written: rounded products are computed as the graph has them, so that an engine's
    graph means here what it means there. Or `fused`, by the kernels that a bundle runs on, which
    round activations beside weights of few bits.
    """
    backends: dict[str, Backend] = {}
    try:
        for spec in specs:
            path = folder / f"{spec.name}.onnx"
            level = "all" if fused else "basic"
            backends[spec.name] = open_backend("onnx", path, optimization=level)
        yield backends
    finally:
        for backend in backends.values():
            backend.close()


def run_graphs(
    specs: Sequence[GraphSpec], folder: Path, samples: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> npt.NDArray[np.float32]:
    """Return normalised actions (N, H, A)."""
    with opened(specs, folder) as backends:
        pipeline = GraphPipeline(specs, backends)
        return np.stack([pipeline.infer(sample)["actions"][0] for sample in samples])


def check_parity(
    actions: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], limit: float = PARITY
) -> float:
    """Return the largest difference of a normalised action; ExportError beyond `limit`."""
    worst = float(np.abs(actions - reference).max())
    if not worst <= limit:
        raise ExportError(
            "the exported graph computes something else than the model",
            got=f"a difference of {worst:.2e} in normalised actions",
            expected=f"at most {limit:.0e}",
            fix="report it with the versions of torch and onnxruntime; do not use this graph",
        )
    return worst


def measure_graphs(
    specs: Sequence[GraphSpec],
    exact: Path,
    other: Path,
    samples: Sequence[Mapping[str, npt.NDArray[Any]]],
    *,
    fused: bool = False,
) -> Errors:
    """Give each graph of `other` the inputs that its twin of `exact` had; compare the outputs.

    Of policies whose caches are large, only as many samples as fit in memory are compared. `other`
    runs as written, or by `fused` kernels (see `opened`).
    """
    extents = [t.shape for spec in specs for t in (*spec.inputs, *spec.outputs)]
    size = 8 * sum(int(np.prod([extent or 1 for extent in shape])) for shape in extents)
    count = max(1, min(len(samples), _RECORDED_BYTES // size))
    with opened(specs, exact) as backends:
        calls = record_graphs(specs, backends, samples[:count])
    with opened(specs, other, fused=fused) as backends:
        return {name: measure_outputs(calls[name], backends[name]) for name in calls}


def prove_graphs(
    bundle: Bundle,
    exact: Path,
    other: Path,
    precision: str,
    samples: Sequence[Mapping[str, npt.NDArray[Any]]],
    floors: Errors,
    *,
    fused: bool,
) -> dict[str, Any]:
    """Hold graphs against the first two gates: each output's numbers, and the actions.

    Args:
        bundle: whose golden samples and processor are used. exact: folder of the float32 graphs.
        other: folder of the graphs in question. precision: whose limits count. samples: for the
            numbers. floors: what rounding to bfloat16 does to the same outputs. fused: whether they
            are a bundle's graphs, which run by fused kernels, or an engine's.

    Returns:
        As `prove_bundle`, with "numbers" for every output of every graph. If an action is not
        finite, "dimensions" is empty and "not_finite" says what it was.
    """
    limits = find_golden_limits(precision)
    specs = bundle.acting_graphs
    errors = measure_graphs(specs, exact, other, samples, fused=fused)
    numbers = judge_numbers(errors, floors, limits.noise, limits.agreement)
    with opened(specs, other, fused=fused) as backends:
        try:
            proof = prove_bundle(bundle, GraphPipeline(specs, backends), precision)
        except NonFiniteError as error:
            proof = _not_finite(bundle, precision, str(error))
    if proof["numbers"] is not None:
        numbers["outputs"] |= {
            "actions (end to end)": proof["numbers"]["outputs"]["policy.actions"]
        }
    numbers["ok"] = all(row["ok"] for row in numbers["outputs"].values())
    return {**proof, "numbers": numbers, "ok": proof["ok"] and numbers["ok"]}


def _not_finite(bundle: Bundle, precision: str, why: str) -> dict[str, Any]:
    """The proof of graphs that give NaN or infinity: none."""
    return {
        "ok": False,
        "dimensions": {},
        "numbers": None,
        "agreement": None,
        "backend": "onnx",
        "precision": precision,
        "samples": int(bundle.golden()["reference_actions"].shape[0]),
        "not_finite": why,
    }


def require_proof(proof: Mapping[str, Any], fix: str) -> None:
    """Raise an ExportError that names what failed, if the proof did."""
    behaviour = proof.get("behaviour")
    if proof["ok"] and (behaviour is None or behaviour["ok"]):
        return
    failed = {
        name: (f"{entry['max']:.3g} {entry['unit']}", f"{entry['limit']:g} {entry['unit']}")
        for name, entry in proof["dimensions"].items()
        if not entry["ok"]
    }
    for name, row in (proof["numbers"] or {"outputs": {}})["outputs"].items():
        if not row["ok"] and "ratio" in row:
            failed[name] = (f"{row['ratio']:.3g} times", f"{row['limit']:g} times bfloat16's noise")
        elif not row["ok"]:
            failed[name] = (f"{row['agreement']:.2f} equal", f"{row['limit']:g}")
    agreement = proof["agreement"]
    if agreement is not None and not agreement["ok"]:
        failed["tokens"] = (f"{agreement['share']:.2f} equal", f"{agreement['limit']:g}")
    if "not_finite" in proof:
        failed["actions"] = ("not a finite number", "finite numbers")
    if behaviour is not None and not behaviour["ok"]:
        rates = (
            f"{behaviour['candidate']} of {behaviour['episodes']} against {behaviour['reference']}"
        )
        failed["behaviour"] = (f"{rates} ({behaviour['verdict']})", "what chance explains")
    raise ExportError(
        "the export fails its proof, and was not written",
        got=", ".join(f"{name} off by {got}" for name, (got, _) in failed.items()),
        expected=", ".join(f"{name} within {limit}" for name, (_, limit) in failed.items()),
        fix=fix,
    )
