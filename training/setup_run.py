"""Turns a configuration and data into the parts of a run: processor, model, teacher, caches."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.adapters import AdapterReport
from training.alignment import Teacher
from training.config import RunConfig
from training.data.dataset import ActionChunkDataset
from training.data.features import FeatureStore, fingerprint_weights
from training.data.sources import check_names, open_sources
from training.model import ActionTokens, VisionConfig
from training.objective import Objective, grounding_targets
from training.setup_model import (
    build_objective,
    build_student,
    compute_dtype,
    find_teacher,
    fit_to_data,
)
from training.setup_processor import build_processor
from training.teacher_cache import open_teacher_store
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import TrainingError

_GROUNDING_POINTS = (("object_u", "object_v"), ("receptacle_u", "receptacle_v"))


@dataclass
class RunParts:
    """Everything that a trainer needs and that a configuration decides."""

    config: RunConfig
    processor: Processor
    data: ActionChunkDataset
    objective: Objective
    adapter: AdapterReport
    teacher: Teacher | None = None
    student_features: FeatureStore | None = None
    teacher_features: FeatureStore | None = None
    grounding: Tensor | None = None  # (N, K, 2) of the recorded pictures

    def load(
        self,
        indices: NDArray[np.int64],
        *,
        frozen_vision: bool,
        passes: NDArray[np.int64] | None = None,
    ) -> dict[str, Any]:
        """Inputs of B frames on the CPU: pictures, or features where a cache has them.

        With `passes` (B,), how often each came before, pictures are augmented if the configuration
        says so. What a teacher must still look at is under `teacher_pixels`. Safe in threads.
        """
        student = self.student_features if frozen_vision else None
        looks = self.teacher is not None and self.teacher_features is None
        batch: dict[str, Any] = self.data.batch(
            indices, pictures=student is None or looks, passes=passes
        )
        images = batch.pop("images", None)
        if student is not None:
            batch["vision_features"] = student.rows(indices)
            batch.pop("pixel_values", None)
        if self.teacher_features is not None:
            batch["teacher_features"] = self.teacher_features.rows(indices)
        elif self.teacher is not None:
            batch["teacher_pixels"] = self._preprocess(images.numpy())
        if self.grounding is not None:
            grid, sigma = self.objective.model.grid, self.config.loss.grounding_sigma
            points = self.grounding_points(indices, passes)
            batch["grounding"] = grounding_targets(points, grid, sigma)
        if self.action_tokens is not None:
            batch["action_tokens"] = self.action_tokens.encode(batch["actions"][:, 0])
        return batch

    def grounding_points(
        self, indices: NDArray[np.int64], passes: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Where the named things are in the pictures that `load` gives (B, K, 2).

        In shares of width and height; below 0 or above 1 for what a crop leaves out.
        """
        assert self.grounding is not None
        windows = torch.from_numpy(self.data.windows(indices, passes)).float().unsqueeze(1)
        start, end = windows[..., :2], windows[..., 2:]
        return (self.grounding[indices] - start) / (end - start)

    @functools.cached_property
    def action_tokens(self) -> ActionTokens | None:
        """How actions become words, where the network is to learn any."""
        model, config = self.objective.model, self.config
        if model.action_tokens is None and config.loss.tokens > 0:
            return ActionTokens(int(model.llm.config.vocab_size), config.model.head.bins)
        return model.action_tokens

    def teach(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Let the teacher look at its pixels, on the device on which both are."""
        if "teacher_pixels" not in batch or self.teacher is None:
            return batch
        batch = dict(batch)
        pixels = batch.pop("teacher_pixels")
        if self.objective.align_weight != 0:
            features = self.teacher.features(pixels.flatten(0, 1))
            batch["teacher_features"] = features.reshape(len(pixels), -1, features.shape[-1])
        return batch

    def batch(self, indices: NDArray[np.int64], *, frozen_vision: bool) -> dict[str, Any]:
        """All of the objective's inputs for B frames."""
        return self.teach(self.load(indices, frozen_vision=frozen_vision))

    def _preprocess(self, images: NDArray[np.uint8]) -> Tensor:
        """Pictures (B, [cameras,] S, S, 3) uint8 as the teacher wants: (B, cameras, 3, T, T)."""
        assert self.teacher is not None
        flat = images.reshape(-1, *images.shape[-3:])
        pixels = self.teacher.preprocess(flat, self.objective.model.grid)
        return pixels.unflatten(0, (len(images), -1))


def set_up(
    config: RunConfig,
    roots: Sequence[str | Path],
    cache: Path | None,
    *,
    progress: bool,
    device: torch.device | str = "cpu",
) -> RunParts:
    """Open the data, build the model from `config.seed`, and fill the feature caches on `device`.

    The networks of the parts stay on the CPU, but for a teacher that filled a cache.
    """
    config.check()
    sources = open_sources(roots, config.data)
    check_names(sources, config.data)
    processor = build_processor(config, sources, cache)
    data = ActionChunkDataset(
        sources,
        processor,
        config.data,
        seed=config.seed,
        cache_dir=cache,
        progress=progress,
        refuse_unknown=True,
    )
    _check_held_out(data)
    config = fit_to_data(config, processor)
    model, adapter = build_student(config, processor)
    teacher = find_teacher(config)
    parts = RunParts(
        config, processor, data, build_objective(config, model, teacher), adapter, teacher
    )
    if config.loss.grounding > 0:
        parts.grounding = _grounding_points(data)
    if config.data.keeps_features:
        _fill_caches(parts, cache, progress, torch.device(device))
    return parts


def starts_frozen(config: RunConfig) -> bool:
    """Whether the vision tower is still for the first steps, or for good."""
    return config.optim.vision_lr is None or config.optim.vision_from_step > 0


def _check_held_out(data: ActionChunkDataset) -> None:
    held_out = len(data.indices("val"))
    if not held_out and not len(data.indices("train")):
        counts = [f"{number} {what}" for what, number in data.left_out.items() if number]
        raise TrainingError(
            "No frame is left to train on",
            got=f"{len(data)} frames, of them {', '.join(counts)}".replace("_", " "),
            expected="episodes whose task is a text, that are whole, and that move",
            fix="correct meta/tasks (`vla-align data info` prints it), the videos"
            " (`vla-align data check`), or --set data.drop_near_zero and data.instructions",
        )
    if not held_out:
        raise TrainingError(
            "No episode is held out",
            got=f"{len(data.episode_seed)} episodes, none of them for validation",
            expected="at least one, to measure on",
            fix="collect more episodes or raise --set data.validation=...",
        )


def _grounding_points(data: ActionChunkDataset) -> Tensor:
    names = list(data.environment_names)
    missing = [name for pair in _GROUNDING_POINTS for name in pair if name not in names]
    if missing:
        raise TrainingError(
            "The data has no labels for grounding",
            got=f"no {missing} in observation.environment_state",
            expected="where the named things appear in the picture",
            fix="--set loss.grounding=0",
        )
    columns = [[names.index(name) for name in pair] for pair in _GROUNDING_POINTS]
    return torch.from_numpy(data.environment_state[:, columns])


def _fill_caches(
    parts: RunParts, folder: Path | None, progress: bool, device: torch.device
) -> None:
    data, model, teacher = parts.data, parts.objective.model, parts.teacher
    dtype = compute_dtype(parts.config)
    precision = "-fp32" if dtype == torch.float32 else ""  # not to be taken for those of bf16
    if starts_frozen(parts.config):
        towers = copy.deepcopy(model.vision).to(device, dtype).eval()

        @torch.no_grad()
        def look(indices: NDArray[np.int64]) -> Tensor:
            pixels = data.batch(indices)["pixel_values"].to(device, dtype)
            pieces = [tower(pixels[:, 3 * i : 3 * i + 3]) for i, tower in enumerate(towers)]
            return torch.cat(pieces, dim=-1)

        key = f"student-{_name_look(parts)}{precision}"
        parts.student_features = FeatureStore(data, key, look, folder, progress=progress)
    if teacher is not None:
        parts.teacher_features = open_teacher_store(
            data, teacher.to(device), model.grid, folder, progress=progress
        )


def _name_look(parts: RunParts) -> str:
    """Name of all that decides what the frozen tower sees, but for the recorded pictures."""
    weights = {
        name.replace(".base_layer.", "."): value
        for name, value in parts.objective.model.vision.state_dict().items()
        if ".lora_" not in name  # random at the start, and then without effect
    }
    described = parts.objective.model.describe_vision()
    decisive: list[Any] = [
        [tower.select_layers for tower in described],
        parts.processor.image_transform.to_dict(),
    ]
    if any(architectures := [_name_architecture(tower) for tower in described]):
        decisive.append(architectures)
    how = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    return f"{fingerprint_weights(weights)}-{how}"


def _name_architecture(tower: VisionConfig) -> dict[str, Any]:
    """What of a tower neither weights nor layers tell, such as heads: nothing of the embedded."""
    values = dataclasses.asdict(tower)
    defaults = dataclasses.asdict(VisionConfig())
    return {
        key: values[key]
        for key in ("source", "final_norm", "backbone")
        if values[key] != defaults[key]
    }
