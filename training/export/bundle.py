"""One step from a finished run to a proven bundle, or to an error and no bundle on disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.export.behaviour import prove_behaviour
from training.export.graph_file import OPSET
from training.export.precision import find_plan
from training.export.products import DELICATE
from training.export.proof import check_parity, require_proof, run_graphs
from training.export.reduce import Exact, measure_floors, reduce_graphs
from training.export.sight_graph import export_sight
from training.export.source import RunSource, add_reference, read_reference, reference_outputs
from training.export.stages import Stages, digest, open_stages
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.contract.files import read_json_object, readable_json, write_durably
from vla_align_ros.contract.graphs import GraphSpec, find_layout
from vla_align_ros.errors import ExportError
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import keep_proof

FIX = "export with --precision fp32, or auto, which keeps in float what does not bear fewer bits"


def export_run(
    run_dir: str | Path,
    out: str | Path,
    precision: str = "fp32",
    *,
    block: int = 128,
    split_vision: bool = False,
    episodes: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Export a finished run to a bundle at `out`, and prove it through the runtime's own path.

    Needs in `run_dir`: model.json, model.safetensors, config.json, processor/ and
    golden_inputs.npz. An interrupted export goes on where it was.

    Args:
        run_dir: of the run. out: the bundle, which must not exist. precision: of `CPU_PLANS`.
        block: of int4. split_vision: whether vision is a graph of its own (a token policy's always
            is). episodes: pairs of closed-loop episodes for the third gate; 0 leaves it out.
        say: what to do with lines of progress.

    Returns:
        {"ok", "bundle", "bundle_id", "precision", "bytes", "parity", "proof", "sensitivity"}.

    Raises:
        ExportError: if the run is unfinished, the graphs stray from the model, or a gate fails;
            TrainingError: if the run lacks golden inputs; `out` is then absent, as it was.
            BundleError: if `out` exists.
    """
    run_dir, out = Path(run_dir), Path(out).absolute()
    find_plan(precision, engine=False, block=block)
    source = RunSource.open(run_dir)
    if out.exists() or out.is_symlink():
        raise ExportError(
            "the bundle exists already",
            got=str(out),
            expected="a new path",
            fix="remove it or choose another name",
        )
    with open_stages(out, say) as stages:
        bundle, facts, proof = _export(stages, source, precision, block, split_vision)
        if episodes:
            exact = Bundle.open(stages.root / "bundle-fp32")
            proof["behaviour"] = prove_behaviour(exact, bundle, episodes)
            require_proof(proof, FIX)
        with Policy.open(bundle) as policy:
            keep_proof(policy, proof)
        os.rename(bundle.path, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "ok": True,
        "bundle": str(out),
        "bundle_id": bundle.id,
        "precision": precision,
        "bytes": size,
        "parity": facts["parity"],
        "proof": proof,
        "sensitivity": facts.get("sensitivity", []),
    }


def _export(
    stages: Stages, source: RunSource, precision: str, block: int, split_vision: bool
) -> tuple[Bundle, dict[str, Any], dict[str, Any]]:
    """Return the bundle, beside the stages, with what it records of its export, and its proof."""
    traced, facts = _trace(stages, source, split_vision)
    exact = _write(stages, source, "fp32", traced.specs, traced.folder, facts)
    if precision == "fp32":
        proof = _prove(exact)
        require_proof(proof, FIX)
        return exact, facts, proof
    start = dataclasses.replace(traced, bundle=exact)
    reduced = reduce_graphs(stages, start, precision, engine=False, block=block)
    require_proof(reduced.proof, FIX)
    facts |= {"plan": reduced.plan.to_dict(), "sensitivity": reduced.table}
    bundle = _write(stages, source, precision, traced.specs, reduced.folder, facts)
    proof = {**_prove(bundle), "numbers": reduced.proof["numbers"]}
    require_proof(proof, FIX)
    return bundle, facts, proof


def _trace(stages: Stages, source: RunSource, split_vision: bool) -> tuple[Exact, dict[str, Any]]:
    """Trace the graphs, compare them with torch, and measure the noise of bfloat16."""
    known = source.facts()

    def compute(folder: Path) -> None:
        np.savez(folder / "reference.npz", **reference_outputs(source))

    def trace(folder: Path) -> None:
        specs = source.write_graphs(folder, split_vision=split_vision)
        described = {spec.name: spec.to_dict() for spec in specs}
        write_durably(folder / "specs.json", readable_json(described))

    reference = stages.run("reference", known, compute)
    graphs = stages.run("graphs", {**known, "split_vision": split_vision}, trace)
    described = read_json_object(graphs / "specs.json")
    specs = tuple(GraphSpec.from_dict(n, described[n]) for n in find_layout(tuple(described)))
    samples = source.samples()
    parity = check_parity(run_graphs(specs, graphs, samples), read_reference(reference))
    exact = Exact(specs, graphs, digest(graphs))
    floors = measure_floors(stages, exact, samples, source.processor)
    return exact, {
        "opset": OPSET,
        "parity": parity,
        "noise_floor": floors.actions,
        "kept_in_float": list(DELICATE),
        "versions": source.versions(),
    }


def _write(
    stages: Stages,
    source: RunSource,
    precision: str,
    specs: Sequence[GraphSpec],
    graphs: Path,
    facts: Mapping[str, Any],
) -> Bundle:
    """Write a bundle of graphs beside the stages, with the fp32 model's golden actions."""
    target = stages.root / f"bundle-{precision}"
    shutil.rmtree(target, ignore_errors=True)
    reference = next(stages.root.glob("reference-*"))
    seeing, sight = export_sight(stages, source)
    return write_bundle(
        target,
        processor=source.processor,
        graphs={**{spec.name: graphs / f"{spec.name}.onnx" for spec in specs}, **seeing},
        specs=specs,
        golden=add_reference(source, read_reference(reference)),
        provenance={"precision": precision, **source.describe(), "export": dict(facts)},
        link=True,
        sight=sight,
    )


def _prove(bundle: Bundle) -> dict[str, Any]:
    with Policy.open(bundle) as policy:
        return prove_bundle(bundle, policy.backend)
