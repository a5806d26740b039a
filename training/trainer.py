"""The training loop: steps on one or many ranks, checkpoints, evaluation, and how it ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import (
    CheckpointReader,
    amend_state,
    clean_checkpoints,
    list_checkpoints,
    save_checkpoint,
)
from training.consolidate import drop_weights
from training.data.loader import BatchLoader
from training.data.sampler import Draws, SampleSampler
from training.measurements import Measurements
from training.optimizers import build_optimizer, set_rates, vision_rate
from training.parallel import (
    Ranks,
    clip_gradients,
    last_piece_only,
    move_batch,
    split_batch,
)
from training.progress import Progress
from training.setup_run import RunParts
from training.sharing import autocast, share_objective
from training.signals import StopSignals
from training.state import (
    check_same_base,
    choose_weights,
    collect_tensors,
    list_weights,
    restore_tensors,
    seed_rank,
    sum_bits,
)
from training.vqa import VqaBatches
from vla_align_ros.errors import TrainingError

SCALARS_EVERY = 20


class Trainer:
    """Runs one configuration to its end, from the newest checkpoint in `out` if there is one.

    On one process a resumed run equals the uninterrupted one bit for bit: weights, optimizer, data
    position and random states are in the checkpoint, and rates are functions of the step. On
    another number of ranks it goes on with the very next sample.
    """

    def __init__(
        self,
        parts: RunParts,
        out: Path,
        *,
        ranks: Ranks | None = None,
        signals: StopSignals | None = None,
        progress: bool = True,
    ) -> None:
        self.parts, self.out, self.config = parts, out, parts.config
        self.ranks, self.signals = ranks or Ranks(), signals or StopSignals()
        self.objective = parts.objective
        self.step, self.scalars = 0, dict[str, float]()
        self._waited_s, self._logged = 0.0, 0
        self.stopped: str | None = None
        share = self._divide_batch()
        seed_rank(self.config.seed, 0, self.ranks.rank)
        self.forward = share_objective(parts, self.ranks)
        self.optimizer = build_optimizer(self.objective, self.config.optim)
        adapted = self.config.adapter.kind != "none"
        self._keeps, left_out = choose_weights(self.objective, parts.adapter, adapted=adapted)
        self._base = sum_bits(left_out)
        frames = parts.data.indices("train")
        sampler = SampleSampler(
            frames,
            share,
            seed=self.config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world,
            groups=parts.data.root_id[frames],
            weights=parts.data.weights,
        )
        self.loader = BatchLoader(self._load, sampler, workers=self.config.data.workers)
        self.questions = self._open_questions()
        self.progress = Progress(self.config, out, shown=progress, first=self.ranks.is_first)
        self.measurements = Measurements(parts, out, self.ranks, self.progress)

    def run(self) -> dict[str, Any]:
        """Train to the last step, or until a signal stops the run.

        Returns the last evaluation with `seconds` and `samples_per_s` of all sessions together, and
        `stopped`, the signal's name, if it is not finished. A number that is not finite raises
        TrainingError; the state before that step is saved then.
        """
        before_s = self._resume()
        optim, first = self.config.optim, 0 if before_s else self.step
        self._started_s = time.monotonic() - before_s
        with self.signals.defer(), self.loader, self.progress.open(self.step):
            self._measure()
            while self.step < optim.steps and self.stopped is None:
                scalars = self._train_step()
                self.step += 1
                is_last = self.step == optim.steps
                self.progress.advance(self.step)
                if self.step % SCALARS_EVERY == 0 or is_last:
                    self._log(scalars)
                if self.step % self.config.checkpoint_every == 0 or is_last or self.stopped:
                    self._save()
                if self.stopped is None or is_last:
                    self._measure()
        seconds = time.monotonic() - self._started_s
        last: dict[str, Any] = {**self.scalars, **self.measurements.last()}
        last["seconds"] = seconds
        last["samples_per_s"] = (self.step - first) * optim.batch_size / max(seconds, 1e-9)
        return last if self.step == optim.steps else {**last, "stopped": self.stopped}

    # -- a step -------------------------------------------------------------------------------
    def _train_step(self) -> dict[str, Tensor]:
        config, place = self.config, self._position()
        set_rates(self.optimizer, config.optim, self.step)
        self.objective.train()
        self.objective.set_step(self.step, config.optim.steps)
        batch = dict(self.loader.next())
        if self.questions is not None:
            batch["vqa"] = self.questions.next()
        pieces, scalars = config.parallel.accumulate, dict[str, Tensor]()
        self.optimizer.zero_grad(set_to_none=True)
        for number, piece in enumerate(split_batch(batch, pieces)):
            inputs = self.parts.teach(move_batch(piece, self.ranks.device))
            with last_piece_only(self.forward, number == pieces - 1):
                with autocast(self.config, self.ranks):
                    loss, values = self.forward(inputs)
                (loss / pieces).backward()
            for name, value in values.items():
                scalars[name] = scalars.get(name, 0.0) + value / pieces
        norm = self._clip()
        self._check_finite(scalars["loss/total"], norm, batch, place)
        self.optimizer.step()
        return {**scalars, "optim/grad_norm": norm}

    def _log(self, scalars: Mapping[str, Tensor]) -> None:
        """Write the step's scalars, means over the ranks, and how long it waited for data."""
        self.scalars = self.ranks.mean(scalars)
        waited_s, self._waited_s = self.loader.waited_s - self._waited_s, self.loader.waited_s
        steps, self._logged = self.step - self._logged, self.step
        wait_ms = 1000.0 * waited_s / steps
        self.progress.log(self.step, {**self.scalars, "data/wait_ms": wait_ms})

    def _load(self, draws: Draws) -> Mapping[str, Any]:
        """One batch on the CPU; may run in a thread, ahead of the step that it is for."""
        step = draws.start // self.config.optim.batch_size
        frozen = vision_rate(self.config.optim, step) == 0.0
        return self.parts.load(draws.indices, frozen_vision=frozen, passes=draws.passes)

    def _clip(self) -> Tensor:
        if self.config.parallel.strategy == "fsdp" and self.objective.aligner is not None:
            self.objective.aligner.average_gradients()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return clip_gradients(trained, self.config.optim.clip)

    def _check_finite(
        self, loss: Tensor, norm: Tensor, batch: Mapping[str, Any], place: dict[str, Any]
    ) -> None:
        """Learn on all ranks at once whether to stop; before the weights are spoilt."""
        flags = (~torch.isfinite(loss), ~torch.isfinite(norm), self.signals.received is not None)
        bad_loss, bad_norm, stop = self.ranks.agree(flags)
        if stop:
            self.stopped = self.signals.received or "a signal on another rank"
        if not (bad_loss or bad_norm):
            return
        own = [] if bad_loss and torch.isfinite(loss) else batch["index"].tolist()
        samples = sorted(index for part in self.ranks.gather(own) for index in part)
        self._go_to(place)
        kept = "the last checkpoint is"
        if self._weights_are_finite():
            self._save()
            kept = "the state before it is"
        what, value = ("loss", loss) if bad_loss else ("gradient", norm)
        values = self.ranks.gather(float(value))
        wrong = next(number for number in values if not math.isfinite(number))
        raise TrainingError(
            f"The {what} is not finite at step {self.step}",
            got=f"{wrong} on samples {samples}",
            expected="a number",
            fix=f"look at these samples, or lower optim.lr; {kept} kept in {self.out}",
        )

    def _weights_are_finite(self) -> bool:
        weights = list_weights(self.objective, lambda name: True).values()
        spoilt = [~torch.isfinite(w).all() for w in weights if w.is_floating_point()]
        return not any(self.ranks.agree([any(bool(flag) for flag in spoilt)]))

    def _divide_batch(self) -> int:
        """Samples of a step on this rank."""
        size, pieces = self.config.optim.batch_size, self.config.parallel.accumulate
        if size % (self.ranks.world * pieces):
            raise TrainingError(
                "The batch does not divide among the ranks",
                got=f"batch {size} on {self.ranks.world} ranks, in {pieces} piece(s) each",
                expected="a multiple of ranks times pieces",
                fix="--set optim.batch_size=... or parallel.accumulate=...",
            )
        return size // self.ranks.world

    def _open_questions(self) -> VqaBatches | None:
        config, ranks = self.config, self.ranks
        if config.vqa is None:
            return None
        questions = VqaBatches(
            config.vqa,
            self.parts.processor,
            seed=config.seed,
            rank=ranks.rank,
            world=ranks.world,
            pieces=config.parallel.accumulate,
        )
        if questions.left_out and ranks.is_first:
            longer = f"{questions.left_out} longer than {config.vqa.question_tokens} tokens"
            print(f"left out of the questions: {longer}", file=sys.stderr)
        return questions

    def _position(self) -> dict[str, Any]:
        """Which samples were used, over all ranks."""
        asked = self.questions.state_dict() if self.questions is not None else None
        return {"samples": self.loader.state_dict(), "questions": asked}

    def _go_to(self, position: dict[str, Any]) -> None:
        self.loader.load_state_dict(position["samples"])
        if self.questions is not None:
            self.questions.load_state_dict(position["questions"])

    # -- what lasts ---------------------------------------------------------------------------
    def _save(self) -> None:
        tensors, plain = collect_tensors(self.objective, self.optimizer, self.ranks, self._keeps)
        state = {
            "step": self.step,
            "world": self.ranks.world,
            "position": self._position(),
            "optimizer": plain,
            "base": self._base,
            "scalars": self.scalars,
            **self.measurements.state_dict(),
            "seconds": time.monotonic() - self._started_s,
        }
        if self.ranks.is_first:
            drop_weights(self.out)
        save_checkpoint(self.out / "checkpoints", self.step, tensors, state)

    def _measure(self) -> None:
        """Measure if it is time, behind the checkpoint: a measurement that fails costs no step."""
        self.measurements.take_if_due(self.step, self._keep_measurements)

    def _keep_measurements(self) -> None:
        seconds = time.monotonic() - self._started_s
        changes = {**self.measurements.state_dict(), "seconds": seconds}
        amend_state(self.out / "checkpoints", self.step, changes)

    def _resume(self) -> float:
        """Take up the newest checkpoint; returns the seconds that were spent until then."""
        folder = self.out / "checkpoints"
        list_checkpoints(folder)  # every rank refuses those of an older version
        if self.ranks.is_first:
            clean_checkpoints(folder)
        self.ranks.wait()
        found = list_checkpoints(folder)
        if not found:
            return 0.0
        reader = CheckpointReader(found[-1])
        state = reader.state
        check_same_base(reader, self._base)
        has_random = restore_tensors(
            reader, self.objective, self.optimizer, self.ranks, self._keeps, state["optimizer"]
        )
        self._go_to(state["position"])
        self.measurements.load_state_dict(state)
        self.step, self.scalars = int(state["step"]), dict(state["scalars"])
        self._logged = self.step
        if not has_random:
            seed_rank(self.config.seed, self.step, self.ranks.rank)
        return float(state["seconds"])
