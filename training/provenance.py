"""What a run was made of and where: data, commit, machine; told in its files and its bundle."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from training.data.dataset import ActionChunkDataset
from training.data.layout import COLLECTION_PATH
from training.model.checkpoint import read_json
from training.vqa import VqaConfig, fingerprint_samples, read_samples
from vla_align_ros.machine import find_processor


def describe_data(data: ActionChunkDataset) -> dict[str, Any]:
    """What was trained on: content, meaning, weights, size, and how `vla-align collect` made it."""
    recorded = [reader.root / COLLECTION_PATH for reader in data.readers]
    return {
        "name": "+".join(reader.name for reader in data.readers),
        "fingerprint": data.fingerprint,
        "meaning": data.meaning,
        "weights": data.weights,
        "frames": len(data),
        "left_out": data.left_out,
        "episodes": [reader.episodes.num_rows for reader in data.readers],
        "collected": [read_json(path) if path.exists() else None for path in recorded],
    }


def describe_questions(vqa: VqaConfig | None) -> dict[str, Any]:
    """Which questions were learnt beside, under the key "questions"; {} where none were."""
    if vqa is None:
        return {}
    folder = Path(vqa.path)
    samples = read_samples(folder)
    told = {"samples": len(samples), "fingerprint": fingerprint_samples(samples, folder)}
    return {"questions": told}


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
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{find_processor()}, {os.cpu_count()} cores{gpu}"
