"""`vla-align bench BUNDLE`: speed, memory, load time and gates of every engine that is present."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_align_ros.errors import BackendError

SUMMARY = "measure a bundle on every engine present, beside torch on the same weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle and how much to measure."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--run", type=Path, metavar="RUN", help="the bundle's run, for torch (default: the bundle)"
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="of engines (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="for inference (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each engine")
    parser.add_argument("--burst", type=int, default=3, metavar="N", help="inferences a turn")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print the table; `ok` is whether any engine that ran passes its gates."""
    from vla_align_ros.bench.engine_rows import measure_rows, say_now
    from vla_align_ros.bench.engine_table import summarise_rows, write_table
    from vla_align_ros.contract.bundle import Bundle
    from vla_align_ros.demo.report import describe_machine

    bundle = Bundle.open(args.bundle)
    rows = list(list_rows(bundle.path, args.run, args.threads, args.backends))
    measured, absent = measure_rows(rows, rounds=args.rounds, burst=args.burst, say=say_now)
    if not measured:
        raise BackendError("no engine runs this bundle", got=absent, expected="at least one")
    figures = summarise_rows(measured)
    print(write_table(figures))
    for label, reason in absent.items():
        print(f"absent: {label}: {reason}")
    return {
        "ok": any(row["proved"] for row in figures),
        "bundle_id": bundle.id,
        "threads": args.threads,
        "reference": figures[0]["label"],
        "rows": figures,
        "absent": absent,
        "load_average": list(os.getloadavg()),
        "machine": describe_machine(),
    }


def list_rows(
    bundle: Path, run: Path | None, threads: int, chosen: list[str] | None = None
) -> Iterator[Any]:
    """Give torch on the CPU and on a GPU, then every other engine on the same bundle.

    torch runs in float32 and in bfloat16; on the GPU as one CUDA graph.

    Args:
        bundle: folder. run: from which torch takes its weights, if not from the bundle.
        threads: for inference. chosen: names of backends; by default all.
    """
    from vla_align_ros.bench.engine_rows import Row
    from vla_align_ros.inference.base import BACKENDS
    from vla_align_ros.inference.tensorrt.device import describe_device

    unknown = sorted(set(chosen or ()) - set(BACKENDS))
    if unknown:
        raise BackendError("inference backend is unknown", got=unknown, expected=sorted(BACKENDS))
    options = {"threads": threads}
    if "torch" in (chosen or BACKENDS):
        yield Row("torch", bundle, "torch", options, run)
        yield Row("torch_bf16", bundle, "torch", {**options, "precision": "bf16"}, run)
        with contextlib.suppress(BackendError):  # without a GPU two processes would start in vain
            describe_device()
            recorded = {**options, "device": "cuda", "cuda_graph": True}
            yield Row("torch_cuda", bundle, "torch", recorded, run)
            yield Row("torch_cuda_bf16", bundle, "torch", {**recorded, "precision": "bf16"}, run)
    for name in sorted(set(chosen or BACKENDS) - {"torch"}):
        yield Row(name, bundle, name, options)
