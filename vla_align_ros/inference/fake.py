"""A backend for tests of what surrounds a policy; it computes nothing and says so by its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError

Answer = Callable[[Mapping[str, npt.NDArray[Any]]], npt.ArrayLike]


class FakeBackend:
    """Answers with given actions, late or failing on demand. For tests; no name opens it.

    Args:
        actions: normalised, (H, 7) or (1, H, 7), or a function of the inputs that gives them.
        latency_s: to spend in each call. fail_after: calls that succeed before all others raise
            BackendError; None means that none fails. sleep: how to spend the latency.
    """

    name = "fake"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(
        self,
        actions: npt.ArrayLike | Answer,
        *,
        latency_s: float = 0.0,
        fail_after: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._answer: Answer = actions if callable(actions) else _give(np.array(actions))
        self._latency_s = latency_s
        self._fail_after = fail_after
        self._sleep = sleep
        self.calls: list[Mapping[str, npt.NDArray[Any]]] = []
        self.closed = False

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Record the inputs, wait, and give {"actions": float32 (1, H, 7)}."""
        if self.closed:
            raise BackendError("backend is closed", fix="open it again")
        self.calls.append(dict(inputs))
        if self._latency_s > 0.0:
            self._sleep(self._latency_s)
        if self._fail_after is not None and len(self.calls) > self._fail_after:
            raise BackendError(f"fake backend fails after {self._fail_after} calls, as asked")
        actions = np.asarray(self._answer(inputs), dtype=np.float32)
        return {"actions": actions if actions.ndim == 3 else actions[None]}

    def close(self) -> None:
        """Refuse further calls."""
        self.closed = True


def _give(actions: npt.NDArray[Any]) -> Answer:
    return lambda _: actions
