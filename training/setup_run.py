"""Turns a configuration and data into the parts of a run: processor, model, teacher, caches."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.alignment import Aligner, EmbeddedTeacher
from training.config import RunConfig
from training.data.dataset import ActionChunkDataset, dataset_statistics, open_readers
from training.data.features import FeatureStore, fingerprint_weights
from training.data.tokenizer import BOS, PAD, build_word_tokenizer
from training.model import PrismaticVLA
from training.model.embedded import IMAGENET_MEAN, IMAGENET_STD
from training.objective import Objective, grounding_targets
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec
from vla_align_ros.errors import ConfigurationError, TrainingError

PROMPT = "{instruction}"
PROMPT_TOKENS = 16
_VOCABULARY_MULTIPLE = 64
_GROUNDING_POINTS = (("object_u", "object_v"), ("receptacle_u", "receptacle_v"))


@dataclass
class RunParts:
    """Everything that a trainer needs and that a configuration decides."""

    config: RunConfig
    processor: Processor
    data: ActionChunkDataset
    objective: Objective
    student_features: FeatureStore | None
    teacher_features: FeatureStore | None
    grounding: Tensor | None

    def batch(self, indices: NDArray[np.int64], *, frozen_vision: bool) -> dict[str, Any]:
        """The objective's inputs for B frames; features come from caches where there are any."""
        aligned = self.objective.aligner is not None and self.config.alignment.weight > 0
        student = self.student_features if frozen_vision else None
        online_teacher = aligned and self.teacher_features is None
        batch: dict[str, Any] = self.data.batch(indices, pictures=student is None or online_teacher)
        if student is not None:
            batch["vision_features"] = student.rows(indices)
        if aligned:
            batch["teacher_features"] = (
                self.teacher_features.rows(indices)
                if self.teacher_features is not None
                else self._teach(batch["images"].numpy())
            )
        if self.grounding is not None:
            grid, sigma = self.objective.model.grid, self.config.loss.grounding_sigma
            batch["grounding"] = grounding_targets(self.grounding[indices], grid, sigma)
        if self.objective.model.action_tokens is not None:
            batch["action_tokens"] = self.objective.model.action_tokens.encode(
                batch["actions"][:, 0]
            )
        return batch

    def _teach(self, images: NDArray[np.uint8]) -> Tensor:
        assert self.objective.aligner is not None
        return self.objective.aligner.targets(images, self.objective.model.grid)


def set_up(
    config: RunConfig, roots: Sequence[str | Path], cache: Path | None, *, progress: bool
) -> RunParts:
    """Open the data, build the model from `config.seed`, and fill the feature caches."""
    _check_image_size(config)
    processor = build_processor(config, roots)
    data = ActionChunkDataset(
        roots,
        processor,
        validation_fraction=config.data.validation,
        cache_dir=cache,
        progress=progress,
    )
    _check_held_out(data)
    config = with_vocabulary(config, processor.tokenizer.vocabulary_size)
    torch.manual_seed(config.seed)
    model = PrismaticVLA(config.model)
    aligner = None
    if config.alignment.weight > 0:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        teacher = EmbeddedTeacher(config.teacher.layer, dtype=dtype)
        layers = int(model.llm.config.num_hidden_layers)
        aligner = Aligner(config.alignment, teacher, model.llm_width, layers)
    parts = RunParts(
        config, processor, data, Objective(model, aligner, config.loss), None, None, None
    )
    if config.loss.grounding > 0:
        parts.grounding = _grounding_points(data)
    if config.data.cache:
        _fill_caches(parts, cache, progress)
    return parts


def build_processor(config: RunConfig, roots: Sequence[str | Path]) -> Processor:
    """The contract that training and robot share, from the data's own statistics and words."""
    readers = open_readers(roots)
    head = config.model.head
    camera = readers[0].schema.features["observation.images.front"].shape
    state = readers[0].schema.features["observation.state"].names
    spec = PolicySpec(
        cameras=(CameraSpec("front", camera[0], camera[1]),),
        state=StateSpec(tuple(state or ())) if config.model.state is not None else None,
        action=ActionSpec(
            frame="base_link", rate_hz=float(readers[0].info["fps"]), horizon=head.horizon
        ),
    )
    statistics = dataset_statistics(roots)
    normalizers = {"action": Normalizer("quantile", statistics["action"])}
    if spec.state is not None:
        normalizers["state"] = Normalizer("quantile", statistics["state"])
    words = build_word_tokenizer(task for reader in readers for task in reader.tasks)
    tokenizer = PromptTokenizer(
        words, PromptTemplate(PROMPT), PROMPT_TOKENS, bos_token=BOS, pad_token=PAD
    )
    transform = ImageTransform(size=config.data.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Processor(spec, transform, normalizers, tokenizer)


def with_vocabulary(config: RunConfig, words: int) -> RunConfig:
    """Give a from-scratch LLM a vocabulary that holds the words and, behind them, action bins."""
    llm = config.model.llm
    if llm.config is None or "vocab_size" in llm.config:
        return config
    needed = words + (config.model.head.bins if config.model.head.kind == "tokens" else 0)
    size = math.ceil(needed / _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    llm = dataclasses.replace(llm, config={**llm.config, "vocab_size": size})
    return dataclasses.replace(config, model=dataclasses.replace(config.model, llm=llm))


def starts_frozen(config: RunConfig) -> bool:
    """Whether the vision tower is still for the first steps, or for good."""
    return config.optim.vision_lr is None or config.optim.vision_from_step > 0


def _check_image_size(config: RunConfig) -> None:
    towers = sorted({tower.image_size for tower in config.model.vision})
    if towers != [config.data.image_size]:
        raise ConfigurationError(
            "The pictures do not fit the vision tower",
            got=f"data.image_size {config.data.image_size} px",
            expected=f"the towers' {towers} px",
            fix="give both the same size in the recipe",
        )


def _check_held_out(data: ActionChunkDataset) -> None:
    if not len(data.indices("val")):
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


def _fill_caches(parts: RunParts, folder: Path | None, progress: bool) -> None:
    data, model, aligner = parts.data, parts.objective.model, parts.objective.aligner
    dtype, precision = torch.bfloat16, ""
    if parts.config.precision == "fp32":
        dtype, precision = torch.float32, "-fp32"  # not to be taken for the features of bf16
    if starts_frozen(parts.config):
        towers = copy.deepcopy(model.vision).to(dtype).eval()

        @torch.no_grad()
        def look(indices: NDArray[np.int64]) -> Tensor:
            pixels = data.batch(indices)["pixel_values"].to(dtype)
            pieces = [tower(pixels[:, 3 * i : 3 * i + 3]) for i, tower in enumerate(towers)]
            return torch.cat(pieces, dim=-1)

        layers = "_".join(str(n) for v in parts.config.model.vision for n in v.select_layers)
        key = f"student-{fingerprint_weights(model.vision.state_dict())}-{layers}{precision}"
        parts.student_features = FeatureStore(data, key, look, folder, progress=progress)
    if aligner is not None:

        def teach(indices: NDArray[np.int64]) -> Tensor:
            return aligner.targets(data.images(indices), model.grid)

        key = f"teacher-{aligner.teacher.name}{parts.config.teacher.layer}-{model.grid}{precision}"
        parts.teacher_features = FeatureStore(data, key, teach, folder, progress=progress)
