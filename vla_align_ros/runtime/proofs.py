"""Where proofs are kept, and who asks for them before a policy may move an arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_align_ros.errors import BundleError
from vla_align_ros.inference.base import name_place
from vla_align_ros.runtime.golden import is_judged_by, prove_bundle
from vla_align_ros.runtime.limits import find_golden_limits
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
    behaviour = before.get("behaviour")
    named = isinstance(behaviour, Mapping) and "reference_id" in behaviour
    if before.get("precision") != proof["precision"] or not named:
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
        lambda report: {"proofs": {**read_proofs(report), name: kept}, "verify": kept}
    )


def find_proof(policy: Policy) -> dict[str, Any] | None:
    """Return the proof of a policy on its backend, None if there is none.

    Raises:
        BundleError: if it cannot be read, or is of engines that were made after those that run.
    """
    engines = getattr(policy.backend, "engines", None)
    if engines is None:
        return read_proofs(policy.bundle.report()).get(policy.backend.name)
    proof: dict[str, Any] | None = engines.read_gates().get(DEVICE)  # since it was opened, too
    return proof


def read_proofs(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The proofs in a bundle's report by backend; what is none is left out."""
    proofs = report.get("proofs")
    if not isinstance(proofs, dict):
        return {}
    return {name: proof for name, proof in proofs.items() if isinstance(proof, dict)}


def require_proof(policy: Policy) -> tuple[dict[str, Any], bool]:
    """Return the proof of a policy on its backend, and whether it was made only now.

    Each backend is proved by itself: another engine rounds otherwise. So does another version of
    its library, or another processor: a proof from elsewhere is made again, now, and not kept. So
    is one that was judged by other limits than today's.

    Raises:
        BundleError: with the command that mends it, unless the policy is proved.
    """
    proof, backend, place = find_proof(policy), policy.backend.name, name_place(policy.backend)
    got = "no proof" if proof is None else "a proof that failed"
    made = False
    if proof is not None and is_proved(proof):
        known, limits = proof.get("runs_on"), find_golden_limits(policy.precision)
        made = known != place or not is_judged_by(proof, limits)
        got = f"a proof of {known or 'an older version'}, which fails on {place}"
        if known == place:
            got = "a proof by other limits, which fails by those of this version"
    if proof is not None and made:
        proof = {**proof, **prove_bundle(policy.bundle, policy.backend, policy.precision)}
    if proof is not None and is_proved(proof):
        return proof, made
    raise BundleError(
        "policy is not proved",
        got=got,
        expected=f"golden samples within their limits on the backend {backend!r}",
        fix=f"run `vla-align verify {policy.bundle.path} --backend {backend}` on this machine, or "
        "set the parameter allow_unproven",
    )
