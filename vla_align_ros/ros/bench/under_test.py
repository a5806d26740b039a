"""policy_node itself, with an engine and an executor that can be told to fail."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.clock import Clock, ClockType

from vla_align_ros.inference.base import BACKENDS, open_backend
from vla_align_ros.ros.bench.control import Control
from vla_align_ros.ros.policy_node import PolicyNode
from vla_align_ros.ros.running import run_node

ENGINE = "faulty_onnx"
POLL_S = 0.02
STARVED_S = 1.0


class FaultyOnnx:
    """The ONNX engine, which computes as ever and then does what the control file says.

    Words: `hang` (does not return until the word changes), `raise`, `nan`, `absurd` (a million
    times too large), `crash` (the process aborts, as native code that fails does).
    """

    name = ENGINE

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._engine = open_backend("onnx", path, threads=threads)
        self.inputs, self.outputs = self._engine.inputs, self._engine.outputs
        self._control = Control.from_environment()

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph, then fail as asked."""
        outputs = self._engine.infer(inputs)
        word = self._control.get()
        while word == "hang":
            time.sleep(POLL_S)
            word = self._control.get()
        if word == "raise":
            raise RuntimeError("the engine failed, as the measurement asked")
        if word == "crash":
            os.abort()
        if word in ("nan", "absurd"):
            factor = np.float32(np.nan if word == "nan" else 1e6)
            outputs = {name: values * factor for name, values in outputs.items()}
        return outputs

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


class NodeUnderTest(PolicyNode):
    """The policy node with one more timer, which blocks the executor on the word `starve`."""

    def __init__(self) -> None:
        super().__init__()
        self._control = Control.from_environment()
        self.create_timer(POLL_S, self._on_control, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_control(self) -> None:
        if self._control.get() == "starve":
            self._control.set("starving")
            time.sleep(STARVED_S)


def main(arguments: list[str] | None = None) -> None:
    """Run the node until it is told to stop."""
    BACKENDS[ENGINE] = "vla_align_ros.ros.bench.under_test:FaultyOnnx"
    run_node(
        NodeUnderTest,
        finished=lambda node: node.reporter.state == "finalized",
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
