"""Looks at what the policy looks at, off its critical path: attention, and familiarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.sight import ATTENTION, GRAPH, TOKENS, SightStatistics
from vla_align_ros.errors import BundleError, NonFiniteError
from vla_align_ros.inference.base import check_graph, open_backend
from vla_align_ros.runtime.observing import Sight
from vla_align_ros.runtime.worker import LatestWorker

NO_GRAPH = "the bundle has no sight graph; vla-align sight fit, then export, adds one"
NICE = 10  # the policy's inference comes first
STOP_WORKER_S = 2.0
LATE_PERIODS = 3.0
LEAST_LATE_S = 2.0

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SightReading:
    """One look: the scene's distance over its threshold, and where the words look.

    `maps` holds, by camera, a (g, g) map of the model's picture: the last prompt token's attention
    over the neutral prompt's (above 1 is where these words look more); None if nobody asked.
    """

    observation: Observation
    distance: float
    threshold: float
    maps: Mapping[str, Map] | None = None

    @property
    def unfamiliar(self) -> bool:
        """Whether the scene is further off than the threshold."""
        return self.distance > self.threshold


class SightGraph:
    """The bundle's graph "sight", on ONNX Runtime whatever the policy runs on; for one thread.

    Raises BundleError if the bundle has none, BackendError if it is not what it should be.
    """

    def __init__(self, bundle: Bundle) -> None:
        statistics = bundle.sight()
        if statistics is None:
            raise BundleError("there is no sight at run time", got=NO_GRAPH)
        self.statistics: SightStatistics = statistics
        self._processor = bundle.processor
        self._cameras = [camera.name for camera in bundle.spec.cameras]
        self._engine = open_backend("onnx", bundle.graph_path(GRAPH), threads=1)
        check_graph(self._engine.inputs, self._processor.input_tensors(), "input", exact=True)

    @property
    def reads_state(self) -> bool:
        """Whether an observation must have the robot's state."""
        return self._processor.spec.state is not None

    def look(self, observation: Observation, *, attention: bool = False) -> SightReading:
        """Look at one observation; with `attention` the graph runs twice.

        Raises NonFiniteError where the graph answers NaN or infinity.
        """
        neutral = self._run(replace(observation, instruction=self.statistics.neutral))
        distance = self.statistics.distance(neutral[TOKENS][0])
        maps = None
        if attention:
            asked = self._run(observation)
            maps = self._split(relate(asked[ATTENTION][0], neutral[ATTENTION][0]))
        return SightReading(observation, distance, self.statistics.threshold, maps)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _run(self, observation: Observation) -> Mapping[str, npt.NDArray[np.float32]]:
        outputs = self._engine.infer(self._processor.prepare(observation))
        for name in (TOKENS, ATTENTION):
            if not np.isfinite(outputs[name]).all():
                raise NonFiniteError(
                    "the sight graph answers no number", got=name, expected="finite values"
                )
        return outputs

    def _split(self, relative: npt.NDArray[np.float32]) -> dict[str, Map]:
        """Maps by camera of the weights (cameras * g * g,)."""
        side = round((len(relative) / len(self._cameras)) ** 0.5)
        return dict(zip(self._cameras, relative.reshape(-1, side, side), strict=True))


def relate(asked: npt.ArrayLike, neutral: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Attention (N,) over the neutral prompt's (N,), each first divided by its own sum.

    A thousandth of an even spread is added to both, so that no ratio explodes over what nobody
    looks at.
    """
    ask, base = (np.asarray(values, dtype=np.float64) for values in (asked, neutral))
    floor = 1e-3 / len(base)
    shares = [values / max(float(values.sum()), 1e-38) + floor for values in (ask, base)]
    return np.asarray(shares[0] / shares[1], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Wants:
    """What somebody wants to see now; nothing wanted costs nothing."""

    familiarity: bool = False
    attention: bool = False


class SightLoop:
    """Reads sights in a thread of its own, a few a second at most, and only if somebody wants it.

    The graph is opened, and the thread started, at the first sight that is wanted. `offer`, `judge`
    and the rest are called by the runner's thread; `on_reading(reading)` and `on_error(error)` come
    from the loop's. `insist` is whether motion needs a familiar scene (see `explain_strange`).
    """

    def __init__(
        self,
        open_graph: Callable[[], SightGraph],
        wants: Callable[[], Wants],
        *,
        period_s: float,
        steady: Callable[[], float],
        insist: bool = False,
        on_reading: Callable[[SightReading], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.insist = insist
        self.errors = 0
        self.readings = 0
        self._open_graph = open_graph
        self._wants = wants
        self._period_s = period_s
        self._steady = steady
        self._on_reading = on_reading
        self._on_error = on_error
        self._graph: SightGraph | None = None
        self._worker: LatestWorker[tuple[Sight, str | None, Wants]] | None = None
        self._newest: tuple[SightReading, float] | None = None
        self._offered_s = float("-inf")
        self._since_s = steady()
        self._closed = False

    @property
    def newest(self) -> SightReading | None:
        """The last reading, if it is not older than a few periods."""
        found = self._find()
        if found is None or self._steady() - found[1] > self.late_s:
            return None
        return found[0]

    @property
    def late_s(self) -> float:
        """When a reading is no longer believed."""
        return max(LATE_PERIODS * self._period_s, LEAST_LATE_S)

    def offer(self, sight: Sight, instruction: str | None) -> None:
        """Take a sight if one is due and wanted; at once and cheaply otherwise."""
        now_s = self._steady()
        if now_s - self._offered_s < self._period_s:
            return
        wants = self._wants()
        if not (wants.familiarity or wants.attention):
            return
        self._offered_s = now_s
        if self._worker is None:
            self._worker = LatestWorker(self._read, name="sight", nice=NICE)
            self._worker.start()
        self._worker.put((sight, instruction, wants))

    def clear(self) -> None:
        """Forget what was read: what is seen from now on counts."""
        self._since_s = self._steady()
        self._offered_s = float("-inf")

    def explain_strange(self) -> str | None:
        """Why the scene must not be acted in; None if it is familiar, or if nobody insists."""
        if not self.insist:
            return None
        now_s, found = self._steady(), self._find()
        if found is None:
            return f"not measured for {now_s - self._since_s:.1f} s"
        if now_s - found[1] > self.late_s:
            return f"not measured for {now_s - found[1]:.1f} s"
        reading = found[0]
        if not reading.unfamiliar:
            return None
        return f"distance {reading.distance:.2f}, familiar up to {reading.threshold:.2f}"

    def close(self) -> None:
        """End the thread and free the graph, which a thread that hangs keeps."""
        self._closed = True
        if self._worker is not None and not self._worker.stop(STOP_WORKER_S):
            return
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _find(self) -> tuple[SightReading, float] | None:
        """The last reading and when its picture came, if that was not before `clear`."""
        found = self._newest
        return found if found is not None and found[1] >= self._since_s else None

    def _read(self, item: tuple[Sight, str | None, Wants]) -> None:
        """Read one sight, in the loop's thread; never raises."""
        sight, instruction, wants = item
        try:
            if self._graph is None:
                self._graph = self._open_graph()
            observation = Observation(
                images={name: load() for name, load in sight.loads.items()},
                state=sight.state,
                instruction=instruction or self._graph.statistics.neutral,
                stamp_s=sight.stamp_s,
            )
            attention = wants.attention and instruction is not None
            reading = self._graph.look(observation, attention=attention)
            self._newest = (reading, sight.arrived_s)
            self.readings += 1
            if self._on_reading is not None and not self._closed:
                self._on_reading(reading)
        except BaseException as error:  # sight is for people: its failure must not stop inference
            self.errors += 1
            if self._on_error is not None:
                self._on_error(error)
