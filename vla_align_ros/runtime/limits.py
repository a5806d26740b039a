"""The one table of how far a bundle may stray from the model that it was exported from."""

from __future__ import annotations

from dataclasses import dataclass

from vla_align_ros.errors import BundleError


@dataclass(frozen=True, slots=True)
class GoldenLimits:
    """Largest allowed error of any one step: mm, degrees, fraction of the gripper's range."""

    translation_mm: float
    rotation_deg: float
    gripper: float

    def for_unit(self, unit: str) -> float:
        """Return the limit for "mm", "deg" or "fraction"."""
        return {"mm": self.translation_mm, "deg": self.rotation_deg, "fraction": self.gripper}[unit]


GOLDEN_LIMITS = {
    "fp32": GoldenLimits(translation_mm=0.01, rotation_deg=0.01, gripper=1e-3),
    "int8": GoldenLimits(translation_mm=3.0, rotation_deg=2.0, gripper=0.1),
}
"""By the precision that a bundle's provenance names. fp32 differs from torch by rounding alone."""


def find_golden_limits(precision: str) -> GoldenLimits:
    """Return the limits of a precision; BundleError, naming those there are, if it has none."""
    if precision not in GOLDEN_LIMITS:
        raise BundleError(
            "precision has no limits",
            got=repr(precision),
            expected=" or ".join(sorted(GOLDEN_LIMITS)),
            fix="export the bundle again",
        )
    return GOLDEN_LIMITS[precision]
