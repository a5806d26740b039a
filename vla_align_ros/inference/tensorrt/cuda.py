"""The little of CUDA that engines need, on the driver's interface: every call checked.

The driver is asked, not the runtime: one wheel of cuda-bindings then serves every driver since
CUDA 12, a Jetson's included. TensorRT works in the device's primary context, so this does, too.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.errors import BackendError
from vla_align_ros.extras import install_hint


def load_driver() -> Any:
    """Import cuda-bindings' driver module and start it; BackendError without it or a GPU."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError as cause:
        raise BackendError(
            "CUDA's Python bindings cannot be imported", got=cause, fix=install_hint("cuda")
        ) from cause
    try:
        check(driver, "cuInit", driver.cuInit(0))
    except BackendError:
        raise
    except Exception as cause:  # the loader's own class, which is not public
        raise BackendError(
            "there is no NVIDIA driver",
            got=cause,
            expected="a machine with an NVIDIA GPU and its driver",
            fix="use the backend onnx here; build engines ahead of time with --target sm89",
        ) from cause
    return driver


def check(driver: Any, call: str, result: tuple[Any, ...]) -> Any:
    """Return a call's value, or None where it has none; BackendError with CUDA's own words."""
    status, *values = result
    if int(status) != 0:
        _, name = driver.cuGetErrorName(status)
        _, text = driver.cuGetErrorString(status)
        raise BackendError(f"{call} failed", got=f"{_decode(name)}: {_decode(text)}")
    return values[0] if len(values) == 1 else tuple(values) or None


class Cuda:
    """One device with one stream, and the memory that was taken of it.

    Made current in the thread that makes it; others call ``make_current`` first.

    Args:
        index: of the device. driver: cuda-bindings' module, for tests.
    """

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        self._driver = load_driver() if driver is None else driver
        self._device: Any = self._call("cuDeviceGet", index)
        self._context: Any = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._closed = False
        self.make_current()
        non_blocking = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream: Any = self._call("cuStreamCreate", int(non_blocking))
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []
        self.allocated_bytes = 0

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream)

    def make_current(self) -> None:
        """Let the calling thread use the device."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of zeroed device memory that lives until ``close``."""
        size_bytes = max(size_bytes, 1)
        address = int(self._call("cuMemAlloc", size_bytes))
        self._device_memory.append(address)
        self._call("cuMemsetD8Async", address, 0, size_bytes, self._stream)
        self.allocated_bytes += size_bytes
        return address

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return page-locked host memory, uint8 (size_bytes,), that lives until ``close``."""
        address = int(self._call("cuMemHostAlloc", max(size_bytes, 1), 0))
        self._host_memory.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def copy_in(self, target: int, source: npt.NDArray[Any]) -> None:
        """Queue a copy from pinned host memory to the device."""
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def copy_out(self, target: npt.NDArray[Any], source: int) -> None:
        """Queue a copy from the device to pinned host memory."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Queue a copy on the device."""
        self._call("cuMemcpyDtoDAsync", target, source, size_bytes, self._stream)

    def synchronize(self) -> None:
        """Wait for all that is queued; what failed on the device is raised here."""
        self._call("cuStreamSynchronize", self._stream)

    def capture(self, queue: Callable[[], None]) -> Any:
        """Return what ``queue`` queues, recorded instead of run; see ``destroy_graph``.

        The recording is ended whatever happens: a stream that records for ever is lost.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            queue()
        except BaseException:
            self._driver.cuStreamEndCapture(self._stream)
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch_graph(self, graph: Any) -> None:
        """Queue what was recorded."""
        self._call("cuGraphLaunch", graph, self._stream)

    def destroy_graph(self, graph: Any) -> None:
        """Free what was recorded; before the execution contexts that it calls."""
        self._driver.cuGraphExecDestroy(graph)

    def read_memory(self) -> tuple[int, int]:
        """Return the device's (free, total) memory in bytes."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """Free all memory, the stream and the context; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        driver = self._driver  # unchecked: after a fault on the device, every call fails
        driver.cuCtxSetCurrent(self._context)
        driver.cuStreamSynchronize(self._stream)
        for address in self._device_memory:
            driver.cuMemFree(address)
        for address in self._host_memory:
            driver.cuMemFreeHost(address)
        driver.cuStreamDestroy(self._stream)
        driver.cuDevicePrimaryCtxRelease(self._device)

    def _call(self, name: str, *args: Any) -> Any:
        return check(self._driver, name, getattr(self._driver, name)(*args))


def _decode(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)
