"""All engines of a policy as one backend: one stream, fixed buffers, one CUDA graph in all."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import EngineSet, build_command
from vla_align_ros.contract.manifest import MANIFEST_NAME
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.base import check_inputs
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.device import Device, describe_device
from vla_align_ros.inference.tensorrt.kernels import KernelCache, default_folder
from vla_align_ros.inference.tensorrt.library import (
    RTX,
    TENSORRT,
    Library,
    find_library,
    get_logger,
)
from vla_align_ros.inference.tensorrt.program import (
    Copy,
    acting_graphs,
    count_bytes,
    plan_program,
)
from vla_align_ros.inference.tensorrt.session import EngineSession

_log = logging.getLogger(__name__)


def open_engines(
    bundle: Bundle,
    library: str,
    *,
    device: int = 0,
    cuda_graph: bool = True,
    kernels: Path | None = None,
    threads: int = 1,
) -> TensorRTBackend:
    """Open a bundle's engines for the GPU of this machine, warmed up.

    Args:
        bundle: opened. library: "tensorrt" or "tensorrt_rtx". device: index of the GPU.
        cuda_graph: whether to record an inference once and replay it. kernels: folder where
            TensorRT-RTX keeps what it compiles, by default the user's cache. threads: of no use
            here; taken because every backend is given it.

    Raises:
        BackendError: if there is no GPU or library, or the engines were built for another GPU, by
            another library or version. BundleError: if there are no engines, or they are damaged.
            Each names the command that mends it.
    """
    loaded = find_library(library)
    gpu = describe_device(device)
    engines = bundle.engine(gpu.architecture)
    check_fit(engines, loaded, gpu)
    cache = None
    if loaded.compiles_at_load:
        cache = KernelCache((kernels or default_folder()) / _name_kernels(engines))
    return TensorRTBackend(engines, loaded, Cuda(device), kernels=cache, cuda_graph=cuda_graph)


def _name_kernels(engines: EngineSet) -> str:
    """Return a name for what the engines themselves are; a proof that is added changes nothing."""
    graphs = engines.facts["graphs"]
    sums = "".join(graphs[name]["sha256"] for name in sorted(graphs))
    digest = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return f"{digest}-{engines.facts['library_version']}-{engines.target}"


def check_fit(engines: EngineSet, library: Library, device: Device) -> None:
    """Refuse engines of another library, version or GPU; BackendError names the command."""
    facts = engines.facts
    bundle = engines.path.parent.parent
    again = "build them again: " + build_command(bundle, device.architecture, engines.precision)
    if facts["library"] != library.name:
        raise BackendError(
            "engines were built by another library",
            got=f"{facts['library']} {facts['library_version']}",
            expected=library.title,
            fix=f"open the backend {facts['library']}, or {again}",
        )
    if facts["library_version"] != library.version:
        raise BackendError(
            "engines were built by another version of the library",
            got=facts["library_version"],
            expected=f"{library.version}, which is installed here",
            fix=f"install that version, or {again}",
        )
    if facts["architecture"] != device.architecture:
        raise BackendError(
            "engines were built for another GPU",
            got=facts["architecture"],
            expected=f"{device.architecture} ({device.name})",
            fix=again,
        )


def open_path(
    library: str,
    path: Path,
    *,
    device: int = 0,
    cuda_graph: bool = True,
    kernels: Path | None = None,
    threads: int = 1,
) -> TensorRTBackend:
    """Open the engines of the bundle that a path, its folder's or a file's in it, leads into."""
    for folder in (path, *path.absolute().parents):
        if (folder / MANIFEST_NAME).is_file():
            bundle = Bundle.open(folder)
            return open_engines(
                bundle, library, device=device, cuda_graph=cuda_graph, kernels=kernels
            )
    raise BackendError("engines belong to a bundle", got=str(path), expected="a path in a bundle")


open_tensorrt = functools.partial(open_path, TENSORRT)
open_tensorrt_rtx = functools.partial(open_path, RTX)


class TensorRTBackend:
    """Runs all graphs of a policy on one GPU; nothing but the outputs comes back.

    Memory is taken when it opens. The first inference warms the engines up; then one is recorded
    as a CUDA graph, and each later one is a copy into pinned memory, one launch, and a wait.

    Args:
        engines: that fit library and GPU. library: imported. cuda: the device, owned from now on.
        kernels: for TensorRT-RTX. cuda_graph: whether to record.

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
    ) -> None:
        self.name = library.name
        self.engines = engines
        self._cuda = cuda
        self._kernels = kernels
        self._sessions: dict[str, EngineSession] = {}
        self._graph: Any = None
        self._closed = False
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
        """Free the recording, the contexts, the engines and all memory, in this order."""
        if self._closed:
            return
        self._closed = True
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
