"""ONNX Runtime as a backend, which runs where it was told to or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.base import check_inputs, check_threads
from vla_align_ros.machine import find_processor

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_ERRORS_ONLY = 3
_OPTIMIZATIONS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
}
_EXACT: dict[str, dict[str, str]] = {
    CUDA: {"use_tf32": "0"},
    TENSORRT: {"trt_fp16_enable": "0", "trt_int8_enable": "0", "trt_engine_cache_enable": "0"},
}
"""A graph's precision is its own: what a provider would round by itself or by the environment."""
_TF32 = "NVIDIA_TF32_OVERRIDE"
"""The only switch of TF32 for TensorRT's provider, which allows it and has no option for it."""
_NO_CPU = "session.disable_cpu_ep_fallback"


class OnnxBackend:
    """Runs an ONNX graph with ONNX Runtime, which frees the interpreter lock while it computes.

    On the CPU inputs are read where they lie, and outputs are handed over, without copies.

    Args:
        path: the .onnx file; weights may lie in a file beside it. threads: for one operator;
            operators run one after another.
        providers: execution providers, in order of preference; each must be there. Only with the
            CPU's among them may any part of the graph run on the CPU.
        provider_options: by provider, ONNX Runtime's own options for it, such as
            ``{"TensorrtExecutionProvider": {"trt_engine_cache_enable": "1",
            "trt_engine_cache_path": ...}}``. Without them nothing is rounded or cached; TensorRT's
            provider needs the environment variable NVIDIA_TF32_OVERRIDE for that, 0 from the
            start of the process.
        optimization: "all", or "basic" to compute rounded products as the graph has them.

    Raises:
        BackendError: if the file is no graph that runs here, or a provider is not available or
            silently left out, or cannot run the graph (ONNX Runtime falls back to the CPU; this
            refuses), or would round by itself to TF32.
    """

    name = "onnx"

    def __init__(
        self,
        path: Path | str,
        *,
        threads: int = 1,
        providers: Sequence[str] = (CPU,),
        provider_options: Mapping[str, Mapping[str, str]] | None = None,
        optimization: str = "all",
    ) -> None:
        check_threads(threads)
        _check_providers(providers, onnxruntime.get_available_providers(), "available")
        _check_tf32(providers)
        settings = _merge_options(providers, provider_options or {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _OPTIMIZATIONS[optimization]
        options.log_severity_level = _ERRORS_ONLY
        if CPU not in providers:
            options.add_session_config_entry(_NO_CPU, "1")
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=list(settings.items())
            )
        except Exception as cause:  # each failure has a class of its own, without a common base
            raise BackendError(
                "graph cannot be loaded",
                got=cause,
                expected=f"an ONNX file that ONNX Runtime {onnxruntime.__version__} can run on "
                f"{' and '.join(providers)} alone",
                fix=None if CPU in providers else f"ask for {CPU} behind them, for the rest",
            ) from cause
        _check_providers(providers, session.get_providers(), "in use")
        _check_options(settings, session.get_provider_options())
        session.disable_fallback()
        self.runs_on = name_runtime(providers)
        self._session: Any = session
        self._inputs = tuple(_describe(node) for node in session.get_inputs())
        self._outputs = tuple(_describe(node) for node in session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs; None in a shape stands for any extent."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs."""
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers of the session, the CPU's in any case."""
        return tuple(self._require_session().get_providers())

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; BackendError if the inputs do not fit or the engine fails."""
        session = self._require_session()
        check_inputs(inputs, self._inputs)
        try:
            values = session.run(None, dict(inputs))
        except Exception as cause:  # as above
            raise BackendError("graph failed while it ran", got=cause) from cause
        return {
            tensor.name: np.asarray(value)
            for tensor, value in zip(self._outputs, values, strict=True)
        }

    def close(self) -> None:
        """Free the session; calling it again does nothing."""
        self._session = None

    def _require_session(self) -> Any:
        if self._session is None:
            raise BackendError("backend is closed", fix="open it again")
        return self._session


def name_runtime(providers: Sequence[str] = (CPU,)) -> str:
    """What a graph's numbers depend on here: the library's version, providers and processor."""
    used = "" if tuple(providers) == (CPU,) else f" ({', '.join(providers)})"
    return f"onnxruntime {onnxruntime.__version__}{used} on {find_processor()}"


def _merge_options(
    providers: Sequence[str], given: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Return every provider's options, in the providers' order."""
    if not set(given) <= set(providers):
        raise BackendError(
            "options are for a provider that is not asked for",
            got=sorted(given),
            expected=f"some of {list(providers)}",
        )
    return {name: {**_EXACT.get(name, {}), **given.get(name, {})} for name in providers}


def _check_tf32(providers: Sequence[str]) -> None:
    if TENSORRT in providers and _TF32 not in os.environ:
        raise BackendError(
            f"{TENSORRT} would round float32 products to TF32, and has no option against it",
            got=f"no environment variable {_TF32}",
            expected=f"{_TF32}=0, or another value where TF32 is wanted",
            fix="set it before the process starts: NVIDIA's libraries read it once",
        )


def _check_options(wanted: Mapping[str, Mapping[str, str]], used: Mapping[str, Any]) -> None:
    for provider, options in wanted.items():
        found = {name: str(used.get(provider, {}).get(name)) for name in options}
        other = {name: found[name] for name, value in options.items() if found[name] != str(value)}
        if other:
            raise BackendError(
                f"{provider} does not keep its options",
                got=other,
                expected={name: options[name] for name in other},
                fix="correct their names and values, or leave them out",
            )


def _check_providers(wanted: Sequence[str], found: Sequence[str], where: str) -> None:
    missing = [provider for provider in wanted if provider not in found]
    if missing or not wanted:
        raise BackendError(
            f"execution provider is not {where}",
            got=list(wanted),
            expected=f"some of {list(found)}",
            fix="install the matching onnxruntime package and its drivers, or ask for " + CPU,
        )


def _describe(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BackendError(
            f"graph tensor {node.name!r} has an unsupported type",
            got=node.type,
            expected=" or ".join(_DTYPES),
        )
    shape = tuple(extent if isinstance(extent, int) else None for extent in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)
