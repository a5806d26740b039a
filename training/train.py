"""Trains a recipe on LeRobot data: `vla-align train`, or `torchrun -m training.train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from training.commands import train as command
from training.config import HOW_IT_RUNS, RunConfig
from training.consolidate import (
    CONFIG_FILE,
    DATASET_FILE,
    PROCESSOR_FOLDER,
    RUN_FILE,
    consolidate,
)
from training.files import hold_alone, replace_atomically
from training.golden_inputs import GOLDEN_INPUTS, write_golden_inputs
from training.model.checkpoint import find_weights, is_consolidated, is_moved, read_json
from training.optimizers import trained_parameters
from training.parallel import Ranks, start_ranks
from training.provenance import (
    describe_data,
    describe_machine,
    describe_questions,
    find_commit,
)
from training.recipes import find_recipe
from training.settings import flatten, override
from training.setup_model import find_base
from training.setup_run import RunParts, set_up
from training.sight import write_report
from training.signals import StopSignals, catch_stop_signals
from training.trainer import Trainer
from vla_align_ros.errors import TrainingError, VlaAlignError

LOCK_FILE = ".run.lock"
SHOWN_DIFFERENCES = 4


def train(
    recipe: str,
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    base: str | None = None,
    settings: Sequence[str] = (),
    cache: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `recipe` with `settings` on `roots` into the folder `out`; continue what is there.

    base: the OpenVLA checkpoint, or the finished run, to start from, in place of the recipe's.

    Leaves model.json and model.safetensors (or openvla/, a checkpoint in OpenVLA's layout),
    processor/, config.json (the resolved configuration),
    dataset.json (which data), golden_inputs.npz (held-out observations for the export's proof),
    run.json (what it took), checkpoints/ and tensorboard/. SIGTERM or SIGUSR1 stop it after the
    step that is under way: it saves, and the summary has the key `stopped`. So does a first Ctrl-C,
    which is raised as KeyboardInterrupt once the run is saved. A second start in a folder in which
    a run is training is refused. A finished run is looked at: what it took, by
    which commit and on which machine, stays as it was written.
    """
    commit = find_commit()
    config = override(find_recipe(recipe), settings)
    config = find_base(config if base is None else dataclasses.replace(config, base=base))
    out = Path(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    with (
        catch_stop_signals() as signals,
        start_ranks(config.parallel) as ranks,
        _hold_folder(out) if ranks.is_first else nullcontext(),
    ):
        finished = read_json(out / RUN_FILE) if is_finished(out) else None
        parts, result = _run(config, roots, out, cache, ranks, signals, progress)
        if finished is not None:
            return finished
        summary = {
            "recipe": recipe,
            "out": str(out),
            "steps": config.optim.steps,
            "samples": config.optim.steps * config.optim.batch_size,
            "dataset": _describe_dataset(parts),
            "commit": commit,
            "machine": describe_machine(),
            "ranks": ranks.world,
            **result,
        }
        if ranks.is_first and "stopped" not in summary:
            _write_json(out / RUN_FILE, summary)
            write_report(out)
    return summary


def _run(
    config: RunConfig,
    roots: Sequence[str | Path],
    out: Path,
    cache: Path | None,
    ranks: Ranks,
    signals: StopSignals,
    progress: bool,
) -> tuple[RunParts, dict[str, Any]]:
    """Set up, train, and put the weights together; returns the parts and what the run measured."""
    _check_same(out / CONFIG_FILE, config.to_dict(), free=HOW_IT_RUNS)
    for warning in config.warnings() if ranks.is_first else ():
        print(f"warning: {warning}", file=sys.stderr)
    is_new = not (out / CONFIG_FILE).exists()
    with ranks.first_alone():
        shown = progress and ranks.is_first
        parts = set_up(config, roots, cache, progress=shown, device=ranks.device)
        if ranks.is_first:
            _describe(parts, config, out)
    try:
        trainer = Trainer(parts, out, ranks=ranks, signals=signals, progress=progress)
    except VlaAlignError:
        if ranks.is_first and is_new:  # the corrected command is no other run
            for name in (CONFIG_FILE, DATASET_FILE):
                (out / name).unlink(missing_ok=True)
        raise
    result = trainer.run()
    numbers = parts.adapter
    result["parameters"] = numbers.trained_parameters + numbers.frozen_parameters
    result["trained_parameters"] = count_trained(trainer)
    if "stopped" not in result:
        # Without run.json the weights may be half written, or those of an earlier step.
        if ranks.is_first and not is_finished(out):
            consolidate(out)
        ranks.wait()
    if ranks.is_first:
        print(_tell_end(out, trainer.step, config.optim.steps, result.get("stopped")))
    return parts, result


def _tell_end(out: Path, step: int, steps: int, stopped: str | None) -> str:
    """Where the run is and what may be done with it, for who looks at the terminal."""
    if stopped is not None:
        saved = f"{out}: {stopped} after step {step} of {steps}, which is saved"
        return f"{saved}; the same command goes on"
    return f"{out}: {steps} steps are done; `vla-align export {out} --out BUNDLE` comes next"


def is_finished(out: Path) -> bool:
    """Whether a run went through in this folder; run.json is written last."""
    return is_consolidated(out) and (out / RUN_FILE).exists()


def _describe(parts: RunParts, config: RunConfig, out: Path) -> None:
    """Write into `out` what the run is made of, unless another run is there already."""
    dataset = _describe_dataset(parts)
    path = out / DATASET_FILE
    # An older version told less of the data; what it left out cannot be compared.
    known = read_json(path) if path.exists() else dataset
    _check_same(path, {key: value for key, value in dataset.items() if key in known})
    _write_json(out / CONFIG_FILE, config.to_dict())
    _write_json(path, dataset)
    if any(parts.data.left_out.values()):
        told = ", ".join(f"{number} {what}" for what, number in parts.data.left_out.items())
        print(f"left out of the data: {told.replace('_', ' ')}", file=sys.stderr)
    parts.processor.save(out / PROCESSOR_FOLDER)
    write_golden_inputs(parts.data, parts.processor, out / GOLDEN_INPUTS)


def _describe_dataset(parts: RunParts) -> dict[str, Any]:
    return {**describe_data(parts.data), **describe_questions(parts.config.vqa)}


def _hold_folder(out: Path) -> AbstractContextManager[object]:
    """Keep a second start of the same run out: the two would delete each other's checkpoints."""
    refusal = TrainingError(
        f"A run already trains in {out}",
        got="its lock is held",
        expected="one process, or one torchrun, a folder",
        fix="wait for it, or stop it by SIGTERM: it saves, and the same command goes on",
    )
    return hold_alone(out / LOCK_FILE, refusal)


def count_trained(trainer: Trainer) -> int:
    """Parameters of the network that the optimizer moves; sharded ones count whole."""
    moved = {id(parameter) for parameter in trained_parameters(trainer.optimizer)}
    return sum(p.numel() for p in trainer.objective.model.parameters() if id(p) in moved)


def _check_same(path: Path, wanted: Mapping[str, Any], *, free: Sequence[str] = ()) -> None:
    """Refuse to continue a run whose `path` says otherwise; TrainingError names the differences.

    free: keys that may differ, themselves and all below them.
    """
    if not path.exists():
        return
    found, asked = flatten(read_json(path)), flatten(json.loads(json.dumps(wanted)))
    asked["name"] = found.get("name", asked.get("name"))  # data may be moved
    if found.get("base") and asked.get("base"):
        moved = is_moved(found["base"], asked["base"])
        # An older version kept it as it was typed.
        found["base"] = asked["base"] if moved else find_weights(found["base"])
    below = tuple(f"{key}." for key in free)
    keys = [
        key
        for key in {**asked, **found}
        if found.get(key) != asked.get(key) and key not in free and not key.startswith(below)
    ]
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
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # as shells report it


if __name__ == "__main__":
    main()
