"""What a bundle knows of the scenes that its policy was trained on, to tell a strange one later."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.npz import Layout, count_bytes, read_arrays, read_layout
from vla_align_ros.contract.prompt import clean_instruction
from vla_align_ros.errors import BundleError, ContractError

SIGHT_NAME = "sight.npz"
GRAPH = "sight"
TOKENS = "visual_tokens"
ATTENTION = "attention"
MAX_SIGHT_BYTES = 1 << 28  # a covariance of 5792 visual features; a language model of 7B has 4096

_FIELDS = {
    "mean": 1,
    "covariance": 2,
    "threshold": 0,
    "quantile": 0,
    "fitted": 0,
    "calibrated": 0,
    "neutral": 0,
    "place": 0,
}
_WEIGHTS = "weights"  # not in files of before it was kept, nor in a bundle, which hashes its graphs

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SightStatistics:
    """A Gaussian of mean visual tokens over the training scenes, and where the unfamiliar begins.

    The tokens of all cameras of a picture, asked with the neutral instruction, are averaged to one
    vector; its Mahalanobis distance to the Gaussian is the scene's. `threshold` is the distance
    that the share `quantile` of held-out scenes of the training distribution stay within.

    mean (D,). covariance (D, D), symmetric and positive definite. neutral: the instruction that
    asks for nothing. place: where in the network the tokens are read. fitted, calibrated: how many
    scenes each of them saw. weights: names the network that saw them; empty where nobody said.

    Raises ContractError on values that are none of this.
    """

    mean: Array
    covariance: Array
    threshold: float
    quantile: float
    neutral: str
    place: str
    fitted: int
    calibrated: int
    weights: str = ""
    _factor: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mean = np.asarray(self.mean, dtype=np.float64)
        covariance = np.asarray(self.covariance, dtype=np.float64)
        if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean),) * 2:
            raise _wrong("shapes", f"{mean.shape}, {covariance.shape}", "(D,) and (D, D)")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise _wrong("numbers", "some that are not finite", "finite ones")
        if np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max():
            raise _wrong("covariance", "one that is not symmetric", "a symmetric matrix")
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise _wrong("threshold", self.threshold, "a finite number above 0")
        if not 0.0 < self.quantile <= 1.0:
            raise _wrong("quantile", self.quantile, "above 0, at most 1")
        clean_instruction(self.neutral)
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError as cause:
            raise _wrong("covariance", cause, "a positive definite matrix") from cause
        for name, value in (("mean", mean), ("covariance", covariance), ("_factor", factor)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    @property
    def width(self) -> int:
        """Numbers of a visual token."""
        return len(self.mean)

    def distance(self, tokens: npt.ArrayLike) -> float:
        """Mahalanobis distance of one scene's visual tokens (N, D).

        Raises ContractError if they are of another width.
        """
        values = np.asarray(tokens, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != self.width:
            raise _wrong("tokens", values.shape, f"(N, {self.width})")
        return float(self.distances(values.mean(axis=0, keepdims=True))[0])

    def distances(self, means: npt.ArrayLike) -> Array:
        """The same of mean tokens (n, D): (n,)."""
        offset = np.asarray(means, dtype=np.float64) - self.mean
        whitened = np.linalg.solve(self._factor, offset.T)
        distances: Array = np.sqrt((whitened**2).sum(axis=0))
        return distances


def pack_sight(statistics: SightStatistics) -> bytes:
    """Return the bytes of sight.npz, the same for the same statistics; nothing is pickled."""
    buffer = io.BytesIO()
    names = sorted([*_FIELDS, _WEIGHTS]) if statistics.weights else sorted(_FIELDS)
    arrays: dict[str, Any] = {name: np.asarray(getattr(statistics, name)) for name in names}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def check_sight_file(path: Path) -> None:
    """Check the headers of sight.npz, before anything is unpacked; BundleError as `read_sight`."""
    try:
        _check_layout(read_layout(path))
    except Exception as cause:  # hostile bytes make these parsers raise nearly anything
        raise _refuse(cause) from cause


def read_sight(path: Path) -> SightStatistics:
    """Read sight.npz; BundleError if it needs pickle, is too large or is no such file."""
    try:
        _check_layout(read_layout(path))
        arrays: Mapping[str, npt.NDArray[Any]] = read_arrays(path)
        return SightStatistics(
            mean=arrays["mean"],
            covariance=arrays["covariance"],
            threshold=float(arrays["threshold"]),
            quantile=float(arrays["quantile"]),
            neutral=str(arrays["neutral"]),
            place=str(arrays["place"]),
            fitted=int(arrays["fitted"]),
            calibrated=int(arrays["calibrated"]),
            weights=str(arrays.get(_WEIGHTS, "")),
        )
    except Exception as cause:  # as above
        raise _refuse(cause) from cause


def _check_layout(layout: Layout) -> None:
    if set(layout) - {_WEIGHTS} != set(_FIELDS):
        raise ValueError(f"arrays {sorted(layout)}")
    if any(len(layout[name][0]) != _FIELDS.get(name, 0) for name in layout):
        raise ValueError("arrays of other dimensions")
    if layout["covariance"][0] != layout["mean"][0] * 2:
        raise ValueError(
            f"a covariance of {layout['covariance'][0]}, a mean of {layout['mean'][0]}"
        )
    if count_bytes(layout) > MAX_SIGHT_BYTES:
        raise ValueError(f"{count_bytes(layout)} bytes, {MAX_SIGHT_BYTES} at most")


def _refuse(cause: Exception) -> BundleError:
    return BundleError(
        "statistics of sight cannot be read",
        got=cause,
        expected=f"an .npz file of plain arrays: {', '.join(sorted(_FIELDS))}",
        fix="fit and export them again: vla-align sight fit, vla-align export",
    )


def _wrong(what: str, got: object, expected: str) -> ContractError:
    return ContractError(f"statistics of sight have wrong {what}", got=got, expected=expected)
