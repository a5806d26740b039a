"""One step from a finished run to a proven bundle, or to an error and nothing on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.export.golden import add_reference_actions, observations
from training.export.graph import OPSET, check_parity, export_onnx, strip_metadata
from training.export.quantize import KEPT_IN_FLOAT, quantize_int8
from training.golden_inputs import GOLDEN_INPUTS, read_golden_inputs
from training.model import PrismaticVLA
from training.model.checkpoint import read_json
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ExportError
from vla_align_ros.inference.base import open_backend
from vla_align_ros.runtime.golden import prove_bundle

PRECISIONS = ("fp32", "int8")
CONFIG = "config.json"
RUN_SUMMARY = "run.json"
DATASET = "dataset.json"
PROCESSOR = "processor"


def export_run(run_dir: str | Path, out: str | Path, precision: str = "fp32") -> dict[str, Any]:
    """Export a finished run to a bundle at `out`, and prove it through the runtime's own path.

    Needs in `run_dir`: model.json, model.safetensors, config.json, processor/ and
    golden_inputs.npz.

    Returns:
        {"ok", "bundle", "bundle_id", "precision", "bytes", "parity", "proof"}.

    Raises:
        ExportError: if the run is unfinished, the graph strays from the model, or the proof fails;
            TrainingError: if the run lacks golden inputs; `out` is then absent, as it was.
            BundleError: if `out` exists.
    """
    run_dir, out = Path(run_dir), Path(out).absolute()
    _check_request(run_dir, out, precision)
    model = PrismaticVLA.load(run_dir)
    processor = Processor.load(run_dir / PROCESSOR)
    inputs = read_golden_inputs(run_dir / GOLDEN_INPUTS, processor)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        graph, facts = _build_graph(model, processor, inputs, precision, staging)
        golden = add_reference_actions(inputs, model, processor)
        provenance = {"precision": precision, **_describe_run(run_dir), "export": facts}
        bundle = write_bundle(
            staging / "bundle",
            processor=processor,
            graphs={"policy": graph},
            golden=golden,
            provenance=provenance,
        )
        proof = _prove(bundle)
        os.rename(bundle.path, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "ok": True,
        "bundle": str(out),
        "bundle_id": bundle.id,
        "precision": precision,
        "bytes": size,
        "parity": facts["parity"],
        "proof": proof,
    }


def _check_request(run_dir: Path, out: Path, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ExportError(
            "unknown precision",
            got=repr(precision),
            expected=" or ".join(PRECISIONS),
            fix="correct --precision",
        )
    if not (run_dir / CONFIG).is_file():
        raise ExportError(
            "this is no finished run",
            got=f"no {CONFIG} in {run_dir}",
            expected="a folder that `vla-align train --out` filled",
            fix="check the path",
        )
    if out.exists() or out.is_symlink():
        raise ExportError(
            "the bundle exists already",
            got=str(out),
            expected="a new path",
            fix="remove it or choose another name",
        )


def _build_graph(
    model: PrismaticVLA,
    processor: Processor,
    inputs: Mapping[str, Any],
    precision: str,
    folder: Path,
) -> tuple[Path, dict[str, Any]]:
    """Export, prove the fp32 graph against torch, quantise if asked; return what to record."""
    exact = folder / "fp32.onnx"
    export_onnx(model, processor, exact)
    samples = [
        processor.prepare(observation) for observation in observations(dict(inputs), processor)
    ]
    facts: dict[str, Any] = {
        "opset": OPSET,
        "parity": check_parity(exact, model, samples),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")
        },
    }
    graph = exact
    if precision == "int8":
        graph = folder / "int8.onnx"
        facts["quantized_matrices"] = quantize_int8(exact, graph)
        facts["kept_in_float"] = list(KEPT_IN_FLOAT)
    strip_metadata(graph)
    return graph, facts


def _describe_run(run_dir: Path) -> dict[str, Any]:
    """Return what the run says of itself, without paths of this machine."""
    config = read_json(run_dir / CONFIG)
    summary = read_json(run_dir / RUN_SUMMARY) if (run_dir / RUN_SUMMARY).is_file() else {}
    for repeated in ("out", "dataset"):
        summary.pop(repeated, None)
    dataset = read_json(run_dir / DATASET) if (run_dir / DATASET).is_file() else None
    return {
        "recipe": config.get("recipe"),
        "dataset": dataset,
        "config": config,
        "run": summary,
    }


def _prove(bundle: Bundle) -> dict[str, Any]:
    backend = open_backend("onnx", bundle.graph_path("policy"), threads=1)
    try:
        proof = prove_bundle(bundle, backend)
    finally:
        backend.close()
    if not proof["ok"]:
        raise ExportError(
            "the bundle fails its proof, and was not written",
            got=", ".join(
                f"{name} off by {entry['max']:.3g} {entry['unit']}"
                for name, entry in proof["dimensions"].items()
                if not entry["ok"]
            ),
            expected=", ".join(
                f"{name} within {entry['limit']:g} {entry['unit']}"
                for name, entry in proof["dimensions"].items()
                if not entry["ok"]
            ),
            fix="export with --precision fp32",
        )
    bundle.add_report({"verify": proof})
    return proof
