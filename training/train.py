"""Trains a recipe on LeRobot data: `vla-align train`, or `torchrun -m training.train`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.commands import train as command
from training.config import RunConfig, override
from training.files import replace_atomically
from training.recipes import find_recipe
from training.setup_run import set_up
from training.trainer import Trainer
from vla_align_ros.errors import TrainingError

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
GOLDEN_FILE = "golden_inputs.npz"
GOLDEN_SAMPLES = 24


def train(
    recipe: str,
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    cache: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `recipe` with `settings` on `roots` into the folder `out`; continue what is there.

    Leaves model.json and model.safetensors, processor/, config.json (the resolved configuration),
    golden_inputs.npz (held-out observations for the export's proof), run.json (what it took),
    checkpoints/ and tensorboard/.
    """
    config = override(find_recipe(recipe), settings)
    out = Path(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        _claim(out, config)
        parts = set_up(config, roots, cache, progress=progress)
        parts.processor.save(out / "processor")
        _save_golden_inputs(parts, out / GOLDEN_FILE)
        result = Trainer(parts, out, progress=progress).run()
    finally:
        if distributed:
            dist.destroy_process_group()
    summary = {
        "recipe": recipe,
        "out": str(out),
        "steps": config.optim.steps,
        "samples": config.optim.steps * config.optim.batch_size,
        "dataset": {"fingerprint": parts.data.fingerprint, "frames": len(parts.data)},
        "commit": find_commit(),
        "machine": describe_machine(),
        "parameters": sum(p.numel() for p in parts.objective.model.parameters()),
        **result,
    }
    _write_json(out / RUN_FILE, summary)
    return summary


def _claim(out: Path, config: RunConfig) -> None:
    """Write the configuration, or check that the run in `out` has the same one."""
    path = out / CONFIG_FILE
    wanted = json.loads(json.dumps(config.to_dict()))
    if path.exists():
        found = json.loads(path.read_text())
        differing = sorted(key for key in wanted if found.get(key) != wanted[key])
        if differing:
            raise TrainingError(
                f"{out} holds another run",
                got=f"other values of {', '.join(differing)}",
                expected="the configuration in its config.json",
                fix="give another --out, or the same recipe and settings to continue",
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    _write_json(path, wanted)


def _save_golden_inputs(parts: Any, path: Path) -> None:
    """Held-out observations, from which the export makes the bundle's golden samples."""
    import numpy as np

    data = parts.data
    held_out = data.indices("val")
    chosen = np.sort(np.random.default_rng(1).permutation(held_out)[:GOLDEN_SAMPLES])
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            image_front=data.images(chosen),
            state=data.state[chosen].astype(np.float32),
            instruction=np.array([data.tasks[i] for i in data.task_id[chosen]]),
        )


def find_commit() -> str | None:
    """The commit of the source tree that trains, "+" behind it if it was changed; else None."""
    here = Path(__file__).resolve().parent
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(here), *command], check=True, capture_output=True, text=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def describe_machine() -> str:
    """Processor, cores and accelerator, for a run's provenance."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{gpu}"


def _write_json(path: Path, value: Any) -> None:
    with replace_atomically(path) as temporary:
        Path(temporary).write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    """Entry for `torchrun -m training.train --recipe NAME --data DIR --out RUN`."""
    parser = argparse.ArgumentParser(description=__doc__)
    command.add_arguments(parser)
    command.run(parser.parse_args())


if __name__ == "__main__":
    main()
