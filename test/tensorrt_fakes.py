"""CUDA's driver and TensorRT's runtime without a GPU: they compute in the CPU's memory, and record.

The fakes hold to what the libraries hold to: memory lives until it is freed, a recording must not
outlive its contexts, tensors lie where they were bound. What the fake TensorRT offers is checked
against the names that the real bindings of each version have (``tensorrt_api.json``).
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = tuple(API)
Arrays = dict[str, np.ndarray]
Function = Callable[[Arrays], Arrays]


class FakeDriver:
    """The functions of cuda.bindings.driver that are used; ``failing`` maps one to its status."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.capability = capability
        self.failing: dict[str, int] = {}
        self.journal: list[str] = []
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not (name.startswith("cu") and callable(value)):
            return value

        def call(*args: Any) -> tuple[Any, ...]:
            self.journal.append(name)
            if name in self.failing:
                return (self.failing[name], None)
            result = value(*args)
            return (
                (0,) if result is None else (0, *result) if type(result) is tuple else (0, result)
            )

        return call if name not in ("cuGetErrorName", "cuGetErrorString") else value

    def cuGetErrorName(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"CUDA_ERROR_%d" % status

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"injected"

    def cuInit(self, flags: int) -> None: ...  # noqa: N802
    def cuCtxSetCurrent(self, context: Any) -> None: ...  # noqa: N802
    def cuStreamDestroy(self, stream: Any) -> None: ...  # noqa: N802
    def cuDevicePrimaryCtxRelease(self, device: Any) -> None: ...  # noqa: N802
    def cuGraphDestroy(self, graph: Any) -> None: ...  # noqa: N802

    def cuDeviceGet(self, index: int) -> int:  # noqa: N802
        return index

    def cuDeviceGetAttribute(self, kind: str, device: int) -> int:  # noqa: N802
        return self.capability[kind == "minor"]

    def cuDeviceGetName(self, length: int, device: int) -> bytes:  # noqa: N802
        return b"Fake GPU\0\0"

    def cuDeviceTotalMem(self, device: int) -> int:  # noqa: N802
        return 1 << 33

    def cuDriverGetVersion(self) -> int:  # noqa: N802
        return 13010

    def cuDevicePrimaryCtxRetain(self, device: int) -> str:  # noqa: N802
        return "context"

    def cuStreamCreate(self, flags: int) -> int:  # noqa: N802
        return 77

    def cuStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert self.recording is None, "a stream that records cannot be waited for"

    def cuMemAlloc(self, size: int) -> int:  # noqa: N802
        assert self.recording is None, "memory is taken before"
        block = (ctypes.c_uint8 * size)(*([0xAB] * size))
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cuMemHostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        return self.cuMemAlloc(size)[1]  # type: ignore[index]

    def cuMemFree(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    cuMemFreeHost = cuMemFree  # noqa: N815

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        self.queue(lambda: ctypes.memset(address, value, size))

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:  # noqa: N802
        self.check(target, size)
        self.check(source, size)
        self.queue(lambda: ctypes.memmove(target, source, size))

    cuMemcpyHtoDAsync = cuMemcpyDtoHAsync = cuMemcpyDtoDAsync  # noqa: N815

    def cuStreamBeginCapture(self, stream: int, mode: str) -> None:  # noqa: N802
        assert mode == "thread", "other threads may go on with CUDA"
        self.recording = []

    def cuStreamEndCapture(self, stream: int) -> int:  # noqa: N802
        assert self.recording is not None
        graph, self.recording = self.recording, None
        self.graphs[len(self.graphs)] = graph
        return len(self.graphs) - 1

    def cuGraphInstantiate(self, graph: int, flags: int) -> int:  # noqa: N802
        return graph

    def cuGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        for step in self.graphs[graph]:
            step()

    def cuGraphExecDestroy(self, graph: int) -> None:  # noqa: N802
        del self.graphs[graph]

    def check(self, address: int, size: int) -> None:
        """Fail unless the bytes lie within one block that is allocated."""
        assert any(
            start <= address and address + size <= start + len(block)
            for start, block in self.memory.items()
        ), f"{size} bytes at {address} are in no block"

    def queue(self, step: Callable[[], Any]) -> None:
        """Run a step, or record it."""
        if self.recording is None:
            step()
        else:
            self.recording.append(step)


@dataclass
class FakeEngine:
    """What an engine's bytes stand for: tensors (dtype, shape) and the function between them."""

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    function: Function
    refuses: set[str] = field(default_factory=set)
    """Calls that answer False: "shape", "address", "run", "capture", "context"."""


def make_tensorrt(version: str, driver: FakeDriver, engines: Mapping[bytes, FakeEngine]) -> Any:
    """Return a module like ``tensorrt`` whose runtime knows some engines by their bytes."""
    journal = driver.journal
    of_numpy = {"float32": "FLOAT", "int64": "INT64", "float16": "BF16"}

    class ILogger:
        Severity = SimpleNamespace(**{n: n for n in API[version]["ILogger.Severity"].split()})

    class ICudaEngine:
        device_memory_size_v2 = 4096

        def __init__(self, spec: FakeEngine, logger: Any) -> None:
            self._spec, self._logger = spec, logger
            self._tensors = {**spec.inputs, **spec.outputs}
            self.num_io_tensors = len(self._tensors)

        def __del__(self) -> None:
            journal.append("engine freed")

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_dtype(self, name: str) -> str:
            return f"DataType.{of_numpy[self._tensors[name][0]]}"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._tensors[name][1]

        def get_tensor_mode(self, name: str) -> str:
            return "INPUT" if name in self._spec.inputs else "OUTPUT"

        def get_tensor_location(self, name: str) -> str:
            return "HOST" if "location" in self._spec.refuses else "DEVICE"

        def create_execution_context(self, given: Any) -> Any:
            ours = getattr(given, "_strategy", given)
            assert ours == "USER_MANAGED", "else REQUIRE_USER_ALLOCATION refuses a context"
            if "context" in self._spec.refuses:
                self._logger.log("ERROR", "out of memory")
                return None
            return IExecutionContext(self, self._spec, self._logger)

    if "rtx" in version:

        def create_runtime_config(self: Any) -> Any:
            return IRuntimeConfig()

        ICudaEngine.create_runtime_config = create_runtime_config  # type: ignore[attr-defined]

    class IRuntimeCache:
        def __init__(self) -> None:
            self._content = b"compiled"

        def __del__(self) -> None:
            journal.append("kernels freed")

        def deserialize(self, content: bytes) -> bool:
            journal.append(f"kernels read: {content!r}")
            return content.startswith(b"compiled")

        def serialize(self) -> bytes:
            return self._content

    class IRuntimeConfig:
        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self._strategy = strategy

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            journal.append("kernels attached")
            return True

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, spec: FakeEngine, logger: Any) -> None:
            self._spec, self._logger, self._shapes = spec, logger, dict[str, Any]()
            self._addresses: dict[str, int] = {}
            self._engine = engine
            self._alive = [True]
            self._scratch = 0

        def __del__(self) -> None:
            self._alive.clear()
            journal.append("context freed")

        def set_device_memory(self, memory: int, size: int) -> None:
            driver.check(memory, size)
            assert size >= self._engine.device_memory_size_v2
            self._scratch = memory

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shapes[name] = shape
            return "shape" not in self._spec.refuses and shape == self._spec.inputs[name][1]

        def set_tensor_address(self, name: str, address: int) -> bool:
            journal.append(f"bound {name}")
            driver.check(address, 1)
            self._addresses[name] = address
            return "address" not in self._spec.refuses

        def infer_shapes(self) -> list[str]:
            wanted = {*self._spec.inputs, *self._spec.outputs}
            return ["unknown"] if "infer" in self._spec.refuses else [*wanted - {*self._addresses}]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = self._spec.outputs[name][1]
            return (*shape, 1) if "output" in self._spec.refuses else shape

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 77, "one stream, and not the default one"
            if "run" in self._spec.refuses:
                self._logger.log("ERROR", "kernel is missing")
                return False
            assert self._scratch, "a context that takes no memory must be given some"
            spec, places, alive = self._spec, dict(self._addresses), self._alive

            def view(name: str, kind: tuple[str, tuple[int, ...]]) -> np.ndarray:
                dtype, shape = np.dtype(kind[0]), kind[1]
                size = dtype.itemsize * int(np.prod(shape))
                driver.check(places[name], size)
                block = (ctypes.c_uint8 * size).from_address(places[name])
                return np.frombuffer(block, np.uint8).view(dtype).reshape(shape)

            def run() -> None:
                assert alive, "the context was freed before what was recorded of it"
                taken = {name: view(name, kind).copy() for name, kind in spec.inputs.items()}
                for name, value in spec.function(taken).items():
                    view(name, spec.outputs[name])[...] = value

            driver.queue(run)
            return True

    if "is_stream_capturable" in API[version]["IExecutionContext"].split():

        def is_stream_capturable(self: Any, stream: int) -> bool:
            return "capture" not in self._spec.refuses

        IExecutionContext.is_stream_capturable = is_stream_capturable  # type: ignore[attr-defined]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, content: Any) -> Any:
            spec = engines.get(bytes(memoryview(content)))
            if spec is None:
                self._logger.log("ERROR", "serialization magic is wrong")
                return None
            return ICudaEngine(spec, self._logger)

    classes: list[type] = [ILogger, ICudaEngine, IExecutionContext, Runtime]
    if "rtx" in version:
        classes += [IRuntimeConfig, IRuntimeCache]
    for kind in classes:
        offered = {name for name in vars(kind) if not name.startswith("_")}
        assert offered <= {*API[version][kind.__name__].split()}, f"{version} has no such {kind}"
    module = ModuleType(version.split()[0])
    vars(module).update({kind.__name__: kind for kind in classes})
    module.__version__ = version.split()[1]  # type: ignore[attr-defined]
    module.TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")  # type: ignore[attr-defined]
    module.ExecutionContextAllocationStrategy = SimpleNamespace(  # type: ignore[attr-defined]
        **{n: n for n in API[version]["ExecutionContextAllocationStrategy"].split()}
    )
    module.TensorLocation = SimpleNamespace(DEVICE="DEVICE", HOST="HOST")  # type: ignore[attr-defined]
    return module
