"""From float32 graphs to graphs in fewer bits that pass the gates, or to an error."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.calibrate import measure_ranges
from training.export.graph_file import load_graph, save_graphs
from training.export.precision import SEARCHED, Plan, apply_plan, find_plan
from training.export.products import find_products
from training.export.proof import Errors, measure_graphs, opened, prove_graphs, run_graphs
from training.export.restore import denormalize, hash_samples, prepare_samples
from training.export.stages import Stages
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.files import read_json_object, readable_json, write_durably
from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.spec import ACTION_DIM
from vla_align_ros.inference.base import Backend
from vla_align_ros.inference.onnx import name_runtime
from vla_align_ros.inference.pipeline import GraphPipeline
from vla_align_ros.runtime.golden import action_error
from vla_align_ros.runtime.limits import find_golden_limits

NOISE = Plan(base="bfloat16")
_SENSITIVITY_SAMPLES = 8
_SHARES = (0.8, 1.0)
"""Of the limits, in the order in which `auto` tries to stay within them: rounded activations err
otherwise on another machine, or by another number of threads."""
_BLOCK = re.compile(r"^(.*?\.(?:layers?|blocks)\.\d+)\.")

Samples = Sequence[Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """Float32 graphs to start from: in order, and where they lie as `<graph>.onnx`.

    key: what stands for their content. spared: by graph, products that stay in float32. bundle:
    whose golden samples and processor judge what follows.
    """

    specs: Sequence[GraphSpec]
    folder: Path
    key: str
    spared: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bundle: Bundle | None = None


@dataclass(frozen=True, slots=True)
class Floors:
    """What rounding to bfloat16 does: to each output of each graph, and to the actions in all."""

    graphs: Errors
    actions: float


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """Graphs of a plan that passed: their folder, the plan, its proof, what `auto` found."""

    folder: Path
    plan: Plan
    proof: dict[str, Any]
    table: list[dict[str, Any]]


def measure_floors(stages: Stages, exact: Exact, samples: Samples, processor: Processor) -> Floors:
    """Measure the noise of bfloat16 on samples, which are the golden ones of the processor."""
    facts = {"graphs": exact.key, "samples": hash_samples(samples)}

    def make(folder: Path) -> None:
        simulated = folder / "simulated"
        simulated.mkdir()
        _write(exact, simulated, NOISE, {}, simulate=True)
        graphs = measure_graphs(exact.specs, exact.folder, simulated, samples)
        paths = {"rounded": simulated, "exact": exact.folder}
        actions = {name: run_graphs(exact.specs, path, samples) for name, path in paths.items()}
        shutil.rmtree(simulated)
        np.savez(folder / "actions.npz", **actions)
        write_durably(folder / "floors.json", readable_json(graphs))

    folder = stages.run("noise", facts, make)
    with np.load(folder / "actions.npz", allow_pickle=False) as stored:
        rounded, exactly = (denormalize(processor, stored[name]) for name in ("rounded", "exact"))
    graphs = read_json_object(folder / "floors.json")
    return Floors(graphs, action_error(processor, rounded, exactly))


def reduce_graphs(
    stages: Stages,
    exact: Exact,
    precision: str,
    *,
    engine: bool,
    block: int,
    calibration: Samples | None = None,
) -> Reduced:
    """Write graphs of a precision and prove them; with `auto`, find what must stay higher.

    Args:
        stages: of this export. exact: float32 graphs. precision: a name of `find_plan`.
        engine: whether they are compiled, or run by ONNX Runtime as they are. block: for int4.
        calibration: inputs on which ranges of activations are measured; by default the golden ones.

    Returns:
        Graphs with their proof, which may say that they failed.
    """
    bundle = exact.bundle
    assert bundle is not None, "graphs can be judged by a bundle's golden samples alone"
    golden = prepare_samples(bundle.golden(), bundle.processor)
    floors = measure_floors(stages, exact, golden, bundle.processor)
    plan = find_plan(precision, engine=engine, block=block)
    ranges: dict[str, dict[str, float]] = {}
    if plan.rounds_activations:
        ranges = _find_ranges(stages, exact, plan, golden if calibration is None else calibration)
    facts = {
        "graphs": exact.key,
        "judge": {
            "bundle": bundle.id,
            "limits": dataclasses.asdict(find_golden_limits(precision)),
            "place": name_runtime(),  # whose kernels the numbers are of
        },
        "floors": floors.graphs,
        "ranges": ranges,
        "plan": plan.to_dict(),
    }

    def judge(candidate: Plan, folder: Path) -> dict[str, Any]:
        _write(exact, folder, candidate, ranges, simulate=candidate.base != "float32")
        paths = (exact.folder, folder)
        return prove_graphs(bundle, *paths, precision, golden, floors.graphs, fused=not engine)

    def make(folder: Path) -> None:
        table: list[dict[str, Any]] = []
        chosen = plan
        if precision in SEARCHED:
            chosen, table = _search(exact, plan, judge, ranges, golden, folder)
        trial = folder / "trial"
        trial.mkdir()
        proof = judge(chosen, trial)
        shutil.rmtree(trial)
        _write(exact, folder, chosen, ranges, simulate=False)
        found = {"plan": chosen.to_dict(), "proof": proof, "table": table}
        write_durably(folder / "reduced.json", readable_json(found))

    name = f"{'engine' if engine else 'graphs'}-{precision}"
    folder = stages.run(name, facts, make)
    found = read_json_object(folder / "reduced.json")
    return Reduced(folder, Plan.from_dict(found["plan"]), found["proof"], found["table"])


def _find_ranges(
    stages: Stages, exact: Exact, plan: Plan, samples: Samples
) -> dict[str, dict[str, float]]:
    facts = {"graphs": exact.key, "samples": hash_samples(samples), "method": plan.method}

    def measure(spec: GraphSpec) -> dict[str, float]:
        rest = [other for other in exact.specs if other is not spec]
        with opened(rest, exact.folder) as others:

            def drive(own: Backend) -> None:
                pipeline = GraphPipeline(exact.specs, {**others, spec.name: own})
                for sample in samples:
                    pipeline.infer(sample)

            source = exact.folder / f"{spec.name}.onnx"
            calls = len(samples) * (ACTION_DIM - 1 if spec.name == "decode" else 1)
            return measure_ranges(source, drive, calls, str(plan.method))

    def make(folder: Path) -> None:
        found = {spec.name: measure(spec) for spec in exact.specs}
        write_durably(folder / "ranges.json", readable_json(found))

    return read_json_object(stages.run("ranges", facts, make) / "ranges.json")


def _write(
    exact: Exact,
    folder: Path,
    plan: Plan,
    ranges: Mapping[str, Mapping[str, float]],
    *,
    simulate: bool,
) -> None:
    def reduce() -> Iterator[tuple[str, Any]]:
        for spec in exact.specs:
            model = load_graph(exact.folder / f"{spec.name}.onnx")
            own = dataclasses.replace(plan, spared=tuple(exact.spared.get(spec.name, ())))
            apply_plan(model, own, ranges.get(spec.name), simulate=simulate)
            yield spec.name, model

    save_graphs(reduce(), folder)


def _search(
    exact: Exact,
    plan: Plan,
    judge: Callable[[Plan, Path], dict[str, Any]],
    ranges: Mapping[str, Mapping[str, float]],
    samples: Samples,
    folder: Path,
) -> tuple[Plan, list[dict[str, Any]]]:
    """Rank parts of the network by the error that each makes alone; keep the worst until it passes.

    The number to keep is found by halving, since more kept parts never do worse by much. It passes
    with room to spare, where keeping less than everything does.
    """
    trial = folder / "trial"
    groups = group_products(exact)
    everything = {name for names in groups.values() for name in names}
    errors: dict[str, float] = {}
    for group, names in groups.items():
        trial.mkdir()
        alone = dataclasses.replace(plan, kept=tuple(sorted(everything - set(names))))
        _write(exact, trial, alone, ranges, simulate=plan.base != "float32")
        found = measure_graphs(exact.specs, exact.folder, trial, samples[:_SENSITIVITY_SAMPLES])
        errors[group] = max(
            entry.get("error", 1.0 - entry.get("agreement", 1.0))
            for outputs in found.values()
            for entry in outputs.values()
        )
        shutil.rmtree(trial)
    ranked = sorted(errors, key=lambda group: -errors[group])

    def keep(count: int) -> Plan:
        names = sorted(name for group in ranked[:count] for name in groups[group])
        return dataclasses.replace(plan, kept=tuple(names))

    @cache
    def prove(count: int) -> dict[str, Any]:
        trial.mkdir()
        proof = judge(keep(count), trial)
        shutil.rmtree(trial)
        return proof

    def passes(count: int, share: float) -> bool:
        proof = prove(count)
        errors = proof["dimensions"].values()
        return bool(proof["ok"]) and all(e["max"] <= share * e["limit"] for e in errors)

    for share in _SHARES:
        low, high = 0, len(ranked)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle, share) else (middle + 1, high)
        if low < len(ranked):
            break
    table = [
        {
            "part": group,
            "products": len(groups[group]),
            "error_alone": errors[group],
            "kept": rank < low,
        }
        for rank, group in enumerate(ranked)
    ]
    return keep(low), table


def group_products(exact: Exact) -> dict[str, list[str]]:
    """Group a policy's products by the block of the network that they lie in."""
    groups: dict[str, list[str]] = {}
    for spec in exact.specs:
        spared = set(exact.spared.get(spec.name, ()))
        for product in find_products(load_graph(exact.folder / f"{spec.name}.onnx")):
            if product.name in spared:
                continue
            block = _BLOCK.match(product.name)
            names = groups.setdefault(block.group(1) if block else product.name, [])
            if product.name not in names:
                names.append(product.name)
    return groups
