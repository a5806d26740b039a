"""All engines of a policy as one backend: one stream, fixed buffers, one CUDA graph in all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.engines import EngineSet
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.base import check_inputs
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.kernels import KernelCache
from vla_align_ros.inference.tensorrt.library import Library, get_logger
from vla_align_ros.inference.tensorrt.program import (
    Copy,
    acting_graphs,
    count_bytes,
    plan_program,
)
from vla_align_ros.inference.tensorrt.session import EngineSession

_log = logging.getLogger(__name__)


class TensorRTBackend:
    """Runs all graphs of a policy on one GPU; nothing but the outputs comes back.

    Memory is taken when it opens. The first inference warms the engines up; then one is recorded
    as a CUDA graph, and each later one is a copy into pinned memory, one launch, and a wait.

    Args:
        engines: that fit library and GPU. library: imported. cuda: the device, owned from now on.
        kernels: for TensorRT-RTX. cuda_graph: whether to record. place: the GPU and its driver, for
            people and for proofs.

    Raises:
        BackendError: if an engine cannot be loaded, bound or run.
    """

    def __init__(
        self,
        engines: EngineSet,
        library: Library,
        cuda: Cuda,
        *,
        kernels: KernelCache | None = None,
        cuda_graph: bool = True,
        place: str = "a GPU",
    ) -> None:
        self.name = library.name
        self.runs_on = f"{library.title} on {place}"
        self.engines = engines
        self._cuda = cuda
        self._kernels = kernels
        self._sessions: dict[str, EngineSession] = {}
        self._graph: Any = None
        self._closed = False
        self._in_use = threading.Lock()
        try:
            self._runtime: Any = library.module.Runtime(get_logger(library))
            for graph in acting_graphs(engines.facts["graphs"]):
                session = EngineSession(library, engines.engine_path(graph), graph)
                self._sessions[graph] = session
                session.open(self._runtime, kernels)
            self._prepare()
            self._warm_up(cuda_graph)
        except BaseException:
            self.close()
            raise

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What no graph gives to another: the processor's tensors."""
        return self._program.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The actions, and a token policy's tokens."""
        return self._program.outputs

    @property
    def replays(self) -> bool:
        """Whether an inference is one launch of a CUDA graph."""
        return self._graph is not None

    @property
    def device_bytes(self) -> int:
        """Device memory of tensors and scratch; weights are about as large as the engines."""
        return self._cuda.allocated_bytes

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the policy once; BackendError if the inputs do not fit or the device fails."""
        with self._in_use:
            if self._closed:
                raise BackendError("backend is closed", fix="open it again")
            check_inputs(inputs, self.inputs)
            self._cuda.make_current()
            for tensor in self.inputs:
                np.copyto(self._host[tensor.name], inputs[tensor.name])
            if self._graph is None:
                self._queue()
            else:
                self._cuda.launch_graph(self._graph)
            self._cuda.synchronize()
            return {tensor.name: self._host[tensor.name].copy() for tensor in self.outputs}

    def close(self) -> None:
        """Free the recording, the contexts, the engines and all memory, in this order.

        Waits for an inference that another thread has under way: it computes in that memory.
        """
        with self._in_use:
            if not self._closed:
                self._closed = True
                self._free()

    def _free(self) -> None:
        self._cuda.make_current()
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
            self._graph = None
        for session in self._sessions.values():
            session.close_context()
        if self._kernels is not None:
            self._kernels.close()
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._runtime = None
        self._cuda.close()

    def _prepare(self) -> None:
        """Plan the steps, take the memory, and bind every tensor to its place."""
        self._program = plan_program(
            {name: (session.inputs, session.outputs) for name, session in self._sessions.items()}
        )
        cuda, program = self._cuda, self._program
        self._address = {
            name: cuda.allocate(count_bytes(tensor)) for name, tensor in program.buffers.items()
        }
        self._host = {
            tensor.name: cuda.allocate_pinned(count_bytes(tensor))
            .view(np.dtype(tensor.dtype))
            .reshape([int(extent or 1) for extent in tensor.shape])
            for tensor in (*program.inputs, *program.outputs)
        }
        for name, values in program.constants.items():
            pinned = cuda.allocate_pinned(values.nbytes).view(values.dtype)
            np.copyto(pinned, values)
            cuda.copy_in(self._address[name], pinned)
        scratch_bytes = max(session.scratch_bytes for session in self._sessions.values())
        scratch = cuda.allocate(scratch_bytes)  # one for all: engines run one after another
        for session in self._sessions.values():
            session.bind(self._address, scratch, scratch_bytes)
        cuda.synchronize()

    def _warm_up(self, cuda_graph: bool) -> None:
        """Run once, so that nothing is made later; keep what was compiled; record a run."""
        for tensor in self.inputs:
            self._host[tensor.name].fill(0)
        self._queue()
        self._cuda.synchronize()
        if self._kernels is not None:
            self._kernels.save()
        if cuda_graph:
            self._record()

    def _record(self) -> None:
        """Record one inference; where that cannot be, run step by step and say why."""
        cuda, graph = self._cuda, None
        stuck = [n for n, s in self._sessions.items() if s.refuses_capture(cuda.stream)]
        try:
            if stuck:
                raise BackendError("engine cannot be recorded", got=stuck)
            graph = cuda.capture(self._queue)
            cuda.launch_graph(graph)
            cuda.synchronize()
        except BackendError as cause:
            _log.warning("no CUDA graph, each step is launched by itself: %s", cause)
            if graph is not None:
                cuda.destroy_graph(graph)
            return
        self._graph = graph

    def _queue(self) -> None:
        """Queue one inference, from pinned inputs to pinned outputs."""
        cuda, address = self._cuda, self._address
        for tensor in self._program.inputs:
            cuda.copy_in(address[tensor.name], self._host[tensor.name])
        for step in self._program.steps:
            if isinstance(step, Copy):
                target = address[step.target] + step.target_at
                cuda.copy(target, address[step.source] + step.source_at, step.size_bytes)
            else:
                self._sessions[step.graph].enqueue(cuda.stream)
        for tensor in self._program.outputs:
            cuda.copy_out(self._host[tensor.name], address[tensor.name])
