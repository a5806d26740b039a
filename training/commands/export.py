"""`vla-align export`: a finished run becomes a proven bundle, and a bundle gets engines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from vla_align_ros.errors import ConfigurationError, ExportError, VlaAlignError

DEVICE = "device"
SUMMARY = "export a training run to a bundle, or a bundle to TensorRT engines, and prove it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", nargs="?", help="folder that `vla-align train --out` filled")
    parser.add_argument("--out", help="folder of the new bundle; must not exist")
    parser.add_argument("--bundle", help="with --trt: a bundle that exists, instead of a run")
    parser.add_argument(
        "--precision",
        help="fp32 (default), bf16, fp16, int8, int8_dynamic, fp8, int4, auto or auto_weights",
    )
    parser.add_argument("--block", type=int, help="of int4: 128 (default), 64 or 32")
    parser.add_argument(
        "--split-vision", action="store_true", help="a chunk policy's vision as its own graph"
    )
    parser.add_argument(
        "--episodes",
        type=int,
        default=0,
        help="without --trt: pairs of simulated episodes for the gate of behaviour (default 0; at"
        " least 42, and 60 where the policies differ now and then)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="trace without weights; say what it would need"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DIR",
        help="with --trt, int8, fp8 and auto: data sets to calibrate on (default: the bundle's"
        " golden samples)",
    )
    parser.add_argument("--trt", action="store_true", help="build TensorRT engines")
    parser.add_argument(
        "--target", help="with --trt: device (default), or for TensorRT-RTX sm86,sm89,..."
    )
    parser.add_argument(
        "--trt-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --trt: an option of the builder as trtexec names it, such as"
        " builderOptimizationLevel=5",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export, prove, say how far the result strays from the model; return the same."""
    _check(args)
    if args.dry_run:
        from training.export.preview import preview_export

        result = preview_export(args.run, split_vision=args.split_vision)
        for name, graph in result["graphs"].items():
            print(f"{name:8} {graph['nodes']:6} nodes {graph['weight_bytes'] / 1e9:8.2f} GB")
        print(f"traced in {result['peak_rss_gb']:.1f} GB of memory")
        return result
    if not args.trt:
        return _export_run(args)
    if args.run is None:
        return _export_engines(args, args.bundle)
    _check_engines(args)
    bundle = _export_run(args)
    try:
        return {**_export_engines(args, args.out), "export": bundle}
    except VlaAlignError as error:
        onward = f"the bundle is whole: go on with `export --trt --bundle {args.out}`"
        raise ExportError(
            f"the bundle {args.out} was exported, but not its engines: {error.summary}",
            got=error.got,
            expected=error.expected,
            fix=onward if error.fix is None else f"{error.fix}; {onward}",
        ) from error


def _check_engines(args: argparse.Namespace) -> None:
    """Refuse engines that cannot be made before the run is exported for them."""
    from training.export.engines import check_order

    check_order(
        args.target or DEVICE,
        _engine_precision(args),
        options=args.trt_option,
        **_block(args),
    )


def _engine_precision(args: argparse.Namespace) -> str:
    return args.precision or "bf16"


def _block(args: argparse.Namespace) -> dict[str, int]:
    return {} if args.block is None else {"block": args.block}


def _export_engines(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    from training.export.engines import export_engines

    result = export_engines(
        bundle,
        args.target or DEVICE,
        _engine_precision(args),
        options=args.trt_option,
        **_block(args),
        data=args.data,
        say=_say,
    )
    print(f"{result['bundle']}: {result['scheme']}")
    _print_sensitivity(result["sensitivity"])
    print_gates(result["proof"])
    for target, made in result["engines"].items():
        library = f"{made['library']} {made['library_version']}"
        print(f"{target}: {made['bytes'] / 1e6:.1f} MB, {library}, unproven until it ran there:")
        print(f"  vla-align verify {result['bundle']} --backend {made['library']}")
    return result


def _check(args: argparse.Namespace) -> None:
    wrong = None
    if args.bundle is not None and (args.run is not None or args.out or not args.trt):
        wrong = "--bundle goes with --trt, and without a run and --out"
    elif args.dry_run and args.run is None:
        wrong = "--dry-run traces a run: give one"
    elif args.trt and args.episodes:
        wrong = "leave --episodes out: an engine is gated by `verify --episodes`, where it runs"
    elif args.bundle is None and args.run is None:
        wrong = "a run, or --trt --bundle DIR, is needed"
    elif args.run is not None and not args.out and not args.dry_run:
        wrong = "--out is needed: the folder of the new bundle"
    wrong = wrong or _find_useless(args)
    if wrong is not None:
        raise ConfigurationError(
            "export does not know what to do",
            got=" ".join(sys.argv[1:]),
            expected="`export RUN --out DIR` or `export --trt --bundle DIR`",
            fix=wrong,
        )


def _find_useless(args: argparse.Namespace) -> str | None:
    """Say which option would have no effect beside the others; None if each has one."""
    if args.trt and args.dry_run:
        return "leave --trt out: --dry-run traces the run's graphs alone"
    if args.dry_run and (args.precision not in (None, "fp32") or args.episodes):
        return "leave --precision and --episodes out: --dry-run traces the graphs in float32 alone"
    if args.bundle is not None and args.split_vision:
        return "leave --split-vision out: the bundle has its graphs already"
    if args.block is not None and args.precision != "int4":
        return "leave --block out: it is of --precision int4"
    if not args.trt:
        given = {"--data": args.data, "--target": args.target, "--trt-option": args.trt_option}
        useless = ", ".join(option for option, value in given.items() if value)
        return f"leave {useless} out, or add --trt: it is of engines" if useless else None
    from training.export.precision import find_plan

    if args.data and not find_plan(_engine_precision(args), engine=True).rounds_activations:
        return "leave --data out: in this precision no range of activations is measured"
    return None


def _export_run(args: argparse.Namespace) -> dict[str, Any]:
    from training.export.bundle import export_run

    result = export_run(
        args.run,
        args.out,
        "fp32" if args.trt else args.precision or "fp32",
        **_block(args),
        split_vision=args.split_vision,
        episodes=args.episodes,
        say=_say,
    )
    print(
        f"{result['bundle']}: {result['precision']}, {result['bytes'] / 1e6:.1f} MB, "
        f"id {result['bundle_id'][:12]}"
    )
    print(f"graph against torch: {result['parity']:.1e} (normalised actions)")
    _print_sensitivity(result["sensitivity"])
    print_gates(result["proof"])
    return result


def print_gates(proof: Mapping[str, Any]) -> None:
    """Print what each gate measured beside its limit."""
    from vla_align_ros.runtime.table import describe_proof

    for line in describe_proof(proof):
        print(line)


def _print_sensitivity(table: list[dict[str, Any]]) -> None:
    if not table:
        return
    print("part of the network, error that it makes alone, whether it stays higher:")
    for row in table:
        verdict = "kept: the gates fail without" if row["kept"] else ""
        print(f"  {row['part']:52} {row['error_alone']:9.2e}  {verdict}".rstrip())


def _say(line: str) -> None:
    print(line, file=sys.stderr)
