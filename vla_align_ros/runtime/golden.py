"""The proof of a bundle: its golden samples, replayed through the very path that moves the arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.spec import ACTION_NAMES
from vla_align_ros.errors import BundleError
from vla_align_ros.inference.base import Backend, name_place
from vla_align_ros.runtime.limits import GoldenLimits, find_golden_limits
from vla_align_ros.runtime.numbers import judge_numbers, relative_rms
from vla_align_ros.runtime.policy import Policy

UNITS = ("mm", "mm", "mm", "deg", "deg", "deg", "fraction")
"""Of each dimension's error, in the order of ``ACTION_NAMES``."""

_SAME = 1e-6  # metres, radians, fractions: far less than a bin of any token policy
_FACTORS = np.array([1e3, 1e3, 1e3, *([180.0 / np.pi] * 3), 1.0])


def replay_golden(bundle: Bundle, backend: Backend) -> npt.NDArray[np.float64]:
    """Run a backend on the golden samples, through the path that moves the arm.

    Args:
        bundle: with golden samples. backend: open for its acting graphs; it stays open.

    Returns:
        Actions (N, H, 7) in metres, radians and fractions.

    Raises:
        ContractError, BackendError: as ``Policy.infer`` does.
    """
    policy = Policy(bundle, backend)
    seen = iterate_observations(bundle.golden(), bundle.spec)
    return np.stack([policy.infer(observation).actions for observation in seen])


def compare_actions(
    actions: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """Compare actions (..., 7) with reference ones, whose gripper is clipped as a robot would."""
    errors = np.abs(actions - clip_gripper(reference)).reshape(-1, len(ACTION_NAMES)) * _FACTORS
    return {
        name: {
            "unit": unit,
            "max": float(errors[:, index].max()),
            "p99": float(np.quantile(errors[:, index], 0.99)),
        }
        for index, (name, unit) in enumerate(zip(ACTION_NAMES, UNITS, strict=True))
    }


def judge_errors(errors: dict[str, dict[str, Any]], limits: GoldenLimits) -> dict[str, Any]:
    """Hold the largest error of each dimension against its limit.

    Returns:
        {"ok": bool, "dimensions": {name: {"unit", "max", "p99", "limit", "ok"}}}; an error that is
        not a number is not within any limit.
    """
    dimensions = {
        name: {
            **error,
            "limit": limits.for_unit(error["unit"]),
            "ok": bool(error["max"] <= limits.for_unit(error["unit"])),
        }
        for name, error in errors.items()
    }
    return {"ok": all(entry["ok"] for entry in dimensions.values()), "dimensions": dimensions}


def is_judged_by(proof: Mapping[str, Any], limits: GoldenLimits) -> bool:
    """Say whether a kept proof held everything that it measured against these limits."""
    try:
        dimensions, agreement = proof["dimensions"], proof["agreement"]
        outputs = {} if proof["numbers"] is None else proof["numbers"]["outputs"]
        held = [row["limit"] == limits.for_unit(row["unit"]) for row in dimensions.values()]
        held += [
            row["limit"] == (limits.noise if "ratio" in row else limits.agreement)
            for row in (*outputs.values(), *([] if agreement is None else [agreement]))
        ]
    except (KeyError, TypeError, AttributeError):  # a report may hold anything
        return False
    return set(dimensions) == set(ACTION_NAMES) and all(held)


def prove_bundle(bundle: Bundle, backend: Backend, precision: str | None = None) -> dict[str, Any]:
    """Replay the golden samples and judge them by the limits of a precision.

    Args:
        bundle: with golden samples. backend: open for its acting graphs. precision: what the
            backend computes in; by default the bundle's own.

    Returns:
        {"ok", "dimensions" (see `judge_errors`), "numbers" (see `judge_actions`; None for a bundle
        without a noise floor), "agreement" (of tokens; None for a chunk policy), "backend",
        "runs_on" (see `name_place`), "precision", "samples"}, as a report keeps it.

    Raises:
        BundleError: if the precision has no limits; else as ``replay_golden``.
    """
    precision = precision or str(bundle.manifest["provenance"]["precision"])
    limits = find_golden_limits(precision)
    reference = bundle.golden()["reference_actions"]
    actions = replay_golden(bundle, backend)
    verdict = judge_errors(compare_actions(actions, reference), limits)
    numbers = judge_actions(bundle, actions, reference, limits)
    agreement = None
    if any(spec.name == "decode" for spec in bundle.acting_graphs):
        agreement = judge_agreement(actions, reference, limits)
    parts = [part["ok"] for part in (verdict, numbers, agreement) if part is not None]
    return {
        "ok": all(parts),
        "dimensions": verdict["dimensions"],
        "numbers": numbers,
        "agreement": agreement,
        "backend": backend.name,
        "runs_on": name_place(backend),
        "precision": precision,
        "samples": int(reference.shape[0]),
    }


def judge_actions(
    bundle: Bundle,
    actions: npt.NDArray[np.float64],
    reference: npt.NDArray[np.float64],
    limits: GoldenLimits,
) -> dict[str, Any] | None:
    """Hold the error of all actions against the noise of bfloat16; None if it is not known.

    The error is the root mean square of the normalised difference, as a share of the reference's.
    BundleError if what the bundle tells of that noise is no number.
    """
    told = bundle.manifest["provenance"].get("export")
    floor = told.get("noise_floor") if isinstance(told, Mapping) else None
    if floor is None:
        return None
    if isinstance(floor, bool) or not isinstance(floor, int | float):
        raise BundleError(
            "bundle's noise of bfloat16 is no number",
            got=repr(floor),
            expected="a number under export.noise_floor of its provenance",
            fix="export the policy again",
        )
    error = {"policy": {"actions": {"error": action_error(bundle.processor, actions, reference)}}}
    floors = {"policy": {"actions": {"error": float(floor)}}}
    return judge_numbers(error, floors, limits.noise, limits.agreement)


def judge_agreement(
    actions: npt.NDArray[np.float64], reference: npt.NDArray[np.float64], limits: GoldenLimits
) -> dict[str, Any]:
    """Hold the share of actions that a token policy's tokens agree on: {"share", "limit", "ok"}."""
    same = np.isclose(actions, clip_gripper(reference), rtol=0.0, atol=_SAME)
    share = float(same.mean())
    return {"share": share, "limit": limits.agreement, "ok": share >= limits.agreement}


def action_error(
    processor: Processor, actions: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> float:
    """Relative root mean square error of actions (N, H, 7), normalised as the network has them."""
    encode = processor.encode_actions
    return relative_rms(encode(clip_gripper(actions)), encode(clip_gripper(reference)))


def clip_gripper(actions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return actions whose gripper is clipped to 0 to 1, as a robot would."""
    clipped = np.array(actions, dtype=np.float64)
    clipped[..., -1] = np.clip(clipped[..., -1], 0.0, 1.0)
    return clipped
