"""Weights between two checkpoints: fine-tuned skill, with some of the older generality back.

Interpolating the weights before and after fine-tuning (RETAIN, arXiv 2512.08333; first shown for
image classifiers as WiSE-FT, arXiv 2109.01903) costs no training. Tensors are read, mixed and
written one by one: the largest checkpoint needs the memory of one shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.files import told_as_oserror
from training.model.checkpoint import (
    DESCRIPTION,
    OPENVLA_FOLDER,
    find_network,
    find_weights,
    read_json,
)
from training.model.groups import GROUPS, group_of
from training.model.openvla.files import INDEX, SINGLE, find_folder, read_index
from training.settings import flatten
from training.setup_processor import PROCESSOR_FOLDER
from vla_align_ros.contract.processor import PROCESSOR_FILES
from vla_align_ros.errors import ConfigurationError, TrainingError

RECORD = "blend.json"
# What tells of the second's training, or was fitted to its weights, and not to the blend's.
_LEFT_OUT = ("checkpoints", "tensorboard", "sight", "sight.npz", "report.html", "run.json", RECORD)
# What of a processor may differ, and is told: the blend keeps the second's.
_MAY_DIFFER = ("spec.action", "spec.cameras", "image_transform.crop")
_OPENVLA_PARTS = {"vision_backbone": "vision", "projector": "projector", "language_model": "llm"}


def blend(
    before: str | Path,
    after: str | Path,
    out: str | Path,
    alpha: float,
    *,
    parts: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint (1 - alpha) * before + alpha * after; return what was done.

    Both are finished runs, or both OpenVLA checkpoints, folders or repositories (or any two folders
    of Hugging Face safetensors), of one architecture. All other files are those of `after`:
    statistics, tokenizer, settings; but for what was measured of its weights. Weights that a run
    keeps in openvla/ are mixed into that folder of `out`. Mixing is done in
    float32 and stored as `after` stores it; integer tensors must be equal.

    Args:
        before: alpha 0; usually the pretrained model. after: alpha 1; usually the fine-tuned one.
        out: new folder. alpha: share of `after`, 0 to 1. parts: other shares for some of
            "vision", "projector", "llm", "state", "head", "grounding".

    Returns:
        {"out", "alpha", "parts", "differences", "tensors", "parameters", "distance"}; differences:
        of statistics, actions and cameras, what the two do not share; distance is the root mean
        square difference of the two checkpoints' weights.

    Raises:
        ConfigurationError: a share out of range, an unknown part, or no such folder or repository.
        TrainingError: folders that are no checkpoints, or do not belong together. Nothing is
        written then.
    """
    shares = _check_shares(alpha, dict(parts or {}))
    out = Path(out).absolute()
    if out.exists():
        raise TrainingError(
            "The output exists already", got=out, expected="a new path", fix="choose another --out"
        )
    named = (before, after)
    before, after = (find_folder(find_weights(str(source))) for source in named)
    start, run = map(_find_run, named, (before, after))
    old, new = _list_tensors(before), _list_tensors(after)
    _check_same_architecture(before, after, old, new)
    differences = _compare_inputs(start, run)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        weights = staging
        if run != after:
            _copy_rest(run, staging, skipped={OPENVLA_FOLDER})
            weights = staging / OPENVLA_FOLDER
            weights.mkdir()
        _copy_rest(after, weights, skipped=set(new.values()))
        facts = _mix(before, after, old, new, weights, lambda name: _share(name, alpha, shares))
        facts = {"differences": differences, **facts}
        record = {"alpha": alpha, "parts": shares, "before": _hash(before, old)}
        record |= {"after": _hash(after, new), **facts}
        (staging / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {"out": str(out), "alpha": alpha, "parts": shares, **facts}


def _find_run(source: str | Path, weights: Path) -> Path:
    """The folder with all that belongs to `weights`: the run named, if they lie in its openvla/."""
    folder = Path(source).expanduser()
    return weights if find_network(folder) in (None, folder) else folder


def part_of(name: str) -> str | None:
    """Return the part of a tensor by its name in a run or in an OpenVLA folder."""
    root = name.split(".", 1)[0]
    if root in _OPENVLA_PARTS:
        return _OPENVLA_PARTS[root]
    try:
        return group_of(name)
    except KeyError:
        return None


def _share(name: str, alpha: float, shares: Mapping[str, float]) -> float:
    return shares.get(part_of(name) or "", alpha)


def _check_shares(alpha: float, shares: dict[str, float]) -> dict[str, float]:
    for name, value in {"alpha": alpha, **shares}.items():
        if name != "alpha" and name not in GROUPS:
            raise ConfigurationError(
                "No such part", got=name, expected=" or ".join(GROUPS), fix="correct --part"
            )
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise ConfigurationError(
                f"Wrong share for {name}",
                got=value,
                expected="0 (all before) to 1 (all after)",
                fix="correct --alpha or --part",
            )
    return shares


def _list_tensors(folder: Path) -> dict[str, str]:
    """Return {tensor name: file name}, in the order of the files."""
    from safetensors import SafetensorError, safe_open

    index = read_index(folder)
    if index is not None:
        files = sorted(set(index.values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        raise TrainingError(
            "This is no checkpoint",
            got=f"{folder} without {SINGLE} or {INDEX}",
            expected="a finished run, or a folder of Hugging Face weights with LoRA merged",
            fix="give such a folder",
        )
    tensors: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(folder / file, "pt") as opened:
                tensors |= dict.fromkeys(opened.keys(), file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                "Weights cannot be read",
                got=f"{folder / file}: {error}",
                expected="a whole safetensors file",
                fix="copy the checkpoint again",
            ) from error
    return tensors


def _check_same_architecture(
    before: Path, after: Path, old: Mapping[str, str], new: Mapping[str, str]
) -> None:
    different = sorted(set(old) ^ set(new))
    if different:
        raise TrainingError(
            "The checkpoints have different tensors",
            got=f"{len(different)} in one alone, such as {different[0]}",
            expected="two checkpoints of one architecture",
            fix="blend a model with what it was fine-tuned to",
        )
    for name in (f"{PROCESSOR_FOLDER}/{PROCESSOR_FILES[2]}", "tokenizer.json"):
        pair = [folder / name for folder in (before, after)]
        if all(path.is_file() for path in pair) and pair[0].read_bytes() != pair[1].read_bytes():
            raise TrainingError(
                "The checkpoints read words differently",
                got=f"two different {name}",
                expected="one tokenizer: rows of the embedding must mean the same words",
                fix="fine-tune with the tokenizer of the first model",
            )

    networks = [_read_if_there(folder / DESCRIPTION) for folder in (before, after)]
    if differing := [key for key in _differ(*networks) if key != "attention_backend"]:
        raise TrainingError(
            "The checkpoints are of different networks",
            got=", ".join(differing),
            expected=f"the same {DESCRIPTION}",
            fix="blend a model with what it was fine-tuned to",
        )


def _compare_inputs(before: Path, after: Path) -> list[str]:
    """Refuse two runs that see, read or sense differently; return what else differs."""
    folders = [folder / PROCESSOR_FOLDER for folder in (before, after)]
    described, statistics = (
        [_read_if_there(folder / name) for folder in folders] for name in PROCESSOR_FILES[:2]
    )
    differing = _differ(*described)
    told = [key for key in differing if key.startswith(_MAY_DIFFER)]
    if refused := [key for key in differing if key not in told]:
        raise TrainingError(
            "The checkpoints take their inputs differently",
            got=", ".join(refused),
            expected="the same pixels, words and state",
            fix="fine-tune with `--base`, which keeps what the first model learnt to see",
        )
    return [*told, *(["statistics"] if _differ(*statistics) else [])]


def _read_if_there(path: Path) -> dict[str, object] | None:
    return read_json(path) if path.is_file() else None


def _differ(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> list[str]:
    """Keys of two documents that differ; none where one is not there."""
    if one is None or other is None:
        return []
    left, right = flatten(one), flatten(other)
    return sorted(key for key in {**left, **right} if left.get(key) != right.get(key))


def _mix(
    before: Path,
    after: Path,
    old: Mapping[str, str],
    new: Mapping[str, str],
    staging: Path,
    share: Callable[[str], float],
) -> dict[str, Any]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    squares, count = 0.0, 0
    for file in dict.fromkeys(new.values()):
        mixed: dict[str, Tensor] = {}
        with safe_open(after / file, "pt") as opened:
            metadata = opened.metadata()
            for name in (name for name, place in new.items() if place == file):
                tuned = opened.get_tensor(name)
                with safe_open(before / old[name], "pt") as other:
                    first = other.get_tensor(name)
                _check_alike(name, first, tuned)
                mixed[name] = interpolate(first, tuned, share(name))
                squares += float((tuned.double() - first.double()).square().sum())
                count += tuned.numel()
        with told_as_oserror(staging / file):
            save_file(mixed, staging / file, metadata=metadata)
    return {"tensors": len(new), "parameters": count, "distance": math.sqrt(squares / count)}


def interpolate(before: Tensor, after: Tensor, share: float) -> Tensor:
    """Return (1 - share) * before + share * after in `after`'s dtype; the ends are exact."""
    if share == 1.0 or not after.is_floating_point():
        return after
    if share == 0.0:
        return before.to(after.dtype)
    return torch.lerp(before.float(), after.float(), share).to(after.dtype)


def _check_alike(name: str, first: Tensor, second: Tensor) -> None:
    same = first.shape == second.shape
    if not second.is_floating_point():
        same = same and torch.equal(first, second)
    if not same:
        raise TrainingError(
            "The checkpoints do not fit together",
            got=f"{name}: {tuple(first.shape)} {first.dtype} and {tuple(second.shape)} "
            f"{second.dtype}",
            expected="equal shapes, and equal values where they are integers",
            fix="blend a model with what it was fine-tuned to; quantised weights cannot be mixed",
        )


def _copy_rest(source: Path, out: Path, *, skipped: set[str]) -> None:
    for path in sorted(source.iterdir()):
        if path.name in _LEFT_OUT or path.name in skipped or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        else:
            shutil.copy2(path, out / path.name)


def _hash(folder: Path, tensors: Mapping[str, str]) -> str:
    """sha256 over the weights' files: which checkpoints a blend was made of."""
    digest = hashlib.sha256()
    for file in sorted(set(tensors.values())):
        with (folder / file).open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
