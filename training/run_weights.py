"""The weights of a finished run: its own file, or openvla/ where it started from OpenVLA."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from training.model import PrismaticVLA, VlaConfig
from training.model.checkpoint import (
    DESCRIPTION,
    OPENVLA_FOLDER,
    WEIGHTS,
    find_network,
    read_json,
)
from training.model.openvla import load_openvla, open_shards, openvla_config, to_published
from training.model.openvla.files import CONFIG, INDEX, read_document
from training.model.openvla.load import build_empty, compute_buffers
from vla_align_ros.contract.files import hash_file
from vla_align_ros.errors import TrainingError


@dataclass(frozen=True, slots=True)
class RunWeights:
    """Where a run's network lies, and how it is described and read.

    folder: the run's. published: the folder in OpenVLA's layout, None where the run has files of
    its own.
    """

    folder: Path
    published: Path | None

    @classmethod
    def find(cls, run: Path) -> RunWeights:
        """Look for the network's description; TrainingError if the run has none.

        The weights themselves need not be there: `check` asks for them.
        """
        found = find_network(run)
        if found is not None:
            return cls(run, None if found == run else found)
        published = run / OPENVLA_FOLDER
        apart = published.is_dir()
        raise TrainingError(
            "the run has no weights of a whole network",
            got=f"an adapter alone in {published}" if apart else f"no {DESCRIPTION} in {run}",
            expected=f"{DESCRIPTION} and {WEIGHTS}, or {OPENVLA_FOLDER}/ of a run of OpenVLA",
            fix=f"vla-align consolidate {run}, which makes them of its newest checkpoint",
        )

    def check(self) -> None:
        """Raise TrainingError unless the weights are there."""
        missing = [name for name in self.names if not (self.folder / name).is_file()]
        if missing:
            raise TrainingError(
                "the run lacks a part of its network",
                got=f"no {', '.join(missing)} in {self.folder}",
                expected="the files that training leaves",
                fix=f"vla-align consolidate {self.folder}, which makes them of its newest"
                " checkpoint",
            )

    @property
    def names(self) -> list[str]:
        """Files below the run's folder that decide what the network computes."""
        if self.published is None:
            return [DESCRIPTION, WEIGHTS]
        names = {CONFIG, *open_shards(self.published).files.values()}
        names |= {INDEX} if (self.published / INDEX).is_file() else set()
        return [f"{self.published.name}/{name}" for name in sorted(names)]

    def hashes(self) -> dict[str, str]:
        """The sha256 of every one of these files."""
        return {name: hash_file((self.folder / name).resolve())[0] for name in self.names}

    def digest(self) -> str:
        """One sha256 that names the network, wherever its folder lies."""
        lines = sorted(f"{name} {value}\n" for name, value in self.hashes().items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def build_empty(self) -> PrismaticVLA:
        """The network on the meta device, but for the tables that no file stores."""
        model = build_empty(self._read_config())
        compute_buffers(model, "cpu")
        return model

    def describe(self) -> dict[str, Any]:
        """What model.json says, or would say, of the network."""
        if self.published is None:
            return read_json(self.folder / DESCRIPTION)
        return build_empty(self._read_config()).describe()

    def load(self) -> PrismaticVLA:
        """The network in float32 on the CPU, in eval mode."""
        if self.published is None:
            return PrismaticVLA.load(self.folder)
        return load_openvla(self.published, dtype=torch.float32).model

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[str], Tensor]]:
        """Give a function from a tensor's name in the network to its value in float32.

        One tensor is read at a time: all of them together may be more than the memory.
        """
        if self.published is not None:
            shards = open_shards(self.published)

            def read_published(name: str) -> Tensor:
                theirs = to_published(name)
                return shards.read([theirs])[theirs].float()

            yield read_published
            return
        with safe_open(self.folder / WEIGHTS, framework="pt") as stored:
            aliases = dict(stored.metadata() or {})

            def read(name: str) -> Tensor:
                tensor: Tensor = stored.get_tensor(aliases.get(name, name))
                return tensor

            yield read

    def _read_config(self) -> VlaConfig:
        if self.published is None:
            return VlaConfig.from_dict(read_json(self.folder / DESCRIPTION))
        shapes = open_shards(self.published).shapes
        return openvla_config(read_document(self.published, CONFIG), shapes)
