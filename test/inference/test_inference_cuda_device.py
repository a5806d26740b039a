"""CUDA on a real GPU: memory, copies, a recorded graph, and what is left after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vla_align_ros.errors import BackendError
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.device import describe_device

SIZE_BYTES = 1 << 20


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    try:
        opened = Cuda()
    except BackendError as cause:
        if os.environ.get("NEEDS_GPU"):  # scripts/gpu_checks: nothing tried is nothing passed
            raise
        pytest.skip(f"needs an NVIDIA GPU, its driver and cuda-bindings: {cause}")
    yield opened
    opened.close()


def fill(cuda: Cuda, seed: int) -> Any:
    pinned = cuda.allocate_pinned(SIZE_BYTES)
    pinned[:] = np.random.default_rng(seed).integers(0, 256, SIZE_BYTES, dtype=np.uint8)
    return pinned


def test_the_gpu_is_described(cuda: Cuda) -> None:
    device = describe_device()
    free, total = cuda.read_memory()
    assert device.name and device.architecture.startswith("sm")
    assert 0 < free <= total <= device.memory_bytes


def test_new_memory_is_zero(cuda: Cuda) -> None:
    address, read = cuda.allocate(SIZE_BYTES), fill(cuda, 0)
    cuda.copy_out(read, address)
    cuda.synchronize()
    assert not read.any()


def test_bytes_go_there_and_back(cuda: Cuda) -> None:
    first, second = cuda.allocate(SIZE_BYTES), cuda.allocate(SIZE_BYTES)
    sent, read = fill(cuda, 1), cuda.allocate_pinned(SIZE_BYTES)
    cuda.copy_in(first, sent)
    cuda.copy(second, first, SIZE_BYTES)
    cuda.copy_out(read, second)
    cuda.synchronize()
    assert (read == sent).all()


def test_a_recording_does_nothing_until_it_is_launched_and_reads_what_is_there_then(
    cuda: Cuda,
) -> None:
    address = cuda.allocate(SIZE_BYTES)
    sent, read = fill(cuda, 2), cuda.allocate_pinned(SIZE_BYTES)
    read[:] = 7
    cuda.synchronize()

    def queue() -> None:
        cuda.copy_in(address, sent)
        cuda.copy_out(read, address)

    graph = cuda.capture(queue)
    cuda.synchronize()
    assert (read == 7).all()
    for value in (3, 4):
        sent[:] = value
        cuda.launch_graph(graph)
        cuda.synchronize()
        assert (read == value).all()
    cuda.destroy_graph(graph)


def test_a_recording_that_fails_leaves_the_stream_usable(cuda: Cuda) -> None:
    address, sent = cuda.allocate(SIZE_BYTES), fill(cuda, 5)

    def fail() -> None:
        cuda.copy_in(address, sent)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        cuda.capture(fail)
    read = cuda.allocate_pinned(SIZE_BYTES)
    cuda.copy_in(address, sent)
    cuda.copy_out(read, address)
    cuda.synchronize()
    assert (read == sent).all()


def test_memory_comes_back_over_a_hundred_openings(cuda: Cuda) -> None:
    before, _ = cuda.read_memory()
    for _ in range(100):
        other = Cuda()
        other.allocate(64 * SIZE_BYTES)
        other.close()
    after, _ = cuda.read_memory()
    assert before - after < 64 * SIZE_BYTES


def test_too_much_memory_is_refused_in_the_drivers_words(cuda: Cuda) -> None:
    _, total = cuda.read_memory()
    with pytest.raises(BackendError, match="OUT_OF_MEMORY"):
        cuda.allocate(2 * total)
