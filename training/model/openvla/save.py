"""PrismaticVLA's weights back in OpenVLA's published layout, so that others' tools open them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.files import told_as_oserror
from training.model.checkpoint import check_finite
from training.model.openvla.files import (
    CONFIG,
    STATISTICS,
    Shards,
    open_shards,
    read_document,
    write_document,
)
from training.model.openvla.keys import compare_tensors, find_carried, to_published
from vla_align_ros.errors import ConfigurationError, TrainingError

_PROJECTOR = "projector"  # a part of ours, and the published module
_PEFT_PREFIX = "base_model.model."
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def write_openvla(
    state: Mapping[str, Tensor],
    source: Path,
    out: Path,
    *,
    norm_stats: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole checkpoint: the layout, shards and dtypes of `source`, the weights of `state`.

    Args:
        state: every tensor of a PrismaticVLA by our names, LoRA merged.
        source: the folder that it was loaded from. Its tokenizer, preprocessing and Python files
            are copied, and so are the tensors that OpenVLA never uses.
        out: a folder that does not exist yet; it appears whole or not at all.
        norm_stats: statistics by data set that replace the published ones.

    Raises:
        TrainingError: if the tensors are not those of `source`.
        ConfigurationError: if `out` exists or `source` cannot be read.
    """
    shards = open_shards(source)
    named = {to_published(name): value for name, value in state.items()}
    wrong = compare_tensors({n: tuple(v.shape) for n, v in named.items()}, shards.shapes)
    if any(wrong.values()):
        raise TrainingError(
            "the model's tensors are not those of the checkpoint that it came from",
            got={kind: names[:2] for kind, names in wrong.items() if names},
            expected=f"the tensors of {source}",
            fix="give the folder that the model was loaded from, and merge the adapter",
        )
    with _appearing(out) as scratch:
        for file in sorted(set(shards.files.values())):
            with told_as_oserror(scratch / file):
                save_file(_fill_shard(file, shards, named), scratch / file, {"format": "pt"})
        weights = {*shards.files.values(), CONFIG, STATISTICS}
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in weights:
                shutil.copyfile(path, scratch / path.name)
        _write_statistics(source, scratch, norm_stats)


def write_openvla_adapter(
    adapter: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    full: Mapping[str, Tensor] | None = None,
    base: str | None = None,
    norm_stats: Mapping[str, Any] | None = None,
) -> None:
    """Write LoRA apart, as peft opens it on top of the published model.

    Args:
        adapter: "<our layer>.lora_A.weight" (r, in) and "<our layer>.lora_B.weight" (out, r).
        settings: the fields of adapter_config.json; target_modules is replaced by the published
            names of the layers that `adapter` holds.
        source: the folder of the base, for its statistics. base: how others find the base; its
            repository or, by default, `source`.
        full: what trains in full beside it, by our names. A projector that is no longer that of
            `source` goes along whole, as peft's modules_to_save.
        out, norm_stats: as for `write_openvla`.

    Raises:
        TrainingError: if there is no adapter, a layer of it is not in `source`, or another part
            than the projector is no longer that of `source`.
    """
    named = {to_published(name): value for name, value in adapter.items()}
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in named})
    shards = open_shards(source)
    strange = [layer for layer in layers if f"{layer}.weight" not in shards.shapes]
    if not layers or strange:
        raise TrainingError(
            "the adapter does not fit the checkpoint",
            got=f"layers {strange[:3]}" if strange else "no LoRA matrices",
            expected=f"LoRA matrices of layers of {source}",
            fix="give the folder that the model was loaded from",
        )
    whole = _find_whole(full or {}, shards)
    document = {
        **settings,
        "target_modules": layers,
        "modules_to_save": [_PROJECTOR] if whole else None,
        "base_model_name_or_path": base or str(source),
        "inference_mode": True,
    }
    with _appearing(out) as scratch:
        tensors = {
            f"{_PEFT_PREFIX}{name}": value for name, value in sorted({**named, **whole}.items())
        }
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        for name, value in contiguous.items():
            check_finite(f"Tensor {name}", value)
        save_file(contiguous, scratch / ADAPTER_WEIGHTS, {"format": "pt"})
        write_document(scratch / ADAPTER_CONFIG, document)
        if norm_stats is not None:
            write_document(scratch / STATISTICS, norm_stats)
        elif (source / STATISTICS).is_file():
            shutil.copyfile(source / STATISTICS, scratch / STATISTICS)


def _fill_shard(file: str, shards: Shards, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one shard's tensors, in the dtypes of the source."""
    members = [name for name, home in shards.files.items() if home == file]
    carried = find_carried(shards.shapes)
    kept = shards.read([name for name in members if name in carried])
    trained = {
        name: named[name].detach().to("cpu", shards.dtypes[name]).contiguous()
        for name in members
        if name not in carried
    }
    for name, value in trained.items():
        check_finite(f"Tensor {name}", value)
    return {**kept, **trained}


def _find_whole(full: Mapping[str, Tensor], shards: Shards) -> dict[str, Tensor]:
    """Return the projector, by published names, where it differs from the base's; else nothing.

    Other parts cannot be wrapped by peft: the published code binds a tower's forward pass to its
    first weights, which a copy goes on using, and a language model is no adapter.
    """
    named = {name: to_published(name) for name in full}
    changed = {
        name.split(".")[0]
        for name, theirs in named.items()
        if theirs not in shards.shapes or not _is_stored(full[name], theirs, shards)
    }
    if others := sorted(changed - {_PROJECTOR}):
        raise TrainingError(
            "what was trained in full cannot be written beside LoRA",
            got=f"{', '.join(others)} (adapter.full), no longer the base's",
            expected=f"LoRA, and at most the {_PROJECTOR} in full",
            fix="merge the adapter, which writes a whole checkpoint: leave --lora apart out",
        )
    return {named[name]: value for name, value in full.items() if name.split(".")[0] in changed}


def _is_stored(value: Tensor, name: str, shards: Shards) -> bool:
    """Whether a tensor, in the dtype of the checkpoint, is the one that it holds."""
    stored = shards.read([name])[name]
    return torch.equal(value.detach().to("cpu", stored.dtype), stored)


def _write_statistics(source: Path, out: Path, norm_stats: Mapping[str, Any] | None) -> None:
    """Copy config.json and dataset_statistics.json, or write both with other statistics."""
    if norm_stats is None:
        for name in (CONFIG, STATISTICS):
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        return
    plain = json.loads(json.dumps(dict(norm_stats), allow_nan=False))
    write_document(out / CONFIG, {**read_document(source, CONFIG), "norm_stats": plain})
    write_document(out / STATISTICS, plain)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Give a scratch folder beside `out` that takes its name when all is written."""
    if out.exists():
        raise ConfigurationError(
            "output folder exists already",
            got=str(out),
            expected="a folder that does not exist yet",
            fix="choose another, or remove it",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
