"""`vla-align bench export`: a network of a named shape, exported, proved, timed beside torch."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError, ExportError

SUMMARY = "export a network of a named shape in several precisions; speed-up of the best proved one"
GPU_SHAPE = "openvla_7b"
CPU_SHAPES = ("smol", "tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shape and how much to measure."""
    parser.add_argument(
        "--shape",
        choices=(*CPU_SHAPES, GPU_SHAPE),
        default="smol",
        help="smol: DINOv2-S and SmolLM2-135M; tiny: for tests; openvla_7b: on a GPU (smol)",
    )
    parser.add_argument(
        "--precisions", nargs="+", default=["fp32"], metavar="P", help="of bundles (fp32)"
    )
    parser.add_argument("--threads", type=int, default=2, help="for inference (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each engine")
    parser.add_argument("--burst", type=int, default=2, metavar="N", help="inferences a turn")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="golden samples (12)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep run and bundles there")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export, prove, measure; print the table, return it; `ok` is whether an engine is proved."""
    from vla_align_ros.demo.report import describe_machine

    if args.shape == GPU_SHAPE:
        return run_on_gpu(args)
    if "fp32" not in args.precisions:
        raise ConfigurationError(
            "nothing to compare with", got=args.precisions, expected="fp32 among --precisions"
        )
    if args.keep is not None and args.keep.exists():
        raise ConfigurationError(
            "the folder exists already",
            got=str(args.keep),
            expected="a new path",
            fix="remove it or choose another name",
        )
    if args.keep is None:
        with tempfile.TemporaryDirectory(prefix="vla_align_bench.") as folder:
            result = bench_shape(args, Path(folder))
    else:
        result = bench_shape(args, args.keep)
    return {**result, "load_average": list(os.getloadavg()), "machine": describe_machine()}


def bench_shape(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure a shape, with the run and its bundles in a folder."""
    from training.export.shapes import write_run
    from vla_align_ros.bench.engine_rows import measure_rows, say_now
    from vla_align_ros.bench.engine_table import find_best, summarise_rows, write_table
    from vla_align_ros.contract.bundle import Bundle
    from vla_align_ros.share import find_share

    example = Bundle.open(find_share() / "bundles" / "tabletop")
    facts = write_run(args.shape, folder / "run", example, samples=args.samples)
    print(
        f"{facts['shape']}: {facts['parameters'] / 1e6:.1f} M parameters, {facts['weights']} "
        "weights; of what a training adds, the head alone is fitted"
    )
    bundles, refused = export_precisions(folder, args.precisions)
    rows = list(list_rows(bundles, folder / "run", args.threads))
    measured, absent = measure_rows(rows, rounds=args.rounds, burst=args.burst, say=say_now)
    figures = summarise_rows(measured)
    best = find_best(figures)
    print(write_table(figures))
    for name, reason in {**refused, **absent}.items():
        print(f"{'refused' if name in refused else 'absent'}: {name}: {reason}")
    if best is not None:
        print(f"best proved: {best['label']}, {best['speedup']:.2f} times {figures[0]['label']}")
    return {
        "ok": best is not None,
        **facts,
        "threads": args.threads,
        "reference": figures[0]["label"],
        "best": best["label"] if best else None,
        "speedup": best["speedup"] if best else None,
        "cpu_speedup": best["cpu_speedup"] if best else None,
        "gates": best["gates"] if best else None,
        "rows": figures,
        "refused": refused,
        "absent": absent,
    }


def export_precisions(
    folder: Path, precisions: list[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Export the run in each precision; return bundles, and why the others failed their gates."""
    from training.export.bundle import export_run

    bundles, refused = {}, {}
    for precision in precisions:
        print(f"exporting in {precision}")
        try:
            export_run(folder / "run", folder / precision, precision)
        except ExportError as cause:
            if precision == "fp32":
                raise
            refused[precision] = str(cause)
            continue
        bundles[precision] = folder / precision
    return bundles, refused


def list_rows(bundles: Mapping[str, Path], run: Path, threads: int) -> Iterator[Any]:
    """Give torch in float32 and bfloat16, then every bundle on the engines of a CPU."""
    from vla_align_ros.bench.engine_rows import Row

    options = {"threads": threads}
    exact = bundles["fp32"]
    yield Row("torch", exact, "torch", options, run)
    yield Row("torch_bf16", exact, "torch", {**options, "precision": "bf16"}, run)
    for precision, bundle in bundles.items():
        for name in ("onnx", "openvino", "openvino_bf16"):
            suffix = "" if precision == "fp32" else f", {precision} bundle"
            yield Row(f"{name}{suffix}", bundle, name, options)


def run_on_gpu(args: argparse.Namespace) -> dict[str, Any]:
    """Measure OpenVLA's shape in torch: both heads, eager and as CUDA graphs."""
    from training.export.bench_gpu import bench_openvla
    from vla_align_ros.demo.report import describe_machine

    rows = bench_openvla(rounds=max(args.rounds, 15))
    import torch

    gpu = torch.cuda.get_device_name()
    print("| head | mode | p50 ms | p90 | p99 | speed-up | difference |\n|" + "---|" * 7)
    for row in rows:
        figures = " | ".join(f"{row[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        print(
            f"| {row['head']} | {row['mode']} | {figures} | {row['speedup']:.2f} "
            f"| {row['difference']:.2g} |"
        )
    return {
        "ok": True,
        "shape": args.shape,
        "weights": "random",
        "rows": rows,
        "gpu": gpu,
        "machine": describe_machine(),
    }
