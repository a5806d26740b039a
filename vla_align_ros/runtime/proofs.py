"""Where proofs are kept, and who asks for them before a policy may move an arm."""

from __future__ import annotations

from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import BundleError
from vla_align_ros.runtime.table import is_proved

ENGINES = ("tensorrt", "tensorrt_rtx")
"""Backends that run what was compiled for one machine; their proof lies beside the engine."""


def keep_proof(bundle: Bundle, proof: dict[str, Any]) -> dict[str, Any]:
    """Write a proof into the bundle's report; return it.

    What was measured before on the same backend and not this time (behaviour) is kept.
    """
    proofs = dict(bundle.report().get("proofs", {}))
    before = proofs.get(proof["backend"], {})
    if before.get("precision") == proof["precision"] and "behaviour" in before:
        proof = {"behaviour": before["behaviour"], **proof}
    proofs[proof["backend"]] = proof
    bundle.add_report({"proofs": proofs, "verify": proof})
    return proof


def require_proof(bundle: Bundle, backend: str) -> None:
    """Raise a BundleError, with the command that mends it, unless the bundle is proved.

    Args:
        bundle: opened. backend: name of what will run it; each backend is proved by itself.
    """
    proof = bundle.report().get("proofs", {}).get(backend)
    if proof is not None and is_proved(proof):
        return
    raise BundleError(
        "policy is not proved",
        got="no proof" if proof is None else "a proof that failed",
        expected=f"golden samples within their limits on the backend {backend!r}",
        fix=f"run `vla-align verify {bundle.path} --backend {backend}` on this machine",
    )
