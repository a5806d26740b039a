"""A bundle and an engine as one thing that turns observations into actions."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.processor import ActionChunk, Observation, Processor
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.base import Backend, check_graph
from vla_align_ros.inference.pipeline import open_graphs

STAGES = ("prepare", "infer", "decode")


class Policy:
    """Prepares, infers and decodes; the node, the evaluation and the proof all come through here.

    One thread at a time may call it. As a context manager it closes its backend.

    Args:
        bundle: an opened bundle. backend: an open engine for its "policy" graph, owned from now on.
        clock: seconds, for the timings.

    Raises:
        BackendError: if the engine's tensors are not those of the bundle's processor.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        processor = bundle.processor
        if backend.inputs:
            check_graph(backend.inputs, processor.input_tensors(), "input", exact=True)
        if backend.outputs:
            check_graph(backend.outputs, processor.output_tensors(), "output", exact=False)
        self.bundle = bundle
        self.backend = backend
        self.last_timings_ms: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._clock = clock

    @classmethod
    def open(cls, bundle: Path | str | Bundle, backend: str = "onnx", threads: int = 1) -> Policy:
        """Open a bundle (checking every hash) and its graph on a backend by name.

        Raises:
            BundleError: if the bundle is refused. BackendError: if the backend is.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        engine = open_graphs(opened, backend, threads=threads)
        try:
            return cls(opened, engine)
        except BackendError:
            engine.close()
            raise

    @property
    def spec(self) -> PolicySpec:
        """Cameras, state and actions of the policy."""
        return self.processor.spec

    @property
    def precision(self) -> str:
        """What the policy is computed in, as the table of limits names it.

        The bundle's own, unless the backend computes a float32 graph in less, or runs engines.
        """
        stored = str(self.bundle.manifest["provenance"]["precision"])
        engines = getattr(self.backend, "engines", None)
        if engines is not None:
            return str(engines.precision)
        return str(getattr(self.backend, "precision", stored)) if stored == "fp32" else stored

    @property
    def processor(self) -> Processor:
        """The bundle's processor."""
        return self.bundle.processor

    @property
    def bundle_id(self) -> str:
        """The bundle's id, in hex."""
        return self.bundle.id

    def infer(self, observation: Observation) -> ActionChunk:
        """Plan a chunk of actions, and note the milliseconds of each stage in ``last_timings_ms``.

        Raises:
            ContractError: if the observation does not fit the policy. NonFiniteError: if an action
            is NaN or infinite. BackendError: if the engine fails.
        """
        start = self._clock()
        inputs = self.processor.prepare(observation)
        prepared = self._clock()
        outputs = self.backend.infer(inputs)
        inferred = self._clock()
        chunk = self.processor.decode(outputs, observation)
        marks = (start, prepared, inferred, self._clock())
        self.last_timings_ms = {
            stage: 1e3 * (after - before)
            for stage, before, after in zip(STAGES, marks, marks[1:], strict=False)
        }
        return chunk

    def warm_up(self, n: int = 3) -> None:
        """Run ``n`` times on the first golden sample, so that the first real call is not slow."""
        observation = next(iterate_observations(self.bundle.golden(), self.spec))
        for _ in range(n):
            self.infer(observation)

    def close(self) -> None:
        """Free the engine."""
        self.backend.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
