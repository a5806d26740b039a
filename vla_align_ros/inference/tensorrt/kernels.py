"""TensorRT-RTX compiles its kernels when an engine first runs; kept on disk, only once a robot."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vla_align_ros.contract.files import claim_folder, read_sealed, replace_durably, seal

_log = logging.getLogger(__name__)


class KernelCache:
    """One file an engine set: its sha256, then TensorRT-RTX's own content.

    The content is code for the GPU, so it belongs to the user who runs the robot, never to a
    bundle, and a folder that others can reach into is neither read nor written. TensorRT-RTX
    refuses what another driver, GPU or version wrote; a file that was damaged is dropped by its
    hash before. Without a file, or room for one, all is compiled again.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._loaded = b""

    def attach(self, config: Any) -> bool:
        """Give one engine's IRuntimeConfig the kernels; all engines share one cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            content = self._read()
            if content and self._cache.deserialize(content):
                self._loaded = content
        return bool(config.set_runtime_cache(self._cache))

    def save(self) -> None:
        """Write what was compiled since, in one step; a failure is told, and costs time alone."""
        if self._cache is None:
            return
        content = bytes(memoryview(self._cache.serialize()))
        if content == self._loaded:
            return
        try:
            claim_folder(self.path.parent)
            replace_durably(self.path, seal(content), self.path.parent)
        except OSError as cause:
            _log.warning("compiled kernels are not kept in %s: %s", self.path, cause)

    def _read(self) -> bytes:
        if not self.path.exists():
            return b""
        try:
            claim_folder(self.path.parent)
        except OSError as cause:
            _log.warning("compiled kernels are not taken from %s: %s", self.path, cause)
            return b""
        return read_sealed(self.path)

    def close(self) -> None:
        """Let go of the library's cache; after every context that uses it."""
        self._cache = None
