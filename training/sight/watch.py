"""Looks at a policy's sight while it trains: drift, alignment, a probe, attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.sight.attention_figures import look_at_attention
from training.sight.cka import linear_cka
from training.sight.config import NEUTRAL_INSTRUCTION, WatchConfig, choose_blocks, choose_layers
from training.sight.features import (
    name_places,
    pick_features,
    pick_rows,
    pool_tokens,
    run_batches,
    show_pictures,
    undisturbed,
)
from training.sight.pictures import load_pictures
from training.sight.probe import ProbeResult, cross_validate
from training.sight.reading import SightReading, save_reading
from training.sight.reference import load_reference, save_reference
from training.sight.scenes import fingerprint_scenes, resize_scenes
from training.sight.writers import RunWriter
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import TrainingError
from vla_align_ros.extras import pip_command

Teach = Callable[[NDArray[np.uint8]], Tensor]


class SightWatch:
    """Measures the same fixed pictures and words again and again.

    The reading at step 0, before training, is the reference of the drift; it is kept in `folder`,
    so that a continued run compares with the same features. Reading changes nothing of the run:
    not its weights, gradients, modes or random state. Where parameters are sharded every rank must
    call `measure` alike.

    model: PrismaticVLA. scenes: held-out observations of the data. episodes: which each is of,
    so that attention is drawn of different ones; empty takes each for its own. aligner: gives
    `cosines(output, target)`, `layers` and is a module; None without alignment. teach: from
    pictures at the model's size (B, [cameras,] S, S, 3) uint8 to teacher features (B, N, width).
    autocast: the type that training computes in.
    """

    def __init__(
        self,
        config: WatchConfig,
        model: Any,
        processor: Processor,
        scenes: Sequence[Observation],
        folder: Path,
        *,
        episodes: Sequence[int] = (),
        aligner: Any = None,
        teach: Teach | None = None,
        autocast: torch.dtype | None = None,
        saves: bool = True,
    ) -> None:
        self.config, self.model, self.processor = config, model, processor
        self.folder, self.saves = folder, saves
        self.aligner, self.teach, self.autocast = aligner, teach, autocast
        self.scenes = list(scenes)[: config.scenes]
        if len(self.scenes) < 2:
            raise TrainingError(
                "Too few scenes to watch",
                got=f"{len(self.scenes)} held-out pictures",
                expected="at least 2",
                fix="hold out more episodes (data.validation), or --set watch.every_steps=0",
            )
        depth = int(model.llm.config.num_hidden_layers)
        aligned = tuple(getattr(aligner, "layers", ()) or ())
        self.places = name_places(choose_layers(config, depth, aligned))
        drawn = config.attention and config.attention_scenes > 0
        self.blocks = choose_blocks(config, depth) if drawn else []
        known = list(episodes or range(len(self.scenes)))[: len(self.scenes)]
        self.drawn = choose_drawn(known, config.attention_scenes)
        self.notes: list[str] = []
        self.pictures = None
        if config.probe:
            things, views = config.probe_pictures, config.probe_views
            self.pictures = load_pictures(config.pictures, things, views)
            if self.pictures is None:
                self.notes.append(f"no probe without drawings: {pip_command('sight')}")
        self._targets: Tensor | None = None
        self._reference: dict[str, Tensor] | None = None

    def due(self, step: int, last_step: int) -> bool:
        """Whether a reading is wanted after `step` steps of `last_step`; step 0 is the start."""
        every = self.config.every_steps
        return every > 0 and (step % every == 0 or step == last_step)

    def measure(self, step: int) -> SightReading:
        """Read everything now; without a writer, without touching the run."""
        device = next(self.model.parameters()).device
        modules = [m for m in (self.model, self.aligner) if isinstance(m, nn.Module)]
        figures: Mapping[str, NDArray[np.uint8]] = {}
        with undisturbed(modules, device, self.autocast):
            features, scalars = self._look_at_scenes(device)
            pooled = self._look_at_pictures(device)
            if self.blocks:
                scenes = [self.scenes[number] for number in self.drawn]
                figures, shares = look_at_attention(
                    self.model,
                    self.processor,
                    scenes,
                    self.blocks,
                    self.config.attention_words,
                    device,
                )
                scalars |= shares
        probe = self._probe(pooled)
        scalars |= {f"sight/probe_{place}": result.accuracy for place, result in probe.items()}
        named = {f"scenes_{place}": value for place, value in features.items()}
        named |= {f"pictures_{place}": value for place, value in pooled.items()}
        scalars |= self._drift(step, named)
        return SightReading(step, scalars, probe, figures, tuple(self.notes))

    def publish(self, reading: SightReading, writer: RunWriter | None) -> None:
        """Save the reading in the run folder and hand it to the run's writer."""
        save_reading(reading, self.folder)
        if writer is None:
            return
        for name, value in reading.scalars.items():
            writer.add_scalar(name, value, reading.step)
        for name, picture in reading.figures.items():
            writer.add_image(f"sight/{name}", picture, reading.step)

    def _look_at_scenes(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Visual tokens of the scenes by place, (rows, width), and scalars against the teacher."""
        tokens: dict[str, list[Tensor]] = {place: [] for place in self.places}
        cosines: dict[str, list[Tensor]] = {}
        size = self.config.batch_size
        targets = self._teacher_features()
        start = 0
        for inputs, output in run_batches(self.model, self.processor, self.scenes, size, device):
            count = len(inputs["input_ids"])
            for place, value in pick_features(output, self.places).items():
                tokens[place].append(value.float().cpu())
            if self.aligner is not None and targets is not None:
                target = targets[start : start + count].to(device)
                for name, mean in self.aligner.cosines(output, target).items():
                    cosines.setdefault(name, []).append(mean.float().cpu() * count)
            start += count
        rows = {place: pick_rows(torch.cat(parts)) for place, parts in tokens.items()}
        scalars = {
            name.replace("align/", "sight/"): float(torch.stack(parts).sum() / len(self.scenes))
            for name, parts in cosines.items()
        }
        if targets is not None and targets.shape[1] == next(iter(tokens.values()))[0].shape[1]:
            taught = pick_rows(targets)
            for place, value in rows.items():
                scalars[f"sight/cka_teacher_{place}"] = linear_cka(value, taught)
        return rows, scalars

    def _look_at_pictures(self, device: torch.device) -> dict[str, Tensor]:
        """Mean-pooled visual tokens (n, width) of the labelled pictures by place."""
        if self.pictures is None:
            return {}
        shown = show_pictures(self.pictures.images, NEUTRAL_INSTRUCTION, self.scenes[0])
        pooled: dict[str, list[Tensor]] = {place: [] for place in self.places}
        size = self.config.batch_size
        for _, output in run_batches(self.model, self.processor, shown, size, device):
            for place, value in pool_tokens(output, self.places).items():
                pooled[place].append(value)
        return {place: torch.cat(parts) for place, parts in pooled.items()}

    def _teacher_features(self) -> Tensor | None:
        """Teacher features (B, N, width) of the scenes, computed once, on the CPU."""
        if self.teach is None:
            return None
        if self._targets is None:
            images = resize_scenes(self.scenes, self.processor)
            size = self.config.batch_size
            starts = range(0, len(images), size)
            self._targets = torch.cat([self.teach(images[i : i + size]).cpu() for i in starts])
        return self._targets

    def _probe(self, pooled: Mapping[str, Tensor]) -> dict[str, ProbeResult]:
        if self.pictures is None:
            return {}
        known = self.pictures
        return {
            place: cross_validate(
                value, known.labels, known.names, known.things, solver=self.config.probe_solver
            )
            for place, value in pooled.items()
        }

    def _drift(self, step: int, features: dict[str, Tensor]) -> dict[str, float]:
        """Likeness to the reference, which the reading before the first step becomes."""
        if self._reference is None:
            self._reference = load_reference(self.folder, self._describe())
        if self._reference is None and step == 0:
            self._reference = features
            if self.saves:
                save_reference(self.folder, features, self._describe())
        if self._reference is None:
            note = "no drift: the features before the first step are not there, or of other things"
            if note not in self.notes:
                self.notes.append(note)
                warnings.warn(f"{self.folder}: {note}", stacklevel=3)
            return {}
        return {
            f"sight/cka_{name}": linear_cka(value, self._reference[name])
            for name, value in features.items()
        }

    def _describe(self) -> dict[str, str]:
        """What the reference must be features of, to be compared with."""
        pictures = self.pictures.fingerprint if self.pictures is not None else ""
        return {
            "places": " ".join(self.places),
            "scenes": fingerprint_scenes(self.scenes),
            "pictures": pictures,
        }


def choose_drawn(episodes: Sequence[int], count: int) -> list[int]:
    """The first `count` scenes, in order; of an episode one, and more only after all others."""
    times = [list(episodes[:number]).count(own) for number, own in enumerate(episodes)]
    return sorted(sorted(range(len(times)), key=times.__getitem__)[:count])
