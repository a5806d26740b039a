"""What makes an export's results beside their inputs: this package's own code, and libraries."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vla_align_ros.contract import files

LIBRARIES = (
    *("numpy", "ml_dtypes", "onnx", "onnx-ir", "onnxscript", "onnxruntime"),
    *("torch", "transformers", "timm"),
)
_TRAINING, _ROBOT = Path(__file__).parents[1], Path(files.__file__).parents[1]
SOURCES = (
    *(_TRAINING / name for name in ("export", "model", "sight")),
    *(_TRAINING / f"{name}.py" for name in ("golden_inputs", "run_weights")),
    *(_ROBOT / name for name in ("contract", "inference", "runtime")),
)
"""What traces, rounds, runs and judges graphs."""


@functools.cache
def describe_makers() -> dict[str, Any]:
    """Return JSON that differs where another version of the code or of a library is at work."""
    return {"code": hash_sources(SOURCES), "versions": library_versions()}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that make graphs, as far as they are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # engines are made without torch, and few towers are timm's
            continue
    return found


def hash_sources(places: Iterable[Path]) -> str:
    """Return a sha256 of files, and of those in folders, by their names and content."""
    state = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(place.parent).as_posix()
                state.update(f"{name} {files.hash_file(path.resolve())[0]}\n".encode())
    return state.hexdigest()
