"""Timings of kernels, kept between builds: the full TensorRT measures each only once a GPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.export.compile_options import SETTINGS
from training.files import hold_lock, replace_atomically
from vla_align_ros.contract.files import read_sealed, seal
from vla_align_ros.errors import DataError

if TYPE_CHECKING:
    from training.export.compile_target import Target


class TimingCache:
    """One file for a library's version, a GPU and our settings: sha256, then TensorRT's content.

    TensorRT finds entries by the content of a layer, and refuses a cache of another version or
    device by itself, but not one of settings that allowed other kernels; a file that was damaged or
    cut is dropped by its hash before it is looked at.

    Args:
        folder: of all caches. target: with library and device.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        library = target.library
        words = f"{target.name}-{target.device}-{SETTINGS}"
        name = "".join(c if c.isalnum() else "_" for c in words)
        self.path = folder / "timings" / f"{library.name}-{library.version}-{name}"
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give the builder's configuration what earlier builds measured."""
        self._cache = config.create_timing_cache(self.read())
        if not config.set_timing_cache(self._cache, False):
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    def read(self) -> bytes:
        """Return the cache's content, empty if there is none or it is damaged."""
        return read_sealed(self.path)

    def save(self, config: Any) -> None:
        """Add what this build measured; two builds at once lose nothing of each other's."""
        try:
            with hold_lock(self.path.with_name(self.path.name + ".lock")):
                others = self.read()
                if others:
                    self._cache.combine(config.create_timing_cache(others), False)
                body = bytes(memoryview(self._cache.serialize()))
                with replace_atomically(self.path) as temporary:
                    temporary.write_bytes(seal(body))
        except (OSError, DataError) as cause:
            warnings.warn(f"timings are not kept: {cause}", RuntimeWarning, stacklevel=2)
