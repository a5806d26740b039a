"""PyTorch as a backend: the trained network itself, on a workstation that has the training code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from vla_align_ros.contract.manifest import MANIFEST_NAME
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError, VlaAlignError
from vla_align_ros.extras import install_hint
from vla_align_ros.inference.base import check_inputs, check_threads
from vla_align_ros.machine import find_processor

GROUP = "vla_align_ros.torch_policies"
"""Entry points that rebuild a network: called as ``LoadPolicy``, installed beside the robot."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BITS = {"nf4": "int4"}  # storage of weights -> the precision whose limits it must keep
_WARM_UPS = 3


@dataclass(frozen=True, slots=True, eq=False)
class TorchPolicy:
    """A network ready to act: forward takes the inputs by name, and gives the outputs by name."""

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


LoadPolicy = Callable[..., TorchPolicy]
"""(folder of a run or bundle, *, dtype, device, quantize) to a policy on that device."""


class TorchBackend:
    """Runs a torch module without gradients; on a GPU as one CUDA graph if asked.

    Args:
        policy: the module on its device, and its tensors; floating-point inputs are given in the
            precision's dtype, outputs are returned in the dtype that they are declared in.
        precision: "fp32", "bf16" or "fp16". device: where the module is. threads: of torch's
            processor work in the whole process. cuda_graph: capture the module after a warm-up and
            replay it; it must then do the same work in every call.

    Raises:
        BackendError: for a wrong option, a missing device, or a module that cannot be captured.
    """

    def __init__(
        self,
        policy: TorchPolicy,
        *,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int = 1,
        cuda_graph: bool = False,
    ) -> None:
        check_threads(threads)
        self._device = check_device(device)
        self._dtype = find_dtype(precision)
        if cuda_graph and self._device.type != "cuda":
            raise BackendError(
                "CUDA graphs need a GPU", got=device, expected="cuda", fix="leave cuda_graph out"
            )
        torch.set_num_threads(threads)
        if self._dtype is torch.float32:
            # For the whole process. Convolutions take TF32 on a GPU by default: ten bits for 23.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.precision = precision
        on_gpu = self._device.type == "cuda"
        place = torch.cuda.get_device_name(self._device) if on_gpu else find_processor()
        self.runs_on = f"torch {torch.__version__} on {place}"
        self.name = "torch" if precision == "fp32" else f"torch_{precision}"
        self.inputs, self.outputs = policy.inputs, policy.outputs
        self._module: torch.nn.Module | None = policy.module.eval().requires_grad_(False)
        self._graph: Any = None
        self._static: dict[str, torch.Tensor] = {}
        self._results: dict[str, torch.Tensor] = {}
        if cuda_graph:
            self._capture()

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the module once; BackendError if the inputs do not fit or it fails."""
        if self._module is None:
            raise BackendError("backend is closed", fix="open it again")
        check_inputs(inputs, self.inputs)
        try:
            if self._graph is None:
                given = {name: self._place(value) for name, value in inputs.items()}
                return self._collect(self._call(given))
            for name, value in inputs.items():
                self._static[name].copy_(torch.from_numpy(value))
            self._graph.replay()
            return self._collect(self._results)
        except VlaAlignError:
            raise
        except Exception as cause:  # whatever a module's code raises
            raise BackendError("module failed while it ran", got=cause) from cause

    def close(self) -> None:
        """Free the graph, then the module; calling it again does nothing."""
        if self._graph is not None:
            torch.cuda.synchronize(self._device)
            self._graph.reset()
        self._graph, self._module = None, None
        self._static, self._results = {}, {}
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _call(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert self._module is not None
        with torch.inference_mode():
            outputs = self._module(**inputs)
        if isinstance(outputs, torch.Tensor):
            outputs = {self.outputs[0].name: outputs}
        return cast(dict[str, torch.Tensor], outputs)

    def _place(self, value: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.require(value, requirements=["C", "W"])).to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _collect(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[Any]]:
        found: dict[str, npt.NDArray[Any]] = {}
        for spec in self.outputs:
            if spec.name not in outputs:
                raise BackendError(
                    "module gives other outputs", got=sorted(outputs), expected=spec.name
                )
            dtype = getattr(torch, spec.dtype)
            value = outputs[spec.name].detach().to("cpu", dtype, copy=True)
            found[spec.name] = value.contiguous().numpy()
        return found

    def _capture(self) -> None:
        """Record one call; buffers of inputs and outputs stay where the recording has them."""
        shapes = {spec.name: tuple(extent or 1 for extent in spec.shape) for spec in self.inputs}
        for spec in self.inputs:
            ones = np.ones(shapes[spec.name], dtype=spec.dtype)
            self._static[spec.name] = self._place(ones)
        cuda: Any = torch.cuda
        try:
            side = cuda.Stream(self._device)
            side.wait_stream(cuda.current_stream(self._device))
            with cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._call(self._static)
            cuda.current_stream(self._device).wait_stream(side)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph):
                self._results = dict(self._call(self._static))
            self._graph = graph
        except RuntimeError as cause:
            raise BackendError(
                "module cannot be captured as a CUDA graph",
                got=cause,
                expected="static shapes, and nothing that waits for the GPU within a call",
                fix="open it without cuda_graph",
            ) from cause


def open_torch(
    path: Path | str,
    *,
    threads: int = 1,
    precision: str = "fp32",
    device: str = "cpu",
    quantize: str = "none",
    cuda_graph: bool = False,
) -> TorchBackend:
    """Rebuild a policy's network and open it.

    Args:
        path: folder of a run or of a bundle, or a graph's file in a bundle.
        precision, device, threads, cuda_graph: as ``TorchBackend``.
        quantize: "none", or "nf4" or "int8" (bitsandbytes) for the language model's layers.

    Raises:
        BackendError: if no installed package rebuilds networks, or this one cannot be.
    """
    dtype, place = find_dtype(precision), check_device(device)
    folder = find_folder(Path(path))
    load = _find_loader()
    try:
        policy = load(folder, dtype=dtype, device=place, quantize=quantize)
    except ImportError as cause:
        raise _not_installed(cause) from cause
    backend = TorchBackend(
        policy, precision=precision, device=device, threads=threads, cuda_graph=cuda_graph
    )
    if quantize != "none":
        backend.name += f"_{quantize}"
        backend.precision = _BITS.get(quantize, quantize)
    return backend


def find_folder(path: Path) -> Path:
    """Return the run or bundle that a path names or lies in."""
    if path.is_dir():
        return path
    for folder in path.parents:
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise BackendError(
        "torch needs more than a graph",
        got=path,
        expected="the folder of a run or bundle, or a graph in a bundle",
    )


def find_dtype(precision: str) -> torch.dtype:
    """Return the dtype of "fp32", "bf16" or "fp16"; BackendError otherwise."""
    if precision not in DTYPES:
        raise BackendError(
            "precision is unknown", got=repr(precision), expected=" or ".join(DTYPES)
        )
    return DTYPES[precision]


def check_device(device: str) -> torch.device:
    """Return the device; BackendError if torch has none of that name here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as cause:
        raise BackendError(
            "torch has no such device",
            got=f"{device!r} ({str(cause).splitlines()[0]})",
            expected="cpu, or cuda with NVIDIA's driver and a CUDA build of torch",
        ) from cause
    return found


def _find_loader() -> LoadPolicy:
    for point in entry_points(group=GROUP):
        try:
            return cast(LoadPolicy, point.load())
        except ImportError as cause:
            raise _not_installed(cause) from cause
    raise _not_installed("no package that rebuilds networks")


def _not_installed(cause: object) -> BackendError:
    module = (cause.name or "") if isinstance(cause, ImportError) else "training"
    return BackendError(
        "the backend torch needs the training code",
        got=cause,
        expected="this package with its extra train",
        fix=install_hint(module) or install_hint("torch"),
    )
