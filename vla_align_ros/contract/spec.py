"""What a policy sees and does, frozen: the part of the contract that has a fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_align_ros.contract.files import canonical_json, require_keys
from vla_align_ros.errors import ContractError

ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
"""Order of an action: three metres, a rotation vector in radians, the gripper 0 to 1 (open)."""

ACTION_DIM = len(ACTION_NAMES)
EXECUTED_ACTIONS = 2
"""How many actions of a chunk are executed before the next observation, unless told otherwise.

In `evaluate`, in a bundle's gate of behaviour, and by the node: a policy runs as it was measured.
"""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FRAME = re.compile(r"[A-Za-z_][A-Za-z0-9_/]*")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype and shape of one input or output of a policy graph (None: any extent)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: object) -> TensorSpec:
        """Read the JSON form; ContractError if it is none."""
        fields = require_keys(data, ("name", "dtype", "shape"), "tensor")
        name, dtype, shape = fields["name"], fields["dtype"], fields["shape"]
        extents = shape if isinstance(shape, list) else [False]
        if not (isinstance(name, str) and isinstance(dtype, str)) or not all(
            extent is None or (type(extent) is int and extent >= 0) for extent in extents
        ):
            raise ContractError(
                "tensor cannot be read", got=dict(fields), expected="name, dtype and extents"
            )
        return cls(name, dtype, tuple(extents))


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """A camera by name, with the nominal size in pixels; other sizes are accepted and resized.

    Raises:
        ContractError: if the name is no lower-case identifier or a size is not positive.
    """

    name: str
    height: int
    width: int

    def __post_init__(self) -> None:
        _check_names((self.name,), "camera name")
        for label, value in (("height", self.height), ("width", self.width)):
            _check_count(value, f"{label} of camera {self.name!r} in pixels")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "height": self.height, "width": self.width}

    @classmethod
    def from_dict(cls, data: object) -> CameraSpec:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        return cls(**require_keys(data, ("name", "height", "width"), "camera"))


@dataclass(frozen=True, slots=True)
class StateSpec:
    """Names of the proprioceptive values, in order: metres, radians, gripper fraction open."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _check_names(self.names, "state names"))

    @property
    def dim(self) -> int:
        """Number of values."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"names": list(self.names)}

    @classmethod
    def from_dict(cls, data: object) -> StateSpec:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        return cls(**require_keys(data, ("names",), "state"))


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """Chunks of ``horizon`` end-effector deltas at ``rate_hz``.

    Translation in metres along the axes of ``frame``; rotation is a rotation vector in radians in
    the same axes, applied on the left (R' = exp(dr) R); the gripper is absolute, 0 shut to 1 open.
    ``committed``: how many actions from the observation on the policy can be told as decided, which
    its plan then goes on from; 0 for a policy that cannot.
    """

    frame: str
    rate_hz: float
    horizon: int
    names: tuple[str, ...] = ACTION_NAMES
    committed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.frame, str) or not _FRAME.fullmatch(self.frame):
            raise ContractError(
                "action frame is no frame name", got=repr(self.frame), expected="e.g. 'base_link'"
            )
        rate = self.rate_hz
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 1e-3 <= rate <= 1e4:
            raise ContractError(
                "action rate is no rate", got=str(rate)[:24], expected="0.001 to 10000 Hz"
            )
        object.__setattr__(self, "rate_hz", float(rate))
        _check_count(self.horizon, "action horizon in steps")
        object.__setattr__(self, "names", _check_names(self.names, "action names"))
        if self.names != ACTION_NAMES:
            raise ContractError(
                "action representation is unknown", got=self.names, expected=ACTION_NAMES
            )
        if type(self.committed) is not int or not 0 <= self.committed < self.horizon:
            raise ContractError(
                "count of committed actions cannot be used",
                got=repr(self.committed),
                expected=f"0 to {self.horizon - 1}: fewer than the horizon",
            )

    @property
    def dim(self) -> int:
        """Number of values in one action."""
        return len(self.names)

    @property
    def period_s(self) -> float:
        """Time for which one action holds, in seconds."""
        return 1.0 / self.rate_hz

    @property
    def replan_period_s(self) -> float:
        """Time from one planned observation to the next as the policy is measured, in seconds.

        At most half a chunk, so that the next one is there before the last one ends; 0, which is
        every observation, where a chunk is one action.
        """
        return min(EXECUTED_ACTIONS, self.horizon // 2) * self.period_s

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; "committed" is in it only where it is not 0."""
        return {
            "frame": self.frame,
            "rate_hz": self.rate_hz,
            "horizon": self.horizon,
            "names": list(self.names),
            **({"committed": self.committed} if self.committed else {}),
        }

    @classmethod
    def from_dict(cls, data: object) -> ActionSpec:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        names = ["frame", "rate_hz", "horizon", "names"]
        if isinstance(data, Mapping) and "committed" in data:
            names.append("committed")
        return cls(**require_keys(data, names, "action"))


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Everything that a robot must offer to a policy, and accept from it."""

    cameras: tuple[CameraSpec, ...]
    state: StateSpec | None
    action: ActionSpec

    def __post_init__(self) -> None:
        cameras = tuple(self.cameras)
        if not cameras or not all(isinstance(camera, CameraSpec) for camera in cameras):
            raise ContractError(
                "policy has no cameras", got=cameras, expected="one or more CameraSpec"
            )
        _check_names(tuple(camera.name for camera in cameras), "camera names")
        object.__setattr__(self, "cameras", cameras)
        if self.state is not None and not isinstance(self.state, StateSpec):
            raise ContractError(
                "policy state is wrong", got=self.state, expected="a StateSpec or None"
            )
        if not isinstance(self.action, ActionSpec):
            raise ContractError("policy action is wrong", got=self.action, expected="an ActionSpec")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "cameras": [camera.to_dict() for camera in self.cameras],
            "state": None if self.state is None else self.state.to_dict(),
            "action": self.action.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: object) -> PolicySpec:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        fields = require_keys(data, ("cameras", "state", "action"), "policy spec")
        if not isinstance(fields["cameras"], Sequence) or isinstance(fields["cameras"], str):
            raise ContractError(
                "cameras is no list", got=fields["cameras"], expected="a list of cameras"
            )
        return cls(
            cameras=tuple(CameraSpec.from_dict(camera) for camera in fields["cameras"]),
            state=None if fields["state"] is None else StateSpec.from_dict(fields["state"]),
            action=ActionSpec.from_dict(fields["action"]),
        )

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the canonical JSON form."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()


def _check_names(names: object, what: str) -> tuple[str, ...]:
    given = tuple(names) if isinstance(names, (tuple, list)) else ()
    valid = all(isinstance(name, str) and _NAME.fullmatch(name) for name in given)
    if not given or not valid or len(set(given)) != len(given):
        raise ContractError(
            f"{what} cannot be used",
            got=repr(names),
            expected="distinct lower-case identifiers such as 'front' or 'wrist_1'",
        )
    return given


def _check_count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ContractError(
            f"{what} is not positive", got=repr(value), expected="a whole number from 1"
        )
