"""`vla-align verify`: prove that a bundle still acts as the model that it was exported from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.inference.base import BACKENDS, open_backend
from vla_align_ros.runtime.golden import prove_bundle

SUMMARY = "replay a bundle's golden samples on this machine and hold the errors against limits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the backend and its threads."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="onnx")
    parser.add_argument("--threads", type=int, default=1, help="for inference (default: 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prove the bundle, print a table, keep the result in its report.json; `ok` is the verdict.

    Raises:
        VlaAlignError: if the bundle or the backend cannot be used at all.
    """
    bundle = Bundle.open(args.bundle)
    backend = open_backend(args.backend, bundle.graph_path("policy"), threads=args.threads)
    try:
        proof = prove_bundle(bundle, backend)
    finally:
        backend.close()
    print_proof(bundle, proof)
    bundle.add_report({"verify": proof})
    return {"bundle_id": bundle.id, **proof}


def print_proof(bundle: Bundle, proof: dict[str, Any]) -> None:
    """Print the table of errors against limits, and the verdict."""
    print(
        f"bundle {bundle.short_id}: {proof['samples']} golden samples, "
        f"{proof['precision']}, backend {proof['backend']}"
    )
    print(f"  {'':8} {'largest':>10} {'p99':>10} {'limit':>10}")
    for name, entry in proof["dimensions"].items():
        numbers = " ".join(f"{entry[key]:10.4g}" for key in ("max", "p99", "limit"))
        print(f"  {name:8} {numbers} {entry['unit']:9} {'' if entry['ok'] else 'TOO FAR'}".rstrip())
    print("proved" if proof["ok"] else "REFUSED: export the policy again, or in higher precision")
