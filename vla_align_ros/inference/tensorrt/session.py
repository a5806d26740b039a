"""One engine in one execution context, its tensors bound to fixed addresses once and for all."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.tensorrt.kernels import KernelCache
from vla_align_ros.inference.tensorrt.library import Library, get_logger, read_dtype


class EngineSession:
    """Loads an engine and runs it where its tensors were bound.

    Whoever makes one closes it, also when ``open`` or ``bind`` fails: what it holds must go before
    the device does. No local variable holds a context or engine, for a traceback would keep it.

    Args:
        library: that built it. path: the engine. graph: its name, for messages.
    """

    def __init__(self, library: Library, path: Path, graph: str) -> None:
        self.graph = graph
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._library = library
        self._path = path
        self._engine: Any = None
        self._config: Any = None
        self._context: Any = None

    def open(self, runtime: Any, kernels: KernelCache | None) -> None:
        """Load the engine, read its tensors, make its context.

        Args:
            runtime: of the library. kernels: for TensorRT-RTX, which compiles when it loads.

        Raises:
            BackendError: if the library refuses the engine, or a tensor is not on the device.
        """
        self._engine = self._load(runtime)
        self._read_tensors()
        self._context = self._make_context(kernels)

    def bind(self, addresses: Mapping[str, int], scratch: int, scratch_bytes: int) -> None:
        """Fix each input's shape, every tensor's address and the scratch; each answer is checked.

        TensorRT answers False, and logs, where others would raise. Contexts that run one after
        another may share their scratch.
        """
        self._context.set_device_memory(scratch, scratch_bytes)
        for tensor in self.inputs:
            shape = tuple(int(extent or 0) for extent in tensor.shape)
            if not self._context.set_input_shape(tensor.name, shape):
                raise self._refuse(f"refuses the shape {shape} of {tensor.name!r}")
        for tensor in (*self.inputs, *self.outputs):
            if not self._context.set_tensor_address(tensor.name, addresses[tensor.name]):
                raise self._refuse(f"refuses the address of {tensor.name!r}")
        if missing := self._context.infer_shapes():
            raise self._refuse(f"lacks the shape or address of {list(missing)}")
        for tensor in self.outputs:
            shape = tuple(int(extent) for extent in self._context.get_tensor_shape(tensor.name))
            if shape != tensor.shape:
                raise self._refuse(f"gives {tensor.name!r} the shape {shape}, not {tensor.shape}")

    def enqueue(self, stream: int) -> None:
        """Queue one run on a stream; BackendError if it is not taken."""
        if not self._context.execute_async_v3(stream):
            raise self._refuse("does not run")

    def refuses_capture(self, stream: int) -> bool:
        """Whether the library says that this run cannot be recorded in a CUDA graph."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is not None and not ask(stream)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that the context needs while it runs, beside weights and tensors."""
        return int(self._engine.device_memory_size_v2)

    def close_context(self) -> None:
        """Free the context; what was recorded of it must be gone by then."""
        self._context = None
        self._config = None

    def close(self) -> None:
        """Free the context, then the engine."""
        self.close_context()
        self._engine = None

    def _load(self, runtime: Any) -> Any:
        """Deserialise from a mapped file: a copy in memory would be as large as the model."""
        get_logger(self._library).take_errors()
        try:
            with self._path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as cause:
            raise BackendError(f"engine {self._path.name} cannot be read", got=cause) from cause
        with content:
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._refuse("cannot be loaded")
        return engine

    def _read_tensors(self) -> None:
        trt = self._library.module
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise self._refuse(f"wants {name!r} in the CPU's memory")
            shape = tuple(int(extent) for extent in self._engine.get_tensor_shape(name))
            kind = read_dtype(self._engine.get_tensor_dtype(name))
            tensor = TensorSpec(name, kind, tuple(None if e < 0 else e for e in shape))
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self.inputs += (tensor,)
            else:
                self.outputs += (tensor,)

    def _make_context(self, kernels: KernelCache | None) -> Any:
        """Make a context that takes no memory of its own, so that a run of it can be recorded."""
        ours = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if kernels is None:
            context = self._engine.create_execution_context(ours)
        else:
            self._config = self._engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(ours)
            if not kernels.attach(self._config):
                raise self._refuse("refuses the cache of kernels")
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self._refuse("gets no execution context; is there memory left on the GPU?")
        return context

    def _refuse(self, what: str) -> BackendError:
        errors = get_logger(self._library).take_errors()
        return BackendError(
            f"engine of {self.graph!r} {what}",
            got=errors[-1] if errors else f"no reason given by {self._library.title}",
        )
