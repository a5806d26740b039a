"""A run's folder, read back: its configuration, how its inputs are made, its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.checkpoint import CheckpointReader, list_checkpoints
from training.config import RunConfig
from training.consolidate import CONFIG_FILE, PROCESSOR_FOLDER, load_student, read_config
from training.golden_inputs import GOLDEN_INPUTS, Arrays, read_golden_inputs
from training.model import PrismaticVLA
from training.model.checkpoint import WEIGHTS, find_network, is_consolidated
from training.model.openvla import load_openvla
from training.setup_model import build_student, compute_dtype
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError, TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What `vla-align train` left, or is still writing."""

    folder: Path
    config: RunConfig
    processor: Processor

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open it, finished or not; TrainingError if it is none."""
        if not (folder / CONFIG_FILE).is_file():
            raise TrainingError(
                "This is no run",
                got=f"no {CONFIG_FILE} in {folder}",
                expected="a folder that `vla-align train --out` filled",
                fix="check the path",
            )
        return cls(folder, read_config(folder), Processor.load(folder / PROCESSOR_FOLDER))

    def golden_inputs(self) -> Arrays:
        """The held-out observations that it keeps, as arrays."""
        return read_golden_inputs(self.folder / GOLDEN_INPUTS, self.processor)

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that it computes in; None for float32."""
        return compute_dtype(self.config) if self.config.precision == "bf16" else None

    def load_before(self) -> PrismaticVLA:
        """The network as training found it: pretrained where there is something pretrained."""
        with torch.random.fork_rng(devices=[]):
            return build_student(self.config, self.processor)[0].eval()

    def load_after(self) -> PrismaticVLA:
        """The network as it is now: the finished one, or the newest checkpoint's."""
        network = find_network(self.folder) if is_consolidated(self.folder) else None
        if network == self.folder:
            return PrismaticVLA.load(self.folder)
        if network is not None:
            backend = self.config.model.attention_backend
            dtype = compute_dtype(self.config)
            return load_openvla(network, dtype=dtype, attention_backend=backend).model.eval()
        found = list_checkpoints(self.folder / "checkpoints")
        if not found:
            raise TrainingError(
                "The run has no weights yet",
                got=f"neither {WEIGHTS} nor a checkpoint in {self.folder}",
                expected="one of them",
                fix="wait for its first checkpoint",
            )
        return load_student(self.folder, CheckpointReader(found[-1])).eval()


def name_folders(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigurationError(
        "A folder is named twice",
        got=", ".join(map(str, folders)),
        expected="different folders",
        fix="leave one out",
    )
