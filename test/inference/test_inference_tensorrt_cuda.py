"""What is asked of CUDA's driver is what its bindings have, and a missing driver is one error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorrt_fakes import FakeDriver

from vla_align_ros.errors import BackendError
from vla_align_ros.inference.tensorrt import cuda as cuda_module
from vla_align_ros.inference.tensorrt.cuda import Cuda, load_driver
from vla_align_ros.inference.tensorrt.device import describe_device

CALLS = sorted(name for name in vars(FakeDriver) if re.fullmatch(r"cu[A-Z]\w+", name))


@pytest.mark.parametrize("name", CALLS)
def test_the_fake_takes_what_the_real_function_takes(name):
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    arguments = re.match(r"\w+\((.*?)\)", str(getattr(real, name).__doc__))
    assert arguments is not None
    wanted = [word for word in arguments[1].split(",") if word.strip()]
    assert vars(FakeDriver)[name].__code__.co_argcount - 1 == len(wanted)


def test_the_constants_are_those_of_the_real_bindings():
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for enum in ("CUstream_flags", "CUstreamCaptureMode", "CUdevice_attribute"):
        for name in vars(getattr(FakeDriver, enum)):
            assert hasattr(getattr(real, enum), name)
    assert int(real.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1


def test_bindings_without_a_driver_and_no_bindings_are_told_apart(monkeypatch):
    class NoDriver:
        def cuInit(self, flags: int) -> None:  # noqa: N802
            raise RuntimeError("libcuda.so.1 is missing")

    monkeypatch.setattr(cuda_module.importlib, "import_module", lambda name: NoDriver())
    with pytest.raises(BackendError, match=r"no NVIDIA driver: got libcuda.*fix: use the backend"):
        load_driver()

    def missing(name: str) -> None:
        raise ImportError("No module named 'cuda'", name="cuda")

    monkeypatch.setattr(cuda_module.importlib, "import_module", missing)
    with pytest.raises(BackendError, match=r"cannot be imported.*\[trt-rtx\]"):
        load_driver()


def test_a_status_is_told_in_cudas_own_words():
    driver = FakeDriver()
    driver.failing["cuDeviceGet"] = 101
    with pytest.raises(BackendError, match="cuDeviceGet failed: got CUDA_ERROR_101: injected"):
        describe_device(3, driver)


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 7), "sm87"), ((12, 0), "sm120"), ((11, 0), "sm110")]
)
def test_a_device_is_named_by_its_architecture(capability, name):
    device = describe_device(0, FakeDriver(capability))
    assert (device.architecture, device.name, device.driver) == (name, "Fake GPU", "13.1")


def test_memory_is_zeroed_and_freed_once():
    driver = FakeDriver()
    cuda = Cuda(0, driver)
    address, host = cuda.allocate(16), cuda.allocate_pinned(16)
    host.fill(7)
    cuda.copy_out(host, address)
    cuda.synchronize()
    assert not host.any() and cuda.allocated_bytes == 16
    cuda.close()
    cuda.close()
    assert not driver.memory and driver.journal.count("cuStreamDestroy") == 1


THROUGH_THE_BINDINGS = """
import numpy as np
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.device import Device, describe_device
assert describe_device() == Device("Stub", "sm89", 1 << 33, "13.1")
try:
    describe_device(3)
except BackendError as refused:
    assert "cuDeviceGet failed: got STUB_NAME: stub text" in str(refused)
cuda = Cuda()
one, other = cuda.allocate(64), cuda.allocate(64)
given, taken = (cuda.allocate_pinned(64).view(np.float32) for _ in range(2))
def queue():
    cuda.copy_in(one, given)
    cuda.copy(other + 8, one, 56)
    cuda.copy_out(taken, other)
given[:] = np.arange(16)
queue()
cuda.synchronize()
assert taken.tolist() == [0, 0, *range(14)], taken
graph = cuda.capture(queue)
given[:] = 5
assert taken[2] == 0, "recorded, not run"
cuda.launch_graph(graph)
cuda.synchronize()
assert taken.tolist() == [0, 0, *[5] * 14], taken
cuda.destroy_graph(graph)
try:
    cuda.capture(lambda: 1 / 0)
except ZeroDivisionError:
    pass
cuda.destroy_graph(cuda.capture(queue))
cuda.close()
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_the_real_bindings_take_what_they_are_given_before_a_driver_of_stubs(tmp_path):
    source = Path(__file__).parent / "driver_stub.c"
    library = tmp_path / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}"]
    subprocess.run(["cc", *options, "-o", str(library), str(source), "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_THE_BINDINGS],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "context released\n"
