"""The networks that are looked at: each run's, before training and as it is now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.checkpoint import CheckpointReader, list_checkpoints
from training.config import RunConfig
from training.consolidate import CONFIG_FILE, OPENVLA_FOLDER, PROCESSOR_FOLDER, load_student
from training.golden_inputs import GOLDEN_INPUTS
from training.model import PrismaticVLA
from training.model.checkpoint import WEIGHTS, read_json
from training.model.openvla import load_openvla
from training.setup_model import build_student, compute_dtype
from training.sight.scenes import scenes_from_golden
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError, TrainingError

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run's folder: what it is called, its configuration, how its inputs are made."""

    name: str
    folder: Path
    config: RunConfig
    processor: Processor

    @classmethod
    def open(cls, folder: Path, name: str) -> Run:
        """Open it, finished or not; TrainingError if it is none."""
        if not (folder / CONFIG_FILE).is_file():
            raise TrainingError(
                "This is no run",
                got=f"no {CONFIG_FILE} in {folder}",
                expected="a folder that `vla-align train --out` filled",
                fix="check the path",
            )
        config = RunConfig.from_dict(read_json(folder / CONFIG_FILE))
        return cls(name, folder, config, Processor.load(folder / PROCESSOR_FOLDER))

    def scenes(self) -> list[Observation]:
        """Held-out observations that the run keeps."""
        return scenes_from_golden(self.folder / GOLDEN_INPUTS, self.processor)

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
        if (self.folder / WEIGHTS).is_file():
            return PrismaticVLA.load(self.folder)
        if (self.folder / OPENVLA_FOLDER).is_dir():
            backend = self.config.model.attention_backend
            path = self.folder / OPENVLA_FOLDER
            dtype = compute_dtype(self.config)
            return load_openvla(path, dtype=dtype, attention_backend=backend).model.eval()
        found = list_checkpoints(self.folder / "checkpoints")
        if not found:
            raise TrainingError(
                "The run has no weights yet",
                got=f"neither {WEIGHTS} nor a checkpoint in {self.folder}",
                expected="one of them",
                fix="wait for its first checkpoint",
            )
        return load_student(self.folder, CheckpointReader(found[-1])).eval()


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Open runs that can look at the same scenes, under names that differ.

    Raises:
        ConfigurationError: if they have other cameras, or another state, than the first.
        TrainingError: if one is no run.
    """
    names = name_runs(folders)
    runs = [Run.open(folder, name) for folder, name in zip(folders, names, strict=True)]
    wanted = _inputs(runs[0])
    for run in runs[1:]:
        if _inputs(run) != wanted:
            raise ConfigurationError(
                "The runs cannot look at the same scenes",
                got=f"{run.folder} reads {_inputs(run)}",
                expected=f"{wanted}, as {runs[0].folder} does",
                fix="diagnose them one at a time",
            )
    return runs


def name_runs(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigurationError(
        "A run is named twice",
        got=", ".join(map(str, folders)),
        expected="different folders",
        fix="leave one out",
    )


def load_networks(run: Run, *, before: bool) -> Iterator[tuple[str, PrismaticVLA]]:
    """The run's networks one at a time, so that no two large ones are in memory."""
    if before:
        yield BEFORE, run.load_before()
    yield AFTER, run.load_after()


def _inputs(run: Run) -> tuple[object, ...]:
    spec = run.processor.spec
    state = None if spec.state is None else tuple(spec.state.names)
    return tuple(camera.name for camera in spec.cameras), state
