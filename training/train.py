"""Trains a recipe on LeRobot data: `vla-align train`, or `torchrun -m training.train`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.commands import train as command
from training.config import RunConfig, override
from training.data.dataset import ActionChunkDataset
from training.data.layout import COLLECTION_PATH
from training.files import replace_atomically
from training.model.checkpoint import read_json
from training.recipes import find_recipe
from training.setup_run import RunParts, set_up
from training.trainer import Trainer
from vla_align_ros.errors import TrainingError, VlaAlignError

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
RUN_FILE = "run.json"
GOLDEN_FILE = "golden_inputs.npz"
GOLDEN_SAMPLES = 24
SHOWN_DIFFERENCES = 4
WAIT_FOR_CACHES = timedelta(hours=6)


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
    dataset.json (which data), golden_inputs.npz (held-out observations for the export's proof),
    run.json (what it took), checkpoints/ and tensorboard/.
    """
    commit = find_commit()
    config = override(find_recipe(recipe), settings)
    out = Path(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed:
        dist.init_process_group("gloo", timeout=WAIT_FOR_CACHES)  # the model is on the CPU
    first = not distributed or dist.get_rank() == 0
    try:
        _check_same(out / CONFIG_FILE, config.to_dict())
        with _first_rank_first(distributed):
            parts = set_up(config, roots, cache, progress=progress and first)
            if first:
                _describe(parts, config, out)
        result = Trainer(parts, out, progress=progress).run()
    finally:
        if distributed:
            dist.destroy_process_group()
    summary = {
        "recipe": recipe,
        "out": str(out),
        "steps": config.optim.steps,
        "samples": config.optim.steps * config.optim.batch_size,
        "dataset": describe_data(parts.data),
        "commit": commit,
        "machine": describe_machine(),
        "parameters": sum(p.numel() for p in parts.objective.model.parameters()),
        **result,
    }
    if first:
        _write_json(out / RUN_FILE, summary)
    return summary


@contextmanager
def _first_rank_first(distributed: bool) -> Iterator[None]:
    """Let rank 0 fill caches and files alone; the others find them filled."""
    if distributed and dist.get_rank() > 0:
        dist.barrier()
    yield
    if distributed and dist.get_rank() == 0:
        dist.barrier()


def _describe(parts: RunParts, config: RunConfig, out: Path) -> None:
    """Write into `out` what the run is made of, unless another run is there already."""
    dataset = describe_data(parts.data)
    _check_same(out / DATASET_FILE, dataset)
    _write_json(out / CONFIG_FILE, config.to_dict())
    _write_json(out / DATASET_FILE, dataset)
    parts.processor.save(out / "processor")
    _save_golden_inputs(parts, out / GOLDEN_FILE)


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a run whose `path` says otherwise; TrainingError names the differences."""
    if not path.exists():
        return
    found, asked = _flatten(read_json(path)), _flatten(json.loads(json.dumps(wanted)))
    keys = [key for key in {**asked, **found} if found.get(key) != asked.get(key)]
    if keys:
        more = f" and {len(keys) - SHOWN_DIFFERENCES} more" if len(keys) > SHOWN_DIFFERENCES else ""
        got, expected = (
            ", ".join(f"{key}={values.get(key)}" for key in keys[:SHOWN_DIFFERENCES]) + more
            for values in (asked, found)
        )
        raise TrainingError(
            f"{path.parent} holds another run",
            got=got,
            expected=expected,
            fix="give another --out, or the same recipe, settings and data to continue",
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested {"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat |= _flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def _save_golden_inputs(parts: RunParts, path: Path) -> None:
    """Held-out observations, from which the export makes the bundle's golden samples.

    Pictures as the camera gave them, so that the proof goes through the robot's resizing too.
    """
    import numpy as np

    data = parts.data
    held_out = data.indices("val")
    chosen = np.sort(np.random.default_rng(1).permutation(held_out)[:GOLDEN_SAMPLES])
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            image_front=data.camera_pictures(chosen),
            state=data.state[chosen].astype(np.float32),
            instruction=np.array([data.tasks[i] for i in data.task_id[chosen]]),
        )


def describe_data(data: ActionChunkDataset) -> dict[str, Any]:
    """What was trained on: content, size, and how `vla-align collect` made it, where it did."""
    recorded = [reader.root / COLLECTION_PATH for reader in data.readers]
    return {
        "fingerprint": data.fingerprint,
        "frames": len(data),
        "episodes": [reader.episodes.num_rows for reader in data.readers],
        "collected": [read_json(path) if path.exists() else None for path in recorded],
    }


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
    try:
        command.run(parser.parse_args())
    except VlaAlignError as error:
        sys.exit(f"training: {error}")


if __name__ == "__main__":
    main()
