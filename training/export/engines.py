"""From a bundle to TensorRT engines beside it: fewer bits, two gates, then the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.export.compile import build_engine
from training.export.compile_bundle import add_engine_set
from training.export.compile_cache import open_user_cache
from training.export.compile_options import parse_options
from training.export.compile_target import Target, resolve_targets
from training.export.precision import Plan, find_plan
from training.export.proof import require_proof
from training.export.reduce import Exact, reduce_graphs
from training.export.restore import KEPT, Arrays, write_restored
from training.export.stages import Stages, digest, open_stages
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import build_command
from vla_align_ros.contract.files import read_json_object, readable_json, write_durably
from vla_align_ros.errors import ExportError

SOURCES = ("fp32", "int8", "auto_weights", "int4")
"""Precisions of bundles that engines can be made of: float32, or weights alone in fewer bits.
Engines in float32 of the first alone: the others' weights stray further than its limits."""

FIX = "build in a higher precision, or with --precision auto"


@dataclass(frozen=True, slots=True)
class Order:
    """Engines that were asked for, and can be made here: their plan, targets, builder's options."""

    plan: Plan
    targets: tuple[Target, ...]
    builder: Mapping[str, str]


def check_order(
    targets: str, precision: str, *, options: Sequence[str] = (), block: int = 128
) -> Order:
    """Look, before any work, whether engines can be made as asked; arguments of `export_engines`.

    Raises:
        ExportError: for an unknown precision or block. ConfigurationError: for a wrong target or
            option. BackendError: without the library, or the GPU, that a target needs.
    """
    plan = find_plan(precision, engine=True, block=block)
    return Order(plan, resolve_targets(targets), parse_options(options))


def export_engines(
    path: str | Path,
    targets: str,
    precision: str,
    *,
    options: Sequence[str] = (),
    block: int = 128,
    data: Sequence[str | Path] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Add engines to a bundle, which stays as it is; needs neither the run nor torch.

    The graphs are proved on this machine by what they mean (their rounding is computed in float32);
    the engines' own gates are `vla-align verify` on the machine that will run them.

    Args:
        path: of the bundle. targets: comma-separated, "sm89" and the like, or "device".
        precision: of `ENGINE_PLANS`. options: of the builder, as trtexec names them. block: of
            int4. data: data sets on which ranges of activations are measured; without any the
            golden samples serve. say: what to do with lines of progress.

    Returns:
        {"ok", "bundle", "bundle_id", "precision", "engines" (by target: library, version, bytes,
        path), "proof", "sensitivity"}.

    Raises:
        ExportError: if a gate fails or the graphs do not compile; what `check_order` raises. The
            bundle is then as it was.
    """
    bundle = Bundle.open(path)
    order = check_order(targets, precision, options=options, block=block)
    _check_source(bundle, precision)
    cache = open_user_cache()
    with open_stages(bundle.path, say) as stages:
        exact = _restore(stages, bundle)
        reduced = reduce_graphs(
            stages,
            exact,
            precision,
            engine=True,
            block=block,
            calibration=_read_calibration(bundle, data) if order.plan.rounds_activations else None,
        )
        require_proof(reduced.proof, FIX)
        made = {}
        for target in order.targets:
            say(f"{target.name} ...")
            engines = {
                spec.name: build_engine(
                    reduced.folder / f"{spec.name}.onnx",
                    stages.root / f"{target.name}-{spec.name}.engine",
                    target,
                    order.builder,
                    cache=cache,
                )
                for spec in exact.specs
            }
            facts = {
                "precision": precision,
                "scheme": reduced.plan.describe(),
                "command": build_command(
                    bundle.path,
                    target.name,
                    precision,
                    block=block if precision == "int4" else None,
                    options=options,
                    data=data,
                ),
                "versions": _versions(),
            }
            engine_set = add_engine_set(bundle, target.name, engines, facts)
            engine_set.add_gates({"graphs": {**reduced.proof, "sensitivity": reduced.table}})
            made[target.name] = _describe(engine_set.path, engines)
    return {
        "ok": True,
        "bundle": str(bundle.path),
        "bundle_id": bundle.id,
        "precision": precision,
        "scheme": reduced.plan.describe(),
        "engines": made,
        "proof": reduced.proof,
        "sensitivity": reduced.table,
    }


def _read_calibration(bundle: Bundle, data: Sequence[str | Path]) -> Sequence[Arrays] | None:
    """Read samples of data sets, if any are given; only that needs what training needs."""
    if not data:
        return None
    from training.export.calibration_data import read_calibration

    config = bundle.manifest["provenance"].get("config", {})
    return read_calibration(data, bundle.processor, config)


def _check_source(bundle: Bundle, precision: str) -> None:
    """Refuse, before any work, a bundle of whose graphs no engines in a precision can be made."""
    found, sources = _precision(bundle), ("fp32",) if precision == "fp32" else SOURCES
    if found not in sources:
        raise ExportError(
            f"engines in {precision} cannot be made of this bundle",
            got=f"a bundle in {found}",
            expected="one in " + " or ".join(sources),
            fix="export the run with --precision fp32, and build from that bundle",
        )


def _precision(bundle: Bundle) -> str:
    return str(bundle.manifest["provenance"]["precision"])


def _restore(stages: Stages, bundle: Bundle) -> Exact:
    """Return the bundle's graphs in float32: its own, or with their weights restored."""
    specs = bundle.acting_graphs
    if _precision(bundle) == "fp32":
        return Exact(specs, bundle.graph_path(specs[0].name).parent, bundle.id, bundle=bundle)

    def make(folder: Path) -> None:
        kept = write_restored({spec.name: bundle.graph_path(spec.name) for spec in specs}, folder)
        write_durably(folder / KEPT, readable_json(kept))

    folder = stages.run("restored", {"bundle": bundle.id}, make)
    return Exact(specs, folder, digest(folder), read_json_object(folder / KEPT), bundle)


def _describe(path: Path, engines: Mapping[str, Any]) -> dict[str, Any]:
    first = next(iter(engines.values()))
    return {
        "path": str(path),
        "library": first.library,
        "library_version": first.library_version,
        "bytes": sum(file.stat().st_size for file in path.glob("*.engine")),
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnx", "onnx-ir", "onnxruntime")}
