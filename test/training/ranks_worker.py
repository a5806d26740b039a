"""What the tests of several ranks run under torchrun: scenarios one after the other.

Arguments: data folder, work folder. Each rank leaves what it saw in `<name>.<rank>.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_run import EIGHT
from torch.distributed.tensor import DTensor

from training.setup_run import RunParts
from training.train import train
from training.trainer import Trainer
from vla_align_ros.errors import TrainingError

DATA, WORK = Path(sys.argv[1]), Path(sys.argv[2])
RANK = int(os.environ["RANK"])
QUIET = ("watch.every_steps=0",)


def run(name: str, *settings: str) -> dict[str, Any]:
    settings = (*EIGHT, *settings)
    cache = WORK / "cache"  # empty at first: both ranks want to fill it
    return train("debug_cpu", [DATA], WORK / name, settings=settings, cache=cache, progress=False)


def leave(name: str, value: Any) -> None:
    (WORK / f"{name}.{RANK}.json").write_text(json.dumps(value))


@contextlib.contextmanager
def at_step(step: int, act: Any) -> Iterator[list[Any]]:
    """Call `act(trainer)` before a step; collects which samples this rank trained on."""
    original, load, seen = Trainer._train_step, RunParts.load, list[Any]()

    def step_then(self: Trainer) -> Any:
        if self.step == step:
            act(self)
        return original(self)

    def note(self: RunParts, indices: Any, **options: Any) -> Any:
        batch = load(self, indices, **options)
        if "passes" in options:
            seen.append(batch["index"].tolist())
        return batch

    Trainer._train_step, RunParts.load = step_then, note  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Trainer._train_step, RunParts.load = original, load  # type: ignore[method-assign]


def check_sharded(trainer: Trainer) -> None:
    """Half of every weight of the network is here; the projector is whole."""
    sharded = dict(trainer.objective.model.named_parameters())
    assert all(isinstance(p, DTensor) for p in sharded.values())
    kept = sum(p.to_local().numel() for p in sharded.values())  # type: ignore[attr-defined]
    assert kept < 0.6 * sum(p.numel() for p in sharded.values())
    assert not any(isinstance(p, DTensor) for p in trainer.objective.aligner.parameters())


def stop_rank_one(trainer: Trainer) -> None:
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def spoil_rank_one(trainer: Trainer) -> None:
    if RANK == 1:
        parts = trainer.parts
        teach = parts.teach
        parts.teach = lambda batch: teach({**batch, "actions": batch["actions"] * torch.nan})  # type: ignore[method-assign]


def main() -> None:
    dist.init_process_group("gloo")
    run("ddp", "parallel.accumulate=2")
    with at_step(0, check_sharded):
        run("fsdp", "parallel.strategy=fsdp")
    run("pieces", "parallel.strategy=fsdp", "parallel.accumulate=2", *QUIET)
    run("half", "parallel.strategy=fsdp", "precision=bf16", *QUIET)
    with at_step(4, stop_rank_one) as seen:
        leave("stopped", run("stopped", "parallel.strategy=fsdp", "data.workers=0", *QUIET))
    leave("stopped_samples", seen)
    try:
        with at_step(5, spoil_rank_one) as seen:
            run("spoilt", *QUIET, "data.workers=0")
    except TrainingError as error:
        leave("spoilt", str(error))
        leave("spoilt_samples", seen)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
