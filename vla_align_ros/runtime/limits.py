"""The one table of how far a policy may stray from the model that it was exported from."""

from __future__ import annotations

from dataclasses import dataclass

from vla_align_ros.errors import BundleError


@dataclass(frozen=True, slots=True)
class GoldenLimits:
    """What a precision must keep.

    Largest allowed error of any one step: mm, degrees, fraction of the gripper's range.
    noise: largest error of an output, as a multiple of what rounding to bfloat16 does to it.
    agreement: least share of a token policy's tokens that are the reference's.
    """

    translation_mm: float
    rotation_deg: float
    gripper: float
    noise: float
    agreement: float

    def for_unit(self, unit: str) -> float:
        """Return the limit for "mm", "deg" or "fraction"."""
        return {"mm": self.translation_mm, "deg": self.rotation_deg, "fraction": self.gripper}[unit]


_EIGHT_BITS = GoldenLimits(3.0, 2.0, 0.1, noise=16.0, agreement=0.85)

GOLDEN_LIMITS = {
    "fp32": GoldenLimits(0.01, 0.01, 1e-3, noise=0.1, agreement=1.0),
    "bf16": GoldenLimits(2.0, 1.0, 0.1, noise=2.0, agreement=0.9),
    "fp16": GoldenLimits(1.0, 0.5, 0.05, noise=1.0, agreement=0.95),
    "int8": _EIGHT_BITS,
    "int8_dynamic": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
    "int4": GoldenLimits(3.0, 2.0, 0.1, noise=32.0, agreement=0.75),
    "auto": _EIGHT_BITS,
    "auto_weights": _EIGHT_BITS,
}
"""By the precision that a bundle or an engine names. fp32 differs from torch by rounding alone; in
fewer bits a robot's own repeatability (about a millimetre) is the scale."""


@dataclass(frozen=True, slots=True)
class BehaviourLimits:
    """Closed loop, by pairs of episodes with one seed each (exact one-sided McNemar test).

    alpha: significance below which a policy counts as worse. worse_by: a drop of the success rate
    that the test should find. power: with what probability it must be able to, or the gate is not
    decided.
    """

    alpha: float
    worse_by: float
    power: float


BEHAVIOUR_LIMITS = BehaviourLimits(alpha=0.05, worse_by=0.2, power=0.8)


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
