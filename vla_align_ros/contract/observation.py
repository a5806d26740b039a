"""What goes into a policy and what comes out, checked once so that nobody checks again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.images import UInt8Array, check_image
from vla_align_ros.contract.spec import ACTION_DIM
from vla_align_ros.errors import ContractError, NonFiniteError


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What a robot sees at one moment.

    Args:
        images: by camera name, (H, W, 3) uint8 RGB. A contiguous picture is viewed, not copied,
            so its owner must not write to it; others are copied.
        state: (D,) numbers as ``StateSpec`` names them, kept as float32; None if there is none.
        instruction: the operator's words, as given.
        stamp_s: when the picture was taken, in seconds.
        committed: (K, 7) actions, as a chunk has them, that will be executed from the stamp on
            whatever is planned now, for a policy that takes such; None: nothing is decided.

    Raises:
        ContractError: on another type or shape, or a value that is not finite.
    """

    images: Mapping[str, UInt8Array]
    state: npt.NDArray[np.float32] | None
    instruction: str
    stamp_s: float
    committed: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, Mapping) or not self.images:
            raise ContractError(
                "observation has no images",
                got=type(self.images).__name__,
                expected="pictures by camera name",
            )
        images = {
            str(name): _freeze(check_image(image).view()) for name, image in self.images.items()
        }
        object.__setattr__(self, "images", MappingProxyType(images))
        if self.state is not None:
            object.__setattr__(self, "state", _read_state(self.state))
        if not isinstance(self.instruction, str):
            raise ContractError(
                "instruction is no text", got=type(self.instruction).__name__, expected="str"
            )
        object.__setattr__(self, "stamp_s", _read_stamp(self.stamp_s))
        if self.committed is not None:
            object.__setattr__(self, "committed", _read_committed(self.committed))


@dataclass(frozen=True, slots=True, eq=False)
class ActionChunk:
    """A policy's answer: actions to perform one after another, from ``stamp_s`` on.

    Args:
        actions: (H, 7) as ``ActionSpec`` orders them, metres, radians, gripper fraction; a
            read-only float64 copy.
        period_s: how long each action holds. stamp_s: of the observation that led to them.
        instruction: for which they were made, as the observation gave it.

    Raises:
        ContractError: on another shape. NonFiniteError: on a value that is not finite.
    """

    actions: npt.NDArray[np.float64]
    period_s: float
    stamp_s: float
    instruction: str

    def __post_init__(self) -> None:
        actions = _read_numbers(self.actions, np.float64, "action chunk", f"(H, {ACTION_DIM})")
        if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != ACTION_DIM:
            raise ContractError(
                "action chunk has the wrong shape", got=actions.shape, expected=f"(H, {ACTION_DIM})"
            )
        if not np.isfinite(actions).all():
            raise NonFiniteError(
                "action chunk is not finite",
                got=np.array2string(actions, threshold=16),
                expected="finite numbers",
                fix="do not execute it",
            )
        object.__setattr__(self, "actions", _freeze(actions))
        if not 0.0 < self.period_s < math.inf:
            raise ContractError(
                "action period is not positive", got=self.period_s, expected="seconds above 0"
            )
        object.__setattr__(self, "stamp_s", _read_stamp(self.stamp_s))

    @property
    def horizon(self) -> int:
        """Number of actions."""
        return int(self.actions.shape[0])


def _read_numbers(values: npt.ArrayLike, kind: type, what: str, shape: str) -> npt.NDArray[Any]:
    try:
        return np.array(values, dtype=kind)
    except (TypeError, ValueError) as cause:  # words, or rows of different lengths
        raise ContractError(
            f"{what} is not numeric", got=cause, expected=f"numbers of shape {shape}"
        ) from cause


def _read_state(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    state: npt.NDArray[np.float32] = _read_numbers(values, np.float32, "state", "(D,)")
    if state.ndim != 1 or not np.isfinite(state).all():
        raise ContractError(
            "state is wrong",
            got=np.array2string(state, threshold=16),
            expected="finite numbers of shape (D,)",
        )
    state.flags.writeable = False
    return state


def _read_committed(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    shape = f"(K, {ACTION_DIM})"
    actions: npt.NDArray[np.float64] = _read_numbers(values, np.float64, "commitment", shape)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not np.isfinite(actions).all():
        raise ContractError(
            "committed actions are wrong",
            got=np.array2string(actions, threshold=16),
            expected=f"finite numbers of shape {shape}",
        )
    actions.flags.writeable = False
    return actions


def _read_stamp(stamp_s: float) -> float:
    if not isinstance(stamp_s, (int, float)) or not math.isfinite(stamp_s):
        raise ContractError("stamp is no time", got=repr(stamp_s), expected="finite seconds")
    return float(stamp_s)


def _freeze(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    array.flags.writeable = False
    return array
