"""Who acts: a bundle on the robot's own engine, or a run as torch has it, before any export."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from training.export.torch_policy import prepare_policy
from training.model.checkpoint import WEIGHTS
from training.run_folder import Run
from training.run_weights import RunWeights
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.files import hash_file
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.manifest import MANIFEST_NAME
from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.inference.torch import TorchBackend
from vla_align_ros.runtime.policy import Policy


class Acting(Protocol):
    """What an episode needs of a policy; `runtime.policy.Policy` is one."""

    @property
    def spec(self) -> PolicySpec:
        """Cameras, state and actions."""

    @property
    def bundle_id(self) -> str:
        """What its episodes are kept under, in hex."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Plan a chunk of actions."""

    def warm_up(self) -> None:
        """Infer a few times, so that the first real call is not slow."""

    def close(self) -> None:
        """Free the engine."""


class RunPolicy:
    """A finished run in float32 torch; its id is the hash of its weights."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._run = Run.open(folder)
        model = self._run.load_after()
        policy = prepare_policy(
            model, self._run.processor, dtype=torch.float32, device=torch.device("cpu")
        )
        self.bundle_id = identify_run(folder)
        self._backend = TorchBackend(policy, threads=threads)

    @property
    def spec(self) -> PolicySpec:
        """Cameras, state and actions."""
        return self._run.processor.spec

    def infer(self, observation: Observation) -> ActionChunk:
        """Plan a chunk of actions; errors as `runtime.policy.Policy.infer`."""
        outputs = self._backend.infer(self._run.processor.prepare(observation))
        return self._run.processor.decode(outputs, observation)

    def warm_up(self) -> None:
        """Infer once on what the run keeps of its held-out episodes."""
        self.infer(next(iterate_observations(self._run.golden_inputs(), self.spec)))

    def close(self) -> None:
        """Free the network."""
        self._backend.close()


def open_policy(path: str | Path, threads: int = 1) -> Acting:
    """Open a bundle's folder, or a finished run's.

    Raises:
        BundleError: if it is no run, and as a bundle refused. TrainingError: if a run has no
        weights.
    """
    if is_run(Path(path)):
        return RunPolicy(Path(path), threads)
    return Policy.open(path, threads=threads)


def identify(path: str | Path) -> str:
    """The id of a bundle or a run, without opening its engine."""
    if is_run(Path(path)):
        return identify_run(Path(path))
    return Bundle.open(path).id


def read_spec(path: str | Path) -> PolicySpec:
    """Cameras, state and actions of a bundle or a run, without opening its engine."""
    if is_run(Path(path)):
        return Run.open(Path(path)).processor.spec
    return Bundle.open(path).spec


def find_training_seed(folder: Path) -> int | None:
    """The seed that a run was trained with; None for a bundle."""
    return Run.open(folder).config.seed if is_run(folder) else None


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's, and no bundle."""
    return not (folder / MANIFEST_NAME).exists() and (folder / "config.json").is_file()


def identify_run(folder: Path) -> str:
    """Hash of a finished run's weights, 64 hex digits; TrainingError if it has none."""
    weights = RunWeights.find(folder)
    weights.check()
    if weights.published is None:
        return hash_file(folder / WEIGHTS)[0]
    return weights.digest()
