"""OpenVINO as a backend: bfloat16 on the CPU, where ONNX Runtime computes in float32."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.base import check_inputs, check_threads
from vla_align_ros.inference.signal_stack import keep_signal_stack
from vla_align_ros.machine import find_processor

_TELEMETRY = "openvino_telemetry"


def _import_quietly() -> Any:
    """Import OpenVINO without the package that reports to its makers from the first import on."""
    if _TELEMETRY in sys.modules:
        import openvino

        return openvino
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's mark of "not there"
    try:
        import openvino
    finally:
        del sys.modules[_TELEMETRY]
    return openvino


openvino = _import_quietly()

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_HINT = "INFERENCE_PRECISION_HINT"


class OpenVinoBackend:
    """Runs an ONNX graph with OpenVINO on the CPU, which frees the interpreter lock meanwhile.

    Threads are not bound to cores, so that the system can always run the timer that moves the arm.

    Args:
        path: the .onnx file, of static shapes. threads: for one inference. precision: "fp32", or
            "bf16" to compute a float32 graph on bfloat16 units; each must really be used.
        cache_dir: where compiled graphs are kept, so that the next load is faster; None keeps none.

    Raises:
        BackendError: if the file is no such graph, or this CPU has no such precision.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        threads: int = 1,
        precision: str = "fp32",
        cache_dir: Path | str | None = None,
    ) -> None:
        check_threads(threads)
        core = openvino.Core()
        _check_precision(core, precision)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            _HINT: _HINTS[precision],
            "ENABLE_CPU_PINNING": False,
            **({} if cache_dir is None else {"CACHE_DIR": str(cache_dir)}),
        }
        model = _read_graph(core, Path(path))
        try:
            with keep_signal_stack():
                compiled = core.compile_model(model, "CPU", options)
            used = compiled.get_property(_HINT).to_string()
            self._request: Any = compiled.create_infer_request()
        except RuntimeError as cause:
            raise _refuse(cause) from cause
        if used != _HINTS[precision]:
            raise _refuse_precision(precision, f"{used} in use")
        self.precision = precision
        self.runs_on = f"openvino {openvino.get_version()} on {find_processor()}"
        self.name = "openvino" if precision == "fp32" else f"openvino_{precision}"
        self._inputs = tuple(_describe(port) for port in compiled.inputs)
        self._outputs = tuple(_describe(port) for port in compiled.outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs."""
        return self._outputs

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; BackendError if the inputs do not fit or the engine fails.

        Inputs are read where they lie; outputs are copies, which later calls leave alone.
        """
        if self._request is None:
            raise BackendError("backend is closed", fix="open it again")
        check_inputs(inputs, self._inputs)
        try:
            values = self._request.infer(dict(inputs), share_inputs=True)
        except RuntimeError as cause:
            raise BackendError("graph failed while it ran", got=cause) from cause
        return {tensor.name: values[index] for index, tensor in enumerate(self._outputs)}

    def close(self) -> None:
        """Free the compiled graph; calling it again does nothing."""
        self._request = None


def open_bf16(path: Path | str, *, threads: int = 1, cache_dir: Path | None = None) -> Any:
    """Open a graph as ``OpenVinoBackend`` does, in bfloat16."""
    return OpenVinoBackend(path, threads=threads, precision="bf16", cache_dir=cache_dir)


def find_abilities(core: Any) -> list[str]:
    """Return what OpenVINO says that this CPU computes in, such as "BF16"."""
    with keep_signal_stack():  # the plug-in of the CPU is loaded here, if not before
        return [str(name) for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]


def _check_precision(core: Any, precision: str) -> None:
    if precision not in _HINTS:
        raise BackendError(
            "precision is unknown", got=repr(precision), expected=" or ".join(_HINTS)
        )
    able = find_abilities(core)
    if precision.upper() not in able:
        raise _refuse_precision(precision, ", ".join(able))


def _refuse_precision(precision: str, got: str) -> BackendError:
    return BackendError(
        f"this CPU does not compute in {precision}",
        got=got,
        expected="a CPU with AVX512-BF16 or AMX" if precision == "bf16" else precision,
        fix="use the backend openvino or onnx, which compute in fp32",
    )


def _read_graph(core: Any, path: Path) -> Any:
    # Of OpenVINO's formats only ONNX has the bundle's static tensors and no extensions.
    if path.suffix != ".onnx" or not path.is_file():
        raise _refuse(f"{path.name}, {'a file' if path.is_file() else 'which is no file'}")
    try:
        model = core.read_model(path)
    except RuntimeError as cause:
        raise _refuse(cause) from cause
    dynamic = [port.any_name for port in (*model.inputs, *model.outputs) if _is_dynamic(port)]
    if dynamic:
        raise _refuse(f"tensors of free extents: {dynamic}")
    return model


def _is_dynamic(port: Any) -> bool:
    return bool(port.partial_shape.is_dynamic)


def _refuse(cause: object) -> BackendError:
    return BackendError(
        "graph cannot be loaded",
        got=cause,
        expected=f"an ONNX file of static shapes that OpenVINO {openvino.__version__} can run",
    )


def _describe(port: Any) -> TensorSpec:
    dtype = str(port.element_type.to_dtype())
    return TensorSpec(port.any_name, dtype, tuple(int(extent) for extent in port.shape))
