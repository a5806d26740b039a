"""Statistics of actions and states, and an exact pair of maps to and from a model's range.

Both directions read one set of offsets and scales, so no epsilon can differ between them. A
dimension without spread maps to 0 and back to its constant. Source of the 1 % and 99 % quantiles,
mapped to [-1, 1]: OpenVLA (arXiv 2406.09246, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.files import (
    read_json_object,
    readable_json,
    require_keys,
    write_durably,
)
from vla_align_ros.errors import NormalizationError

FloatArray = npt.NDArray[np.float64]

MODES = ("quantile", "mean_std", "identity")
MIN_RELATIVE_RANGE = 1e-9
"""A dimension whose spread is below this share of its magnitude (or of 1) counts as constant."""

_FIELDS = ("q01", "q99", "mean", "std", "min", "max")


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Per-dimension statistics of one key: float64 (D,) each, in the data's own units.

    ``mask`` (D,) bool: False marks a dimension that normalisation leaves as it is.

    Raises:
        NormalizationError: if shapes differ, a value is not finite, or q99 is below q01.
    """

    q01: FloatArray
    q99: FloatArray
    mean: FloatArray
    std: FloatArray
    min: FloatArray
    max: FloatArray
    mask: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name in (*_FIELDS, "mask"):
            object.__setattr__(self, name, _read_vector(getattr(self, name), name))
        shapes = {getattr(self, name).shape for name in (*_FIELDS, "mask")}
        if len(shapes) != 1:
            raise NormalizationError(
                "statistics differ in length", got=shapes, expected="one length"
            )
        if (self.q99 < self.q01).any() or (self.max < self.min).any() or (self.std < 0.0).any():
            raise NormalizationError(
                "statistics are out of order",
                got="an upper end below its lower",
                expected="q01 <= q99, min <= max, std >= 0",
            )

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.mask.size)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name).tolist() for name in (*_FIELDS, "mask")}

    @classmethod
    def from_dict(cls, data: object) -> Statistics:
        """Read the JSON form; NormalizationError if a key is missing or unknown."""
        if not isinstance(data, Mapping) or set(data) != {*_FIELDS, "mask"}:
            raise NormalizationError(
                "statistics have the wrong keys",
                got=_describe_keys(data),
                expected=sorted((*_FIELDS, "mask")),
                fix="compute them again from the data",
            )
        return cls(**data)


def compute_statistics(values: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> Statistics:
    """Compute the statistics of an (N, D) array, N >= 1; ``mask`` (D,) defaults to all True."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape or not np.isfinite(array).all():
        raise NormalizationError(
            "values have no statistics",
            got=f"shape {array.shape}",
            expected="finite numbers of shape (N, D), N and D from 1",
        )
    low, high = np.quantile(array, (0.01, 0.99), axis=0)
    return Statistics(
        q01=low,
        q99=high,
        mean=array.mean(axis=0),
        std=array.std(axis=0),
        min=array.min(axis=0),
        max=array.max(axis=0),
        mask=np.ones(array.shape[1], bool) if mask is None else np.asarray(mask),
    )


def save_statistics(path: Path, statistics: Mapping[str, Statistics]) -> None:
    """Write statistics by key ("action", "state") as JSON."""
    write_durably(path, readable_json({key: value.to_dict() for key, value in statistics.items()}))


def load_statistics(path: Path) -> dict[str, Statistics]:
    """Read statistics by key; NormalizationError if the file or a part of it cannot be used."""
    data = read_json_object(path, NormalizationError)
    return {key: Statistics.from_dict(value) for key, value in data.items()}


def select_statistics(statistics: Mapping[str, Statistics], key: str) -> Statistics:
    """Return the statistics of ``key``; NormalizationError, naming those there are, if missing."""
    if key not in statistics:
        raise NormalizationError(
            "statistics are missing",
            got=sorted(statistics),
            expected=f"the key {key!r}",
            fix="choose one of the keys, or compute statistics for this data",
        )
    return statistics[key]


@dataclass(frozen=True, slots=True, eq=False)
class Normalizer:
    """Maps values to a model's range and exactly back.

    Args:
        mode: "quantile" maps [q01, q99] to [-1, 1]; "mean_std" to mean 0 and deviation 1;
            "identity" changes nothing.
        statistics: of the values, in their own units.
        clip: in quantile mode, ``normalize`` clips to [-1, 1], as OpenVLA does. Values beyond the
            quantiles then come back as the quantile; pass False for an inverse over all numbers.
    """

    mode: str
    statistics: Statistics
    clip: bool = True
    _offset: FloatArray = field(init=False, repr=False)
    _scale: FloatArray = field(init=False, repr=False)
    _varies: npt.NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise NormalizationError(
                "normalisation mode is unknown", got=repr(self.mode), expected=" or ".join(MODES)
            )
        if not isinstance(self.clip, bool):
            raise NormalizationError(
                "clip is no truth value", got=repr(self.clip), expected="true or false"
            )
        values = self.statistics
        active = values.mask & (self.mode != "identity")
        if self.mode == "mean_std":
            centre, scale = values.mean, values.std
        else:
            # Halves first: the sum or the difference of two large ends must not overflow.
            centre, scale = values.q01 / 2 + values.q99 / 2, values.q99 / 2 - values.q01 / 2
        varies = scale > MIN_RELATIVE_RANGE * np.maximum(1.0, np.abs(centre))
        object.__setattr__(self, "_offset", np.where(active, centre, 0.0))
        object.__setattr__(self, "_scale", np.where(active & varies, scale, 1.0))
        object.__setattr__(self, "_varies", varies | ~active)

    def normalize(self, values: npt.ArrayLike) -> FloatArray:
        """Map (..., D) values in their own units to float64 of the model's range."""
        array = self._read(values)
        result = np.where(self._varies, (array - self._offset) / self._scale, 0.0)
        if self.clip and self.mode == "quantile":
            result = np.where(self.statistics.mask, np.clip(result, -1.0, 1.0), result)
        return result

    def denormalize(self, values: npt.ArrayLike) -> FloatArray:
        """Map (..., D) values of the model's range back to their own units; never clips."""
        return np.where(self._varies, self._read(values) * self._scale, 0.0) + self._offset

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form without the statistics, which have a file of their own."""
        return {"mode": self.mode, "clip": self.clip}

    @classmethod
    def from_dict(cls, data: object, statistics: Statistics) -> Normalizer:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        fields = require_keys(data, ("mode", "clip"), "normalisation")
        return cls(fields["mode"], statistics, fields["clip"])

    def _read(self, values: npt.ArrayLike) -> FloatArray:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] != self.statistics.dim:
            raise NormalizationError(
                "values do not fit the statistics",
                got=f"shape {array.shape}",
                expected=f"(..., {self.statistics.dim})",
                fix="use the statistics of the data that these values come from",
            )
        if not np.isfinite(array).all():
            raise NormalizationError(
                "values are not finite",
                got=np.array2string(array, threshold=16),
                expected="finite numbers",
            )
        return array


def _read_vector(value: object, name: str) -> npt.NDArray[Any]:
    dtype = np.bool_ if name == "mask" else np.float64
    try:
        source = np.asarray(value)
        array = source.astype(dtype)
    except (TypeError, ValueError, OverflowError) as cause:
        raise NormalizationError(
            f"statistic {name!r} cannot be read", got=value, expected="numbers"
        ) from cause
    kinds = "b" if name == "mask" else "fiu"
    if (
        array.ndim != 1
        or not array.size
        or source.dtype.kind not in kinds
        or not np.isfinite(array).all()
    ):
        raise NormalizationError(
            f"statistic {name!r} is wrong",
            got=repr(value),
            expected="a list of " + ("truth values" if name == "mask" else "finite numbers"),
        )
    array.flags.writeable = False
    return array


def _describe_keys(data: object) -> object:
    return sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
