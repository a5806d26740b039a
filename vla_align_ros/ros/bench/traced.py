"""policy_node itself, writing down when its timer ran and what its commands rest on."""

from __future__ import annotations

import time
from typing import Any

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.ros.bench.tracing import Trace
from vla_align_ros.ros.messages import stamp_to_s
from vla_align_ros.ros.policy_node import PolicyNode
from vla_align_ros.ros.running import run_node


class TracedNode(PolicyNode):
    """The policy node; only its calls are noted, nothing that it does is changed."""

    def __init__(self) -> None:
        self._trace = Trace()
        self._by_timer = True
        self._seen_plan = 0
        super().__init__()

    def destroy_node(self) -> None:
        """Write the trace, then end as ever."""
        runner = self._runner
        self._trace.frames = 0 if runner is None else runner.metrics.counted("frames_received")
        self._trace.write()
        super().destroy_node()

    def _configure(self, parameters: Any) -> None:
        super()._configure(parameters)
        arm = self._arm
        assert arm is not None
        send = arm.send

        def traced(command: Any, stamp: Any) -> None:
            send(command, stamp)
            if command.action.plan != self._seen_plan:
                self._seen_plan = command.action.plan
                self._trace.first(command.action.observation_stamp_s, stamp_to_s(stamp))

        arm.send = traced  # type: ignore[method-assign]

    def _on_chunk(self, chunk: ActionChunk) -> None:
        if self._policy is not None:
            self._trace.infer_s[chunk.stamp_s] = 1e-3 * self._policy.last_timings_ms["infer"]
        super()._on_chunk(chunk)

    def _on_plan(self) -> None:
        self._trace.reset()
        self._by_timer = False
        super()._on_plan()
        self._by_timer = True

    def _on_tick(self) -> None:
        if self._by_timer:
            self._trace.tick()
        start_s = time.thread_time()
        super()._on_tick()
        self._trace.work_ms.append(1e3 * (time.thread_time() - start_s))


def main(arguments: list[str] | None = None) -> None:
    """Run the node until it is told to stop."""
    run_node(
        TracedNode, finished=lambda node: node.reporter.state == "finalized", arguments=arguments
    )


if __name__ == "__main__":
    main()
