"""One view of TensorRT 10, TensorRT 11 and TensorRT-RTX: which is here, and what differs.

All three build strongly typed networks alone: the types in the graph are the types that run, once
TF32 is switched off.
Nothing that one of them lacks is used without asking its ``Library`` first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from dataclasses import dataclass, field
from typing import Any

from vla_align_ros.errors import BackendError
from vla_align_ros.extras import install_hint

TENSORRT = "tensorrt"
RTX = "tensorrt_rtx"
MODULES = {
    RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    TENSORRT: ("tensorrt", "tensorrt_bindings"),
}
"""Library -> the modules that may bring it: NVIDIA's package, and the wheel of its bindings."""
MAJORS = {RTX: (1, 1), TENSORRT: (10, 11)}
"""Library -> the first and the last major version that this adapter knows."""

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's name of a type that a graph may take or give -> the name in ``TensorSpec``."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Library:
    """An imported library.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx". version: as it says of itself, such as "10.3.0".
        module: the Python module.
    """

    name: str
    version: str
    module: Any = field(repr=False)

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{'TensorRT-RTX' if self.name == RTX else 'TensorRT'} {self.version}"

    @property
    def builds_without_gpu(self) -> bool:
        """Whether it builds for a GPU that is not here: TensorRT-RTX alone."""
        return self.name == RTX

    @property
    def keeps_timings(self) -> bool:
        """Whether building times kernels and a cache saves it: TensorRT-RTX times nothing."""
        return self.name == TENSORRT

    @property
    def compiles_at_load(self) -> bool:
        """Whether kernels are compiled when an engine is first run: TensorRT-RTX alone."""
        return self.name == RTX


def find_library(name: str) -> Library:
    """Import a library by name.

    Raises:
        BackendError: if it is not installed, cannot load, or is of a version that is not known.
    """
    causes = []
    for module_name in MODULES[name]:
        try:
            module = importlib.import_module(module_name)
        except ImportError as cause:
            if cause.name != module_name:
                causes.append(str(cause))
            continue
        except Exception as cause:  # what a vendor's loader raises is not ours to list
            causes.append(str(cause))
            continue
        return _check_version(Library(name, str(module.__version__), module))
    raise BackendError(
        f"{name} cannot be loaded",
        got="; ".join(causes) or f"no module {' or '.join(MODULES[name])}",
        expected=f"version {MAJORS[name][0]} to {MAJORS[name][1]}",
        fix=install_hint(name),
    )


def installed_libraries() -> list[str]:
    """Return the names of the libraries that are installed, without importing them."""
    return [
        name
        for name, modules in MODULES.items()
        if any(importlib.util.find_spec(module) is not None for module in modules)
    ]


def _check_version(library: Library) -> Library:
    first, last = MAJORS[library.name]
    major = library.version.partition(".")[0]
    if not (major.isdecimal() and first <= int(major) <= last):
        raise BackendError(
            f"{library.title} is not supported",
            got=library.version,
            expected=f"major version {first} to {last}",
            fix=install_hint(library.name),
        )
    return library


@functools.cache
def get_logger(library: Library) -> Any:
    """Return the process's one logger of a library; it keeps the errors, and tells the rest.

    TensorRT answers a failure with None or False; what went wrong it tells its logger alone, and
    of all loggers that it is given it uses the first. Read them by ``logger.take_errors()``.
    """
    trt = library.module
    severity = trt.ILogger.Severity
    bad = (severity.ERROR, severity.INTERNAL_ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in bad:
                self._errors.append(message.strip())
            elif level == severity.WARNING:
                _log.info("%s: %s", library.title, message.strip())
            else:
                _log.debug("%s: %s", library.title, message)

        def take_errors(self) -> list[str]:
            """Return the errors since the last call, the oldest first."""
            taken, self._errors = self._errors, []
            return taken

    return Logger()


def read_dtype(kind: Any) -> str:
    """Return the ``TensorSpec`` name of a TensorRT type; BackendError if no tensor may have it."""
    name = str(kind).rpartition(".")[2]
    if name not in DTYPES:
        raise BackendError(
            "a graph takes or gives a tensor of an odd type",
            got=name,
            expected=" or ".join(DTYPES.values()),
            fix="export the policy again",
        )
    return DTYPES[name]
