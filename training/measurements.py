"""Evaluates a run and looks at its sight where it is time, and remembers what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from training.alignment import compute_targets
from training.evaluate import OfflineEvaluator
from training.golden_inputs import GOLDEN_INPUTS, choose_frames
from training.optimizers import vision_rate
from training.parallel import Ranks, free_gathered
from training.progress import Progress
from training.setup_model import compute_dtype
from training.setup_run import RunParts
from training.sharing import autocast
from training.sight.scenes import scenes_from_golden
from training.sight.watch import SightWatch

SIGHT_FOLDER = "sight"


class Measurements:
    """Offline evaluation and the watch of the sight, on all ranks; written by the first."""

    def __init__(self, parts: RunParts, out: Path, ranks: Ranks, progress: Progress) -> None:
        self._parts, self._ranks, self._progress = parts, ranks, progress
        self._evaluator = OfflineEvaluator(parts, ranks)
        self._watch = build_watch(parts, out, ranks)
        self.history = list[dict[str, float]]()
        self._looked, self._sight = -1, dict[str, float]()

    def take_if_due(self, step: int, keep: Callable[[], None]) -> None:
        """Measure after `step` steps if it is time for it and not done, and `keep` each result.

        Changes no weight and draws no random number.
        """
        config = self._parts.config
        steps = config.optim.steps
        if self._watch is not None and self._watch.due(step, steps) and self._looked < step:
            self._look(step)
            keep()
        due = step > 0 and (step % config.evaluate_every == 0 or step == steps)
        if due and not (self.history and self.history[-1]["step"] == step):
            self._evaluate(step)
            keep()

    def last(self) -> dict[str, Any]:
        """The last evaluation and the last reading."""
        return {**self._sight, **(self.history[-1] if self.history else {})}

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far."""
        return {"history": self.history, "looked": self._looked, "sight": self._sight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind what `state_dict` told."""
        self.history, self._looked = list(state["history"]), int(state["looked"])
        self._sight = dict(state["sight"])

    def _evaluate(self, step: int) -> None:
        frozen = vision_rate(self._parts.config.optim, step - 1) == 0.0
        with autocast(self._parts.config, self._ranks):
            metrics = self._evaluator.measure(frozen_vision=frozen)
        self.history.append({"step": float(step), **metrics})
        self._progress.log(step, metrics)
        self._progress.tell(step, metrics)

    def _look(self, step: int) -> None:
        assert self._watch is not None
        reading = self._watch.measure(step)
        free_gathered(self._parts.objective)
        if self._ranks.is_first:
            self._watch.publish(reading, self._progress.writer)
        known = {name: value for name, value in reading.scalars.items() if math.isfinite(value)}
        self._looked, self._sight = step, known
        self._ranks.wait()


def build_watch(parts: RunParts, out: Path, ranks: Ranks) -> SightWatch | None:
    """The watch of a run on its golden inputs; None where `watch.every_steps` is 0."""
    config = parts.config
    if config.watch.every_steps == 0:
        return None
    teacher, grid = parts.teacher, parts.objective.model.grid

    def teach(images: NDArray[Any]) -> Tensor | None:
        return None if teacher is None else compute_targets(teacher, images, grid)

    return SightWatch(
        config.watch,
        parts.objective.model,
        parts.processor,
        scenes_from_golden(out / GOLDEN_INPUTS, parts.processor),
        out / SIGHT_FOLDER,
        episodes=parts.data.episode[choose_frames(parts.data)].tolist(),
        aligner=parts.objective.aligner,
        teach=teach if teacher is not None else None,
        autocast=compute_dtype(config) if config.precision == "bf16" else None,
        saves=ranks.is_first,
    )
