"""The GPU of this machine, as engines see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_align_ros.inference.tensorrt.cuda import check, load_driver


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU.

    Attributes:
        name: as the driver calls it. architecture: such as "sm89". memory_bytes: its total; a
        Jetson shares it with the CPU. driver: the newest CUDA that the driver knows, "13.0".
    """

    name: str
    architecture: str
    memory_bytes: int
    driver: str


def describe_device(index: int = 0, driver: Any = None) -> Device:
    """Ask the driver about a GPU; BackendError if there is none.

    Args:
        index: of the device. driver: cuda-bindings' module, for tests.
    """
    cuda = load_driver() if driver is None else driver

    def call(name: str, *args: Any) -> Any:
        return check(cuda, name, getattr(cuda, name)(*args))

    device = call("cuDeviceGet", index)
    kinds = cuda.CUdevice_attribute
    major = call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    minor = call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    name = call("cuDeviceGetName", 100, device)
    version = int(call("cuDriverGetVersion"))
    return Device(
        name=bytes(name).split(b"\0")[0].decode(errors="replace"),
        architecture=f"sm{int(major)}{int(minor)}",
        memory_bytes=int(call("cuDeviceTotalMem", device)),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )
