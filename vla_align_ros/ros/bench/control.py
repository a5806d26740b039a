"""Tells a process of a measurement what to do wrong, through one small file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "VLA_ALIGN_BENCH_CONTROL"


@dataclass(frozen=True, slots=True)
class Control:
    """A file with one word, "ok" where nothing is to go wrong; written whole or not at all."""

    path: Path

    @classmethod
    def from_environment(cls) -> Control:
        """The file that the process was started with."""
        return cls(Path(os.environ[VARIABLE]))

    def set(self, word: str) -> None:
        """Ask for a fault by its word."""
        new = self.path.with_suffix(".new")
        new.write_text(word, encoding="utf-8")
        new.replace(self.path)

    def get(self) -> str:
        """The word that was set last."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return "ok"
