"""The proof of a bundle: its golden samples, replayed through the very path that moves the arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.spec import ACTION_NAMES
from vla_align_ros.inference.base import Backend
from vla_align_ros.runtime.limits import GoldenLimits, find_golden_limits
from vla_align_ros.runtime.policy import Policy

UNITS = ("mm", "mm", "mm", "deg", "deg", "deg", "fraction")
"""Of each dimension's error, in the order of ``ACTION_NAMES``."""

_FACTORS = np.array([1e3, 1e3, 1e3, *([180.0 / np.pi] * 3), 1.0])


def replay_golden(bundle: Bundle, backend: Backend) -> dict[str, dict[str, Any]]:
    """Measure how far a backend's actions are from the golden ones, over all samples and steps.

    Args:
        bundle: with golden samples. backend: open for its "policy" graph; it stays open.

    Returns:
        By action name: {"unit": "mm", "deg" or "fraction", "max": float, "p99": float}.

    Raises:
        ContractError, BackendError: as ``Policy.infer`` does.
    """
    policy = Policy(bundle, backend)
    golden = bundle.golden()
    actions = [policy.infer(seen).actions for seen in iterate_observations(golden, bundle.spec)]
    return compare_actions(np.stack(actions), golden["reference_actions"])


def compare_actions(
    actions: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """Compare actions (..., 7) with reference ones, whose gripper is clipped as a robot would."""
    wanted = np.array(reference, dtype=np.float64)
    wanted[..., -1] = np.clip(wanted[..., -1], 0.0, 1.0)
    errors = np.abs(actions - wanted).reshape(-1, len(ACTION_NAMES)) * _FACTORS
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


def prove_bundle(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    """Replay and judge a bundle by the limits of its own precision, as its report keeps it.

    Raises:
        BundleError: if its precision has no limits; else as ``replay_golden``.
    """
    precision = str(bundle.manifest["provenance"]["precision"])
    limits = find_golden_limits(precision)
    verdict = judge_errors(replay_golden(bundle, backend), limits)
    samples = int(bundle.golden()["reference_actions"].shape[0])
    return {**verdict, "backend": backend.name, "precision": precision, "samples": samples}
