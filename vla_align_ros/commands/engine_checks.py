"""The doctor's section on inference: every engine, whether it runs here, what would add it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version

from vla_align_ros.commands.findings import Finding, judge
from vla_align_ros.errors import BackendError
from vla_align_ros.extras import install_hint, pip_command
from vla_align_ros.inference.base import BACKENDS

SECTION = "inference"
BF16_FIX = "needs a CPU with AVX512-BF16 or AMX; openvino and onnx compute in fp32 on any"
GPU_PROVIDERS = {
    "onnx on CUDA": "CUDAExecutionProvider",
    "onnx on TensorRT": "TensorrtExecutionProvider",
}
"""By name, what `OnnxBackend` takes as `providers`, which no command and no node passes."""
PROVIDER_FIX = (
    "not needed: commands and the node use a GPU by tensorrt or tensorrt_rtx; for Python code that"
    " opens a bundle with providers=: pip uninstall onnxruntime && pip install onnxruntime-gpu"
    " (never beside each other)"
)


def check_engines() -> list[Finding]:
    """Look at every backend by name, importing its library for real."""
    findings = [check_engine(name) for name in BACKENDS]
    if findings[0].ok:
        findings += [check_provider(name, provider) for name, provider in GPU_PROVIDERS.items()]
    return findings


def check_engine(name: str) -> Finding:
    """Say what a backend would run on, or how to install it."""
    try:
        return judge(SECTION, name, *PROBES[name]())
    except ImportError as cause:
        module = (cause.name or "").partition(".")[0]
        return Finding(SECTION, name, False, "not installed", install_hint(module) or "")
    except BackendError as cause:
        return Finding(SECTION, name, False, str(cause.got), cause.fix or "")
    except Exception as cause:  # what a vendor's loader raises is not ours to list
        return Finding(SECTION, name, False, f"cannot load: {cause}")


def check_provider(name: str, provider: str) -> Finding:
    """Say whether ONNX Runtime was built with a GPU's provider, which Python code alone can use."""
    runtime = importlib.import_module("onnxruntime")
    ok = provider in runtime.get_available_providers()
    built = "built in, for Python code alone" if ok else "not built in"
    found = f"onnxruntime {runtime.__version__}, {built}"
    return judge(SECTION, name, ok, found, PROVIDER_FIX)


def _probe_onnx() -> tuple[bool, str, str]:
    runtime = importlib.import_module("onnxruntime")
    providers = ", ".join(runtime.get_available_providers())
    return True, f"onnxruntime {runtime.__version__} ({providers})", ""


def _probe_openvino() -> tuple[bool, str, str]:
    from vla_align_ros.inference.openvino import openvino

    return True, f"openvino {openvino.__version__}", ""


def _probe_openvino_bf16() -> tuple[bool, str, str]:
    from vla_align_ros.inference.openvino import find_abilities, openvino

    able = find_abilities(openvino.Core())
    found = f"openvino {openvino.__version__}, CPU with {', '.join(able)}"
    return "BF16" in able, found, BF16_FIX


def _probe_tensorrt(name: str) -> tuple[bool, str, str]:
    from vla_align_ros.inference.tensorrt.device import describe_device
    from vla_align_ros.inference.tensorrt.library import find_library

    title = find_library(name).title
    try:
        device = describe_device()
    except BackendError as cause:
        fix = "engines can be built here for another machine, but not run"
        return False, f"{title}, without a GPU ({cause.got})", fix
    return True, f"{title} on {device.name}", ""


def _probe_torch() -> tuple[bool, str, str]:
    importlib.import_module("torch")
    from vla_align_ros.inference.torch import GROUP

    fix = f"the training code is not installed: {pip_command('train')}"
    try:
        found = f"torch {version('torch')}"
    except PackageNotFoundError:
        found = "torch of unknown version"
    return bool(entry_points(group=GROUP)), found, fix


PROBES: dict[str, Callable[[], tuple[bool, str, str]]] = {
    "onnx": _probe_onnx,
    "openvino": _probe_openvino,
    "openvino_bf16": _probe_openvino_bf16,
    "tensorrt": lambda: _probe_tensorrt("tensorrt"),
    "tensorrt_rtx": lambda: _probe_tensorrt("tensorrt_rtx"),
    "torch": _probe_torch,
}
"""For each backend: whether it runs here, what was found, what mends it."""
