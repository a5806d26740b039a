"""Plans in a thread of its own: frames in, chunks into the buffer, faults by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import ConfigurationError, NonFiniteError
from vla_align_ros.runtime.chunks import ChunkBuffer
from vla_align_ros.runtime.metrics import Metrics
from vla_align_ros.runtime.observing import Sight
from vla_align_ros.runtime.stops import Hold, Reason
from vla_align_ros.runtime.strategies import count_committed
from vla_align_ros.runtime.worker import LatestWorker

STOP_WORKER_S = 2.0
DELAYS = 10  # as many of the last ones tell how long the next plan may take (arXiv 2506.07339)
DETAIL_CHARACTERS = 200


class PolicyLike(Protocol):
    """What running a policy needs of it; `runtime.policy.Policy` is one."""

    @property
    def spec(self) -> PolicySpec:
        """Cameras, state and actions of the policy."""
        ...

    @property
    def last_timings_ms(self) -> Mapping[str, float]:
        """Milliseconds of prepare, infer and decode in the last call."""
        ...

    def infer(self, observation: Observation) -> ActionChunk:
        """Plan a chunk of actions."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """A sight on its way to inference, with the instruction of its instant.

    It may wait `patience_s` for the plan before it to be finished; after that a newer sight is
    worth more. `turn` is the buffer's (see `ChunkBuffer.turn`) when it was seen.
    """

    sight: Sight
    instruction: str
    patience_s: float = float("inf")
    turn: int = 0


class Planner:
    """Runs the policy on the newest frame only; one worker thread from `start` to `stop`.

    `fault` is what went wrong since the last good chunk, None if nothing did. Callbacks run in the
    worker thread: `on_chunk(chunk)` for each one that the buffer accepted, `on_fault(hold, error)`.
    """

    def __init__(
        self,
        policy: PolicyLike,
        buffer: ChunkBuffer,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        steady: Callable[[], float],
        on_chunk: Callable[[ActionChunk], None] | None = None,
        on_fault: Callable[[Hold, BaseException], None] | None = None,
    ) -> None:
        self.fault: Hold | None = None
        self.begun: tuple[int, float] | None = None
        """Turn and stamp of the sight that was last planned on."""
        self._policy = policy
        self._buffer = buffer
        self._metrics = metrics
        self._clock = clock
        self._steady = steady
        self._on_chunk = on_chunk
        self._on_fault = on_fault
        self._delays_s: deque[float] = deque(maxlen=DELAYS)
        self._worker: LatestWorker[Frame] | None = None
        self._running = False

    @property
    def alive(self) -> bool:
        """Whether the thread still runs: true after `stop` only while inference does not return."""
        return self._worker is not None and self._worker.alive

    def start(self) -> None:
        """Start the thread; ConfigurationError while a call of the last one has not returned."""
        if self.alive:
            raise ConfigurationError(
                "an inference of the last activation has not returned",
                got="a busy inference thread",
                expected="none",
                fix="wait for it, or restart the node if the backend hangs",
            )
        self.fault = None
        self._worker = LatestWorker(self._plan)
        self._running = True
        self._worker.start()

    def stop(self) -> bool:
        """End the thread; False if inference does not return: its result will be discarded."""
        self._running = False
        self.fault = None
        return self._worker is None or self._worker.stop(STOP_WORKER_S)

    def submit(self, frame: Frame) -> None:
        """Offer a frame; it replaces one that still waits."""
        if self._worker is not None and self._running:
            if not self._worker.busy:  # what it waits for now is the processor alone
                frame = replace(frame, patience_s=float("inf"))
            replaced = self._worker.put(frame)
            self._metrics.count("frames_replaced", by=int(replaced))

    def drop(self) -> None:
        """Discard a frame that still waits."""
        if self._worker is not None:
            self._worker.drop()

    def _plan(self, frame: Frame) -> None:
        """Plan on one frame, in the worker thread; never raises."""
        sight = frame.sight
        waited_s = self._steady() - sight.arrived_s
        if waited_s > frame.patience_s:
            self._metrics.count("frames_left")
            return
        self.begun = frame.turn, sight.stamp_s
        self._metrics.observe_ms("wait", 1e3 * waited_s)
        try:
            observation = Observation(
                images={name: load() for name, load in sight.loads.items()},
                state=sight.state,
                instruction=frame.instruction,
                stamp_s=sight.stamp_s,
                committed=self._commit(sight.stamp_s),
            )
            told = 0 if observation.committed is None else len(observation.committed)
            chunk = self._policy.infer(observation)
            for stage, value_ms in self._policy.last_timings_ms.items():
                self._metrics.observe_ms(stage, value_ms)
            self._metrics.count("inference_count")
            if not self._running:
                return
            self.fault = None
            arrived_s = self._clock()
            self._delays_s.append(arrived_s - chunk.stamp_s)
            accepted = self._buffer.add(chunk, arrived_s, turn=frame.turn, told=told)
            self._metrics.count("plans_refused", by=int(not accepted))
            if accepted and self._on_chunk is not None:
                self._on_chunk(chunk)
        except BaseException as error:  # whatever is raised holds the arm, a panic of Rust's too
            self._fail(error)

    def _commit(self, stamp_s: float) -> NDArray[np.float64] | None:
        """What will be executed until the plan arrives, by the longest of the last delays."""
        longest_s = max(self._delays_s, default=0.0)
        count = count_committed(longest_s, self._policy.spec.action)
        return self._buffer.commit(stamp_s, count) if count else None

    def _fail(self, error: BaseException) -> None:
        self._metrics.count("inference_errors")
        if not self._running:
            return
        bad_values = isinstance(error, NonFiniteError)
        detail = " ".join((str(error) or type(error).__name__).split())[:DETAIL_CHARACTERS]
        hold = Hold(Reason.NON_FINITE if bad_values else Reason.INFERENCE_ERROR, detail)
        self.fault = hold
        self._buffer.drop()
        if self._on_fault is not None:
            self._on_fault(hold, error)
