"""`vla-align verify`: prove that a bundle still acts as the model that it was exported from."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.inference.base import BACKENDS
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import complete_proof, keep_proof
from vla_align_ros.runtime.table import describe_proof, is_proved

SUMMARY = "replay a bundle's golden samples on this machine and hold the errors against limits"
GATES = "vla_align_ros.gates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the backend, and the episodes of the third gate."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="onnx")
    parser.add_argument("--threads", type=int, default=1, help="for inference (default: 1)")
    parser.add_argument(
        "--episodes",
        type=int,
        default=0,
        help="pairs of simulated episodes for the gate of behaviour (default 0: left out)",
    )
    parser.add_argument(
        "--reference", type=Path, help="with --episodes: the same policy in fp32, as a bundle"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prove the bundle, print a table, keep the result beside it; `ok` is the verdict.

    Raises:
        VlaAlignError: if the bundle or the backend cannot be used at all, or, after the table, if
            the result cannot be kept.
    """
    if args.episodes < 0:
        raise ConfigurationError(
            "wrong number of episodes",
            got=args.episodes,
            expected="pairs of episodes, such as 60, or 0 to leave the gate of behaviour out",
            fix="correct --episodes",
        )
    if args.reference is not None and not args.episodes:
        raise ConfigurationError(
            "--reference has no effect",
            got="no --episodes",
            expected="episodes to compare in",
            fix="give --episodes 60 too, or leave --reference out",
        )
    bundle = Bundle.open(args.bundle)
    with Policy.open(bundle, args.backend, args.threads) as policy:
        proof = prove_bundle(bundle, policy.backend, policy.precision)
        if args.episodes:
            proof["behaviour"] = _prove_behaviour(policy, args)
        proof = complete_proof(policy, proof)
        print(f"bundle {bundle.short_id}")
        for line in describe_proof(proof):
            print(line)
        keep_proof(policy, proof)
    return {**proof, "bundle_id": bundle.id, "ok": is_proved(proof)}


def _prove_behaviour(policy: Policy, args: argparse.Namespace) -> dict[str, Any]:
    gates = {point.name: point for point in entry_points(group=GATES)}
    if args.reference is None or "behaviour" not in gates:
        raise ConfigurationError(
            "behaviour cannot be compared",
            got="no --reference" if args.reference is None else "no simulator's gate installed",
            expected="the policy in fp32 to compare with, and the whole package",
            fix="export the run with --precision fp32, and give that bundle as --reference",
        )
    prove = gates["behaviour"].load()
    reference = Bundle.open(args.reference)
    result: dict[str, Any] = prove(reference, policy, args.episodes, threads=args.threads)
    return result
