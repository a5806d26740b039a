"""Robot runtime for vision-language-action policies: contract, inference, execution, safety."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("vla_align_ros")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+not-installed"

__all__ = ["__version__"]
