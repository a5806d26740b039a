"""Engines by their content: a build that was made before is taken, not made again."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training.export.compile_options import SETTINGS
from training.export.compile_target import Target
from training.files import hold_lock, replace_atomically
from vla_align_ros.contract.files import canonical_json, claim_folder, hash_file, user_cache
from vla_align_ros.errors import DataError, ExportError


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine on disk and what it was made of.

    Attributes:
        path: the engine. target: "sm89". library, library_version: that built it. onnx_sha256: of
        the graph and its weights. inputs, outputs: tensors, as in ``TensorSpec.to_dict``. options:
        as they were given. key: of all that decides the engine's bytes.
    """

    path: Path
    target: str
    library: str
    library_version: str
    onnx_sha256: str
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    options: dict[str, str]
    key: str


def hash_graph(onnx: Path) -> str:
    """Return the sha256 of an ONNX file; with weights in files beside it, that of all sha256."""
    try:
        sums = [hash_file(path)[0] for path in (onnx, *_find_weights(onnx))]
    except (OSError, ValueError) as cause:
        raise ExportError("graph cannot be read", got=cause, expected=str(onnx)) from cause
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _find_weights(onnx: Path) -> list[Path]:
    """List the files beside a graph that it names; two graphs may share one file of weights.

    A name is looked for as bytes, since reading the graph would need onnx. One that stands there
    by chance costs a needless build, never a wrong engine.
    """
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [
            path
            for path in sorted(onnx.parent.glob("*.data"))
            if content.find(path.name.encode()) >= 0
        ]


def engine_key(onnx_sha256: str, target: Target, options: Mapping[str, str]) -> str:
    """Return one name, in hex, for all that decides what an engine is."""
    facts = {
        "onnx": onnx_sha256,
        "target": target.name,
        "device": target.device,
        "library": [target.library.name, target.library.version],
        "settings": SETTINGS,
        "options": dict(options),
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def open_user_cache() -> Path | None:
    """Return the user's own cache of timings and engines, made if need be.

    None, with a warning, where it cannot be made or others can reach into it: an engine is code.
    """
    folder = user_cache("builds")
    try:
        claim_folder(folder)
    except OSError as cause:
        warnings.warn(f"nothing is cached: {cause}", RuntimeWarning, stacklevel=2)
        return None
    return folder


def keep_engine(built: BuiltEngine, folder: Path) -> None:
    """Copy an engine into the cache; a cache that cannot be written is no failure of the build."""
    try:
        with hold_lock(folder.with_suffix(".lock")):
            with replace_atomically(folder / "engine") as temporary:
                _copy(built.path, temporary)
            facts = {**asdict(built), "path": "", "sha256": hash_file(built.path)[0]}
            with replace_atomically(folder / "facts.json") as temporary:
                temporary.write_text(json.dumps(facts))
    except (OSError, DataError) as cause:
        warnings.warn(f"engine is not cached: {cause}", RuntimeWarning, stacklevel=2)
        shutil.rmtree(folder, ignore_errors=True)


def take_engine(folder: Path, out: Path, key: str) -> BuiltEngine | None:
    """Take a cached engine whose bytes are those that were kept; None if there is none."""
    try:
        facts = json.loads((folder / "facts.json").read_text())
        if facts.pop("sha256") != hash_file(folder / "engine")[0] or facts["key"] != key:
            return None
        with replace_atomically(out) as temporary:
            _copy(folder / "engine", temporary)
        for side in ("inputs", "outputs"):
            facts[side] = tuple(facts[side])
        return replace(BuiltEngine(**facts), path=out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _copy(source: Path, target: Path) -> None:
    """Share the bytes by a hard link where the file system can, else copy them."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
