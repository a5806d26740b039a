"""`vla-align export`: a finished run becomes a proven bundle."""

from __future__ import annotations

import argparse
from typing import Any

from vla_align_ros.errors import ExportError

SUMMARY = "export a training run to a bundle and prove it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="folder that `vla-align train --out` filled")
    parser.add_argument("--out", required=True, help="folder of the new bundle; must not exist")
    parser.add_argument("--precision", default="fp32", help="fp32 (default) or int8")
    parser.add_argument("--trt", action="store_true", help="also build a TensorRT engine")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export, prove, say how far the bundle strays from the model; return the same."""
    if args.trt:
        raise ExportError(
            "TensorRT export is not in this version",
            got="--trt",
            expected="an ONNX bundle",
            fix="leave --trt out; the bundle runs on ONNX Runtime",
        )
    from training.export.bundle import export_run

    result = export_run(args.run, args.out, args.precision)
    print(
        f"{result['bundle']}: {result['precision']}, {result['bytes'] / 1e6:.1f} MB, "
        f"id {result['bundle_id'][:12]}"
    )
    print(f"graph against torch: {result['parity']:.1e} (normalised actions)")
    for name, entry in result["proof"]["dimensions"].items():
        print(f"  {name:8s} max {entry['max']:8.4f} {entry['unit']:8s} limit {entry['limit']:g}")
    return result
