"""The seam between a policy and whatever runs its graph."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.extras import install_hint

BACKENDS = {
    "onnx": "vla_align_ros.inference.onnx:OnnxBackend",
    "tensorrt": "vla_align_ros.inference.tensorrt.opening:open_tensorrt",
    "tensorrt_rtx": "vla_align_ros.inference.tensorrt.opening:open_tensorrt_rtx",
    "openvino": "vla_align_ros.inference.openvino:OpenVinoBackend",
    "openvino_bf16": "vla_align_ros.inference.openvino:open_bf16",
    "torch": "vla_align_ros.inference.torch:open_torch",
}
"""Where each engine lives; its module, and so its library, is imported only when it is opened."""

WHOLE = {"torch"}
"""Engines that run a bundle's whole policy, not one graph: they are opened with its folder."""


class Backend(Protocol):
    """Runs a policy's graph. One thread at a time may call ``infer``."""

    @property
    def name(self) -> str:
        """Short name, for reports."""
        ...

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The tensors that ``infer`` takes; none declared means that it takes any."""
        ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The tensors that ``infer`` gives; none declared means that it may give any."""
        ...

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; BackendError if the inputs do not fit or the engine fails."""
        ...

    def close(self) -> None:
        """Free the engine; calling it again does nothing."""
        ...


def name_place(backend: Backend) -> str:
    """What a backend's numbers depend on beside the graph: library, version, processor or GPU.

    That is its attribute `runs_on`; its name, where it has none.
    """
    return str(getattr(backend, "runs_on", backend.name))


def open_backend(name: str, graph_path: Path | str, **options: Any) -> Backend:
    """Open an engine by name for one graph.

    Args:
        name: a key of ``BACKENDS``. graph_path: the graph's file. options: the engine's own, such
            as ``threads``.

    Raises:
        BackendError: if the name is unknown, an option is not the engine's, or it cannot load.
    """
    if name not in BACKENDS:
        raise BackendError(
            "inference backend is unknown", got=repr(name), expected=" or ".join(sorted(BACKENDS))
        )
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as cause:
        raise BackendError(
            f"inference backend {name!r} cannot be imported",
            got=cause,
            fix=install_hint(cause.name or "") or "install the library that it is named for",
        ) from cause
    signature = inspect.signature(factory)
    try:
        signature.bind(Path(graph_path), **options)
    except TypeError as cause:
        raise BackendError(
            f"inference backend {name!r} refuses its options",
            got=sorted(options),
            expected=f"some of {list(signature.parameters)[1:]}",
        ) from cause
    return cast(Callable[..., Backend], factory)(Path(graph_path), **options)


def check_threads(threads: object) -> None:
    """Check a number of threads; BackendError unless it is an integer of 1 or more."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise BackendError("thread count is wrong", got=repr(threads), expected="1 or more")


def check_inputs(inputs: Mapping[str, npt.NDArray[Any]], expected: Sequence[TensorSpec]) -> None:
    """Check names, dtypes, shapes of a graph's inputs; BackendError names the first wrong one."""
    names = [tensor.name for tensor in expected]
    if set(inputs) != set(names):
        raise BackendError("graph got the wrong inputs", got=sorted(inputs), expected=sorted(names))
    for tensor in expected:
        array = inputs[tensor.name]
        if not isinstance(array, np.ndarray) or not fits(tensor, str(array.dtype), array.shape):
            form = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array)
            raise BackendError(
                f"graph input {tensor.name!r} does not fit",
                got=form,
                expected=f"{tensor.dtype} {tensor.shape}",
                fix="prepare it with the processor of the same bundle",
            )


def check_graph(
    actual: Sequence[TensorSpec], expected: Sequence[TensorSpec], what: str, *, exact: bool
) -> None:
    """Check a graph's declared tensors against the contract's.

    Args:
        actual: what the engine declares; extents of None fit any. expected: what the processor
            gives or reads. what: "input" or "output". exact: whether others are refused.

    Raises:
        BackendError: if one is missing, superfluous, or of another dtype or shape.
    """
    declared = {tensor.name: tensor for tensor in actual}
    wanted = {tensor.name for tensor in expected}
    if not wanted <= set(declared) or (exact and wanted != set(declared)):
        raise BackendError(
            f"graph has the wrong {what}s", got=sorted(declared), expected=sorted(wanted)
        )
    for tensor in expected:
        shape = tuple(extent or 1 for extent in tensor.shape)
        if not fits(declared[tensor.name], tensor.dtype, shape):
            found = declared[tensor.name]
            raise BackendError(
                f"graph {what} {tensor.name!r} does not fit the bundle",
                got=f"{found.dtype} {found.shape}",
                expected=f"{tensor.dtype} {tensor.shape}",
                fix="export the policy again",
            )


def fits(tensor: TensorSpec, dtype: str, shape: Sequence[int]) -> bool:
    """Say whether an array of this dtype and shape is a value of the tensor."""
    return (
        tensor.dtype == dtype
        and len(tensor.shape) == len(shape)
        and all(
            want is None or want == have for want, have in zip(tensor.shape, shape, strict=True)
        )
    )
