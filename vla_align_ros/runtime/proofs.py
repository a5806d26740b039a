"""Where proofs are kept, and who asks for them before a policy may move an arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_align_ros.errors import BundleError
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.table import is_proved

DEVICE = "device"
"""Among an engine's gates, the proof that ran on the machine itself."""


def complete_proof(policy: Policy, proof: Mapping[str, Any]) -> dict[str, Any]:
    """Return a proof with what was measured before on the same backend, not this time (behaviour).

    Behaviour beside a reference without a name, as older versions kept it, is left out.

    Raises:
        BundleError: if the bundle's report cannot be read.
    """
    before = find_proof(policy) or {}
    behaviour = before.get("behaviour", {})
    if before.get("precision") != proof["precision"] or "reference_id" not in behaviour:
        return dict(proof)
    return {"behaviour": behaviour, **proof}


def keep_proof(policy: Policy, proof: Mapping[str, Any]) -> None:
    """Write a proof where it is looked for, in the place of an earlier one.

    That is the bundle's report, by backend, or beside the engine that it is of.

    Raises:
        BundleError: if it cannot be written there.
    """
    engines = getattr(policy.backend, "engines", None)
    if engines is not None:
        engines.add_gates({DEVICE: dict(proof)})
        return
    kept, name = dict(proof), policy.backend.name
    policy.bundle.change_report(
        lambda report: {"proofs": {**report.get("proofs", {}), name: kept}, "verify": kept}
    )


def find_proof(policy: Policy) -> dict[str, Any] | None:
    """Return the proof of a policy on its backend, None if there is none."""
    engines = getattr(policy.backend, "engines", None)
    if engines is not None:
        engines = policy.bundle.engine(engines.target)  # what was added since it was opened
    proofs: Mapping[str, Any] = (
        policy.bundle.report().get("proofs", {}) if engines is None else engines.gates
    )
    found = proofs.get(policy.backend.name if engines is None else DEVICE)
    return found if isinstance(found, dict) else None


def require_proof(policy: Policy) -> None:
    """Raise a BundleError, with the command that mends it, unless the policy is proved.

    Each backend is proved by itself: another engine rounds otherwise.
    """
    proof, backend = find_proof(policy), policy.backend.name
    if proof is not None and is_proved(proof):
        return
    raise BundleError(
        "policy is not proved",
        got="no proof" if proof is None else "a proof that failed",
        expected=f"golden samples within their limits on the backend {backend!r}",
        fix=f"run `vla-align verify {policy.bundle.path} --backend {backend}` on this machine, or "
        "set the parameter allow_unproven",
    )
