"""Reads the files of a teacher's folder or Hugging Face repository, without running any of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_align_ros.errors import ConfigurationError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A teacher's folder, or its repository at a revision."""

    name: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it lies on this machine."""
        return Path(self.name).expanduser().is_dir()

    @property
    def location(self) -> str:
        """What `from_pretrained` takes."""
        return str(Path(self.name).expanduser()) if self.is_folder else self.name

    def find(self, filename: str, *, needed: bool = False) -> Path | None:
        """Path of a file, fetched if need be; None if the source has no such file.

        ConfigurationError if the repository cannot be reached; but where only a local copy can be,
        a file that it lacks is an error only if it is `needed`.
        """
        if self.is_folder:
            path = Path(self.name).expanduser() / filename
            return path if path.is_file() else None
        if self.name[:1] in "./~" or self.name.count("/") != 1:
            raise ConfigurationError(
                "There is no such teacher",
                got=f"{self.name}, which is no folder",
                expected="a folder with config.json and model.safetensors, or OWNER/REPOSITORY",
                fix="correct the path behind the colon of teacher.name",
            )
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.name, filename, revision=self.revision)
        except OSError as error:
            absent = isinstance(error.__cause__, EntryNotFoundError)
            if absent and not (needed and isinstance(error.__cause__, LocalEntryNotFoundError)):
                return None
            raise self._unreachable(error) from error
        return None if found is None else Path(found)

    def read_json(self, filename: str, *, needed: bool = False) -> dict[str, Any] | None:
        """A JSON object of the source, or None if it has no such file."""
        path = self.find(filename, needed=needed)
        if path is None:
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.refuse(f"{filename} that is no JSON ({error})", "a JSON object") from error
        if not isinstance(values, dict):
            raise self.refuse(f"{filename} with a {type(values).__name__}", "a JSON object")
        return values

    def read_config(self) -> dict[str, Any]:
        """config.json; ConfigurationError without one."""
        values = self.read_json("config.json", needed=True)
        if values is None:
            raise self.refuse("no config.json", "a model in Hugging Face's layout")
        return values

    def read_pixels(self) -> dict[str, Any]:
        """What the source publishes about pixels; empty if it publishes nothing."""
        settings = self.read_json("preprocessor_config.json")
        if settings is None:
            settings = (self.read_json("processor_config.json") or {}).get("image_processor", {})
        return settings

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, from the headers alone."""
        from safetensors import safe_open

        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._weight_files():
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (a safe_open is no dict)
                    shapes[key] = tuple(file.get_slice(key).get_shape())
        return shapes

    def read_weights(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with `prefix`, by the rest of their names."""
        from safetensors import safe_open

        tensors: dict[str, Tensor] = {}
        for path in self._weight_files():
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith(prefix):
                        tensors[key.removeprefix(prefix)] = file.get_tensor(key)
        return tensors

    def _weight_files(self) -> list[Path]:
        single = self.find(WEIGHTS)
        if single is not None:
            return [single]
        index = self.read_json(WEIGHTS_INDEX)
        names = sorted(set(index["weight_map"].values())) if index is not None else []
        paths = [path for path in map(self.find, names) if path is not None]
        if not paths or len(paths) != len(names):
            raise self.refuse("no whole set of .safetensors files", f"{WEIGHTS} or {WEIGHTS_INDEX}")
        return paths

    def refuse(self, got: object, expected: object, fix: str | None = None) -> ConfigurationError:
        """An error about this source, to be raised."""
        return ConfigurationError(
            f"The teacher {self.name} cannot be used",
            got=got,
            expected=expected,
            fix=fix or "check teacher.name; a folder must hold the whole repository",
        )

    def _unreachable(self, error: Exception) -> ConfigurationError:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return ConfigurationError(
            f"The teacher {self.name} cannot be fetched",
            got=first,
            expected="a public or permitted repository and a network, or a filled cache",
            fix=f"`hf download {self.name}` where there is a network (`hf auth login` for a gated"
            " one), or give the folder of a copy",
        )
