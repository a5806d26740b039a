"""The engines of this machine's GPU, opened by the name of their library, or refused by reason."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import EngineSet
from vla_align_ros.contract.files import user_cache
from vla_align_ros.contract.manifest import MANIFEST_NAME
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.tensorrt.backend import TensorRTBackend
from vla_align_ros.inference.tensorrt.cuda import Cuda
from vla_align_ros.inference.tensorrt.device import Device, describe_device
from vla_align_ros.inference.tensorrt.kernels import KernelCache
from vla_align_ros.inference.tensorrt.library import RTX, TENSORRT, Library, find_library


def open_engines(
    bundle: Bundle,
    library: str,
    *,
    device: int = 0,
    cuda_graph: bool = True,
    kernels: Path | None = None,
    threads: int = 1,
) -> TensorRTBackend:
    """Open a bundle's engines for the GPU of this machine, warmed up.

    Args:
        bundle: opened. library: "tensorrt" or "tensorrt_rtx". device: index of the GPU.
        cuda_graph: whether to record an inference once and replay it. kernels: folder where
            TensorRT-RTX keeps what it compiles, by default the user's cache. threads: of no use
            here; taken because every backend is given it.

    Raises:
        BackendError: if there is no GPU or library, or the engines were built for another GPU, by
            another library or version. BundleError: if there are no engines, or they are damaged.
            Each names the command that mends it.
    """
    loaded = find_library(library)
    gpu = describe_device(device)
    engines = bundle.engine(gpu.architecture)
    check_fit(engines, loaded, gpu)
    cache = None
    if loaded.compiles_at_load:
        cache = KernelCache((kernels or user_cache("kernels")) / _name_kernels(engines))
    place = f"{gpu.name} (driver of CUDA {gpu.driver})"
    return TensorRTBackend(
        engines, loaded, Cuda(device), kernels=cache, cuda_graph=cuda_graph, place=place
    )


def _name_kernels(engines: EngineSet) -> str:
    """Return a name for what the engines themselves are; a proof that is added changes nothing."""
    graphs = engines.facts["graphs"]
    sums = "".join(graphs[name]["sha256"] for name in sorted(graphs))
    digest = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return f"{digest}-{engines.facts['library_version']}-{engines.target}"


def check_fit(engines: EngineSet, library: Library, device: Device) -> None:
    """Refuse engines of another library, version or GPU; BackendError names the command."""
    facts = engines.facts
    again = "build them again: " + engines.repeat_command(device.architecture)
    if facts["library"] != library.name:
        raise BackendError(
            "engines were built by another library",
            got=f"{facts['library']} {facts['library_version']}",
            expected=library.title,
            fix=f"open the backend {facts['library']}, or {again}",
        )
    if facts["library_version"] != library.version:
        raise BackendError(
            "engines were built by another version of the library",
            got=facts["library_version"],
            expected=f"{library.version}, which is installed here",
            fix=f"install that version, or {again}",
        )
    if facts["architecture"] != device.architecture:
        raise BackendError(
            "engines were built for another GPU",
            got=facts["architecture"],
            expected=f"{device.architecture} ({device.name})",
            fix=again,
        )


def open_path(
    library: str,
    path: Path,
    *,
    device: int = 0,
    cuda_graph: bool = True,
    kernels: Path | None = None,
    threads: int = 1,
) -> TensorRTBackend:
    """Open the engines of the bundle that a path, its folder's or a file's in it, leads into."""
    for folder in (path, *path.absolute().parents):
        if (folder / MANIFEST_NAME).is_file():
            bundle = Bundle.open(folder)
            return open_engines(
                bundle, library, device=device, cuda_graph=cuda_graph, kernels=kernels
            )
    raise BackendError("engines belong to a bundle", got=str(path), expected="a path in a bundle")


open_tensorrt = functools.partial(open_path, TENSORRT)
open_tensorrt_rtx = functools.partial(open_path, RTX)
