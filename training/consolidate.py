"""Turns a run's sharded checkpoint into one file of weights, without what only training needs."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from training.checkpoint import CheckpointReader, list_checkpoints
from training.config import RunConfig
from training.merging import save_merged
from training.model import PrismaticVLA
from training.model.checkpoint import (
    DESCRIPTION,
    OPENVLA_FOLDER,
    WEIGHTS,
    find_moved,
    holds_model,
    read_json,
)
from training.model.openvla import find_folder, write_statistics
from training.publish import save_openvla
from training.setup_model import build_student
from training.setup_processor import PROCESSOR_FOLDER
from training.state import (
    OBJECTIVE,
    check_same_base,
    check_same_names,
    choose_weights,
    list_weights,
    sum_bits,
)
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError, TrainingError

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
RUN_FILE = "run.json"
MODEL = f"{OBJECTIVE}model."


def consolidate(
    run: str | Path,
    out: str | Path | None = None,
    *,
    step: int | None = None,
    lora: Literal["merged", "apart"] = "merged",
) -> dict[str, Any]:
    """Write the weights of a run's newest checkpoint (or of `step`) as one model.

    Into `out`, by default the run's own folder: model.json and model.safetensors, or, of a run that
    started from an OpenVLA checkpoint, the folder openvla/ in that layout. An adapter is folded
    into the weights, or with lora "apart" written for peft (OpenVLA only). The projectors of
    alignment and the optimizer stay behind. Needs one process, however many trained, and the memory
    of one network on the CPU. The run's own folder takes those of its newest checkpoint
    alone.
    """
    run = Path(run)
    out = Path(out) if out is not None else run
    chosen = _find_checkpoint(run, step)
    if chosen != _find_checkpoint(run, None) and out.resolve() == run.resolve():
        raise TrainingError(
            "Weights of an earlier step are not those that the run's folder tells of",
            got=f"step {step} for {out}",
            expected="another folder",
            fix="give --out DIR",
        )
    reader = CheckpointReader(chosen)
    config = read_config(run)
    model = load_student(run, reader)
    if config.base is not None and not holds_model(config.base):
        weights = out / OPENVLA_FOLDER
        _write_openvla(config, run, model, weights, lora)
    elif lora == "merged":
        weights = out / WEIGHTS
        save_merged(model, out)
    else:
        raise ConfigurationError(
            "An adapter is written apart for OpenVLA alone",
            got="a run that did not start from an OpenVLA checkpoint",
            expected="lora merged",
            fix="leave --lora out",
        )
    return {"run": str(run), "step": int(reader.state["step"]), "weights": str(weights)}


def drop_weights(run: Path) -> None:
    """Remove what `consolidate` left in the folder of a run that is not finished, and say so.

    Called when a later checkpoint follows: whatever looks at the run, or exports it, would take
    these weights for its newest.
    """
    if (run / RUN_FILE).exists():
        return
    left = [
        path for name in (WEIGHTS, DESCRIPTION, OPENVLA_FOLDER) if (path := run / name).exists()
    ]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if left:
        names = ", ".join(path.name for path in left)
        print(
            f"removed {names} of {run}: weights of an earlier step; `vla-align consolidate` makes"
            " them of the newest",
            file=sys.stderr,
        )


def read_config(run: Path) -> RunConfig:
    """The configuration of a run, with its base where that lies now."""
    config = RunConfig.from_dict(read_json(run / CONFIG_FILE))
    if config.base is None:
        return config
    return dataclasses.replace(config, base=find_moved(config.base, run))


def _write_openvla(
    config: RunConfig, run: Path, model: PrismaticVLA, out: Path, lora: Literal["merged", "apart"]
) -> None:
    assert config.base is not None
    data = read_json(run / DATASET_FILE)
    statistics = Processor.load(run / PROCESSOR_FOLDER).normalizers["action"].statistics
    stats = write_statistics(
        statistics, transitions=int(data["frames"]), trajectories=sum(data["episodes"])
    )
    folder = find_folder(config.base)
    partial = out.with_name(f".{out.name}.tmp")  # a killed process leaves no half checkpoint
    shutil.rmtree(partial, ignore_errors=True)
    names = {data["name"]: stats}
    save_openvla(model, folder, partial, lora=lora, base=config.base, norm_stats=names)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


def load_student(run: Path, reader: CheckpointReader) -> PrismaticVLA:
    """Rebuild the network of a run on the CPU, as it was at a checkpoint, adapter included.

    TrainingError if what an adapter lies on is no longer what it was trained on.
    """
    config = read_config(run)
    processor = Processor.load(run / PROCESSOR_FOLDER)
    with torch.random.fork_rng(devices=[]):
        model, adapter = build_student(config, processor)
    holder = nn.ModuleDict({"model": model})
    keeps, left_out = choose_weights(holder, adapter, adapted=config.adapter.kind != "none")
    check_same_base(reader, sum_bits(left_out))
    weights = {OBJECTIVE + name: value for name, value in list_weights(holder, keeps).items()}
    check_same_names(reader, weights, below=MODEL)
    reader.fill(weights, alone=True)
    return model


def _find_checkpoint(run: Path, step: int | None) -> Path:
    found = list_checkpoints(run / "checkpoints")
    chosen = [path for path in found if step is None or path.name == f"step_{step:08d}"]
    if not chosen:
        raise TrainingError(
            "There is no such checkpoint",
            got=f"{[path.name for path in found]} in {run / 'checkpoints'}",
            expected="any" if step is None else f"step {step}",
            fix="give the folder of a run that `vla-align train` made",
        )
    return chosen[-1]
