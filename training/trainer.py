"""The training loop: steps, schedules, checkpoints, evaluation, scalars and a progress bar."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from training.config import OptimConfig
from training.data.sampler import BatchSampler
from training.evaluate import OfflineEvaluator
from training.setup_run import RunParts
from vla_align_ros.errors import TrainingError

SCALARS_EVERY = 20


def schedule(step: int, warmup: int, total: int, final: float) -> float:
    """Share of the peak rate at `step` of `total`: linear warm-up, then a cosine to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def main_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate of everything but the vision tower at `step`."""
    return optim.lr * schedule(step, optim.warmup_steps, optim.steps, optim.final_fraction)


def vision_rate(optim: OptimConfig, step: int) -> float:
    """Learning rate of the vision tower at `step`; 0 while it is frozen.

    It has a warm-up and a cosine of its own, from the step on which the tower is let go.
    """
    start = optim.vision_from_step
    if optim.vision_lr is None or step < start:
        return 0.0
    return optim.vision_lr * schedule(
        step - start, optim.vision_warmup_steps, optim.steps - start, optim.final_fraction
    )


class Trainer:
    """Runs one configuration to its end, from the newest checkpoint in `out` if there is one.

    On one process a resumed run equals the uninterrupted one bit for bit: model, optimizer, data
    position and random state are in the checkpoint, and rates are functions of the step.
    """

    def __init__(self, parts: RunParts, out: Path, *, progress: bool = True) -> None:
        self.parts, self.out, self.config = parts, out, parts.config
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.progress = progress and self.rank == 0
        self.objective = parts.objective
        self.step = 0
        optim = self.config.optim
        if optim.batch_size % self.world:
            raise TrainingError(
                "The batch does not divide among the ranks",
                got=f"batch {optim.batch_size} on {self.world} ranks",
                expected="a multiple of the ranks",
                fix="--set optim.batch_size=...",
            )
        self.sampler = BatchSampler(
            parts.data.indices("train"),
            optim.batch_size // self.world,
            seed=self.config.seed,
            rank=self.rank,
            world_size=self.world,
        )
        self.optimizer = self._build_optimizer()
        self.evaluator = OfflineEvaluator(parts)
        self.history: list[dict[str, float]] = []

    def run(self) -> dict[str, float]:
        """Train to the last step; returns the last evaluation, the whole run's time and speed."""
        before_s = self._resume()
        forward: nn.Module = self.objective
        if self.world > 1:
            forward = DistributedDataParallel(self.objective, find_unused_parameters=True)
        optim, first = self.config.optim, 0 if before_s else self.step
        self._started_s = time.monotonic() - before_s
        with self._writer() as writer, self._bar(optim) as bar:
            while self.step < optim.steps:
                scalars = self._train_step(forward)
                self.step += 1
                bar.update(optim.batch_size)
                if self.step % SCALARS_EVERY == 0 or self.step == optim.steps:
                    values = {name: float(value) for name, value in scalars.items()}
                    self._log(writer, values)
                    bar.set_postfix(loss=f"{values['loss/total']:.4f}", refresh=False)
                if self.step % self.config.evaluate_every == 0 or self.step == optim.steps:
                    self._evaluate(writer, bar)
                if self.step % self.config.checkpoint_every == 0 or self.step == optim.steps:
                    self._save()
        seconds = time.monotonic() - self._started_s
        last = dict(self.history[-1]) if self.history else {}
        last["seconds"] = seconds
        last["samples_per_s"] = (self.step - first) * optim.batch_size / max(seconds, 1e-9)
        return last

    def _train_step(self, forward: nn.Module) -> dict[str, torch.Tensor]:
        optim = self.config.optim
        frozen = self._set_rates()
        self.objective.train()
        batch = self.parts.batch(self.sampler.next_indices(), frozen_vision=frozen)
        with self._autocast():
            loss, scalars = forward(batch)
        self._refuse_non_finite("loss", loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, optim.clip)
        self._refuse_non_finite("gradient", norm)
        self.optimizer.step()
        return {**scalars, "optim/grad_norm": norm}

    def _refuse_non_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before the weights are spoilt, and a checkpoint with them."""
        if not math.isfinite(float(value.detach())):
            raise TrainingError(
                f"The {what} is not finite at step {self.step}",
                got=str(float(value.detach())),
                expected="a number",
                fix=f"lower optim.lr; the last checkpoint is kept in {self.out}",
            )

    def _set_rates(self) -> bool:
        """Set this step's rates; returns whether the vision tower is frozen in it."""
        optim = self.config.optim
        vision = vision_rate(optim, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = vision if group["vision"] else main_rate(optim, self.step)
        for parameter in self.objective.model.vision.parameters():
            parameter.requires_grad_(vision > 0.0)
        return vision == 0.0

    def _build_optimizer(self) -> torch.optim.AdamW:
        optim = self.config.optim
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, members in self.objective.model.parameter_groups().items():
            for _, parameter in members:
                groups.setdefault((name == "vision", parameter.ndim > 1), []).append(parameter)
        settings: list[dict[str, Any]] = [
            {
                "params": parameters,
                "vision": is_vision,
                "weight_decay": optim.weight_decay if is_matrix else 0.0,
            }
            for (is_vision, is_matrix), parameters in groups.items()
        ]
        return torch.optim.AdamW(settings, lr=optim.lr, betas=(0.9, optim.beta2))

    def _autocast(self) -> torch.autocast:
        device = next(self.objective.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16")

    # -- what lasts ---------------------------------------------------------------------------
    def _save(self) -> None:
        if self.rank == 0:
            state = {
                "step": self.step,
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sampler": self.sampler.state_dict(),
                "random": torch.get_rng_state(),
                "history": self.history,
                "seconds": time.monotonic() - self._started_s,
            }
            # The model first: who is killed in between does this step again on resuming.
            self.objective.model.save(self.out)
            save_checkpoint(self.out / "checkpoints", self.step, state)

    def _resume(self) -> float:
        """Take up the newest checkpoint; returns the seconds that were spent until then."""
        found = list_checkpoints(self.out / "checkpoints")
        if not found:
            return 0.0
        state = load_checkpoint(found[-1])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        torch.set_rng_state(state["random"])
        self.step, self.history = int(state["step"]), list(state["history"])
        return float(state.get("seconds", 0.0))

    # -- what is shown ------------------------------------------------------------------------
    def _evaluate(self, writer: Any, bar: Any) -> None:
        if self.rank == 0:
            frozen = vision_rate(self.config.optim, max(0, self.step - 1)) == 0.0
            with self._autocast():
                metrics = self.evaluator.measure(frozen_vision=frozen)
            self._log(writer, metrics)
            self.history.append({"step": float(self.step), **metrics})
            if self.progress:
                told = ", ".join(f"{k.split('/')[-1]} {v:.4g}" for k, v in metrics.items())
                bar.write(f"step {self.step}: {told}")
        if self.world > 1:
            dist.barrier()

    def _log(self, writer: Any, values: dict[str, float]) -> None:
        for name, value in values.items() if writer is not None else ():
            writer.add_scalar(name, value, self.step)

    @contextmanager
    def _writer(self) -> Iterator[Any]:
        if self.rank != 0:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote past its checkpoint is written again.
        repeated = self.step + 1 if self.step else None
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=repeated)
        try:
            yield writer
        finally:
            writer.close()

    def _bar(self, optim: OptimConfig) -> Any:
        return tqdm(
            total=optim.steps * optim.batch_size,
            initial=self.step * optim.batch_size,
            unit="sample",
            desc=self.config.recipe,
            disable=not self.progress,
            mininterval=2.0,
        )
