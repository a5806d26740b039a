"""One step from a finished run to a proven bundle, or to an error and no bundle on disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.behaviour import check_gate, prove_behaviour
from training.export.graph_file import OPSET
from training.export.makers import library_versions
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
from vla_align_ros.contract.sight import GRAPH
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

    Needs in `run_dir`: model.json and model.safetensors, or openvla/ where the run started from
    OpenVLA; config.json, processor/ and golden_inputs.npz. An interrupted export goes on where it
    was.

    Args:
        run_dir: of the run. out: the bundle, which must not exist. precision: of `CPU_PLANS`.
        block: of int4. split_vision: whether vision is a graph of its own (a token policy's always
            is). episodes: pairs of closed-loop episodes for the third gate; 0 leaves it out.
        say: what to do with lines of progress.

    Returns:
        {"ok", "bundle", "bundle_id", "precision", "bytes", "parity", "proof", "sensitivity"}.

    Raises:
        ExportError: if `out` exists, the run is unfinished, the graphs stray from the model, a gate
            fails, or `episodes` are asked for in fp32, of another camera than the table-top's or
            so few that the gate cannot be passed; TrainingError: if the run lacks weights or golden
            inputs; `out` is then as it was.
    """
    run_dir, out = Path(run_dir), Path(out).absolute()
    find_plan(precision, engine=False, block=block)
    if episodes and precision == "fp32":
        raise ExportError(
            "behaviour cannot be compared",
            got="precision fp32",
            expected="another, beside which fp32 is the reference",
            fix="leave --episodes out",
        )
    source = RunSource.open(run_dir)
    if episodes:
        check_gate(source.processor.spec, episodes)
    with open_stages(out, say) as stages:
        if out.exists() or out.is_symlink():  # an export that was waited for may have made it
            raise ExportError(
                "the bundle exists already",
                got=str(out),
                expected="a new path",
                fix="remove it or choose another name",
            )
        bundle, facts, proof = _export(stages, source, precision, block, split_vision)
        if episodes:
            stages.keep = True  # another number of episodes needs nothing of it anew
            exact = Bundle.open(stages.root / "bundle-fp32")
            with Policy.open(bundle) as policy:
                proof["behaviour"] = prove_behaviour(exact, policy, episodes)
            require_proof(
                proof,
                f"{FIX}; where it was undecided, give more --episodes. What was exported waits for"
                f" the next call in {stages.root}; remove it if there will be none",
            )
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
    traced, reference, facts = _trace(stages, source, split_vision)
    golden = add_reference(source, reference)
    final = precision == "fp32"
    exact = _write(stages, source, "fp32", traced.specs, traced.folder, golden, facts, link=final)
    if final:
        proof = _prove(exact)
        require_proof(proof, FIX)
        return exact, facts, proof
    start = dataclasses.replace(traced, bundle=exact)
    reduced = reduce_graphs(stages, start, precision, engine=False, block=block)
    require_proof(reduced.proof, FIX)
    facts |= {"plan": reduced.plan.to_dict(), "sensitivity": reduced.table}
    graphs = reduced.folder
    bundle = _write(stages, source, precision, traced.specs, graphs, golden, facts, link=True)
    proof = {**_prove(bundle), "numbers": reduced.proof["numbers"]}
    require_proof(proof, FIX)
    return bundle, facts, proof


def _trace(
    stages: Stages, source: RunSource, split_vision: bool
) -> tuple[Exact, npt.NDArray[np.float32], dict[str, Any]]:
    """Trace the graphs, compare them with torch, and measure the noise of bfloat16.

    Returns:
        The graphs, torch's normalised actions (N, H, A), and what the bundle records.
    """
    known = source.facts()

    def compute(folder: Path) -> None:
        np.savez(folder / "reference.npz", **reference_outputs(source))

    def trace(folder: Path) -> None:
        specs = source.write_graphs(folder, split_vision=split_vision)
        described = {spec.name: spec.to_dict() for spec in specs}
        write_durably(folder / "specs.json", readable_json(described))

    reference = read_reference(stages.run("reference", known, compute))
    graphs = stages.run("graphs", {**known, "split_vision": split_vision}, trace)
    described = read_json_object(graphs / "specs.json")
    specs = tuple(GraphSpec.from_dict(n, described[n]) for n in find_layout(tuple(described)))
    samples = source.samples()
    parity = check_parity(run_graphs(specs, graphs, samples), reference)
    exact = Exact(specs, graphs, digest(graphs))
    floors = measure_floors(stages, exact, samples, source.processor)
    facts = {
        "opset": OPSET,
        "parity": parity,
        "noise_floor": floors.actions,
        "kept_in_float": list(DELICATE),
        "versions": library_versions(),
    }
    return exact, reference, facts


def _write(
    stages: Stages,
    source: RunSource,
    precision: str,
    specs: Sequence[GraphSpec],
    graphs: Path,
    golden: Mapping[str, npt.NDArray[Any]],
    facts: Mapping[str, Any],
    *,
    link: bool,
) -> Bundle:
    """Write a bundle of graphs among the stages, with the fp32 model's golden actions.

    Graphs that are still to be reduced cannot be linked: onnx_ir reads no weights of two names.
    """
    target = stages.root / f"bundle-{precision}"
    shutil.rmtree(target, ignore_errors=True)
    sight = export_sight(stages, source, compact=precision != "fp32")
    told = {} if sight is None else {"sight": dict(sight.facts)}
    return write_bundle(
        target,
        processor=source.processor,
        graphs={
            **{spec.name: graphs / f"{spec.name}.onnx" for spec in specs},
            **({} if sight is None else {GRAPH: sight.graph}),
        },
        specs=specs,
        golden=golden,
        provenance={"precision": precision, **source.describe(), "export": {**facts, **told}},
        link=link,
        sight=None if sight is None else sight.statistics,
    )


def _prove(bundle: Bundle) -> dict[str, Any]:
    with Policy.open(bundle) as policy:
        return prove_bundle(bundle, policy.backend)
