"""Engines into a bundle: all graphs of a target at once, in place of those that were there."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.export.compile_cache import BuiltEngine
from training.files import hold_lock, sync_folder
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import (
    FORMAT,
    SCHEMA_VERSION,
    SIDECAR,
    EngineSet,
    engine_folder,
    seal,
)
from vla_align_ros.contract.files import hash_file, readable_json, sync_path, write_durably
from vla_align_ros.errors import ExportError

_HERE = -100  # AT_FDCWD: paths are relative to the working folder
_EXCHANGE = 2  # RENAME_EXCHANGE
_NEW, _OLD = "new", "old"  # folders beside the bundle: of the set to come, of the one that was


def add_engine_set(
    bundle: Bundle, target: str, engines: Mapping[str, BuiltEngine], facts: Mapping[str, Any]
) -> EngineSet:
    """Write ``engines/<target>/`` of a bundle, replacing an earlier set in one step.

    They are written beside the bundle, opened as a robot would open them, and only then moved in.
    What an earlier call left there when it was killed is put back or removed.

    Args:
        bundle: opened. target: name of the folder, such as "sm89". engines: by the name of the
            graph. facts: "precision", "scheme", "command" as text, and "versions" of packages.

    Returns:
        The opened engine set, with no gates yet.

    Raises:
        ExportError: if the engines differ in target or library, or the disk refuses; the bundle
            then is as it was.
    """
    sidecar = _describe(bundle, target, engines, facts)
    destination = engine_folder(bundle.path, target)
    beside = bundle.path.with_name(f".{bundle.path.name}.engines")
    try:
        with hold_lock(beside.with_suffix(".lock")):
            _tidy(bundle, beside)
            staging = beside / _NEW / target
            staging.mkdir(parents=True)
            try:
                for name, engine in engines.items():
                    _copy(engine.path, staging / f"{name}.engine")
                write_durably(staging / SIDECAR, readable_json(seal(sidecar)))
                sync_path(staging)
                EngineSet.open(staging, bundle.id)
                _move_in(staging, destination, beside / _OLD / target)
            finally:
                _tidy(bundle, beside)
    except OSError as cause:
        raise ExportError(
            "engines cannot be written into the bundle",
            got=cause,
            expected=f"room and permission to write at {bundle.path} and beside it",
            fix="make room, or copy the bundle to a folder of your own",
        ) from cause
    return EngineSet.open(destination, bundle.id)


def _describe(
    bundle: Bundle, target: str, engines: Mapping[str, BuiltEngine], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of engine.json; ExportError unless the engines belong together."""
    sources = {(e.target, e.library, e.library_version) for e in engines.values()}
    if len(sources) != 1 or next(iter(sources))[0] != target:
        raise ExportError(
            "engines do not belong together",
            got=sorted(sources),
            expected=f"one library, and the target {target}",
            fix="build all graphs again",
        )
    wanted = {"precision", "scheme", "command", "versions"}
    if set(facts) != wanted:
        raise ExportError("facts of the engines are wrong", got=sorted(facts), expected=wanted)
    ((_, library, version),) = sources
    graphs = {}
    for name, engine in engines.items():
        sha256, size = hash_file(engine.path)
        graphs[name] = {
            "path": f"{name}.engine",
            "sha256": sha256,
            "bytes": size,
            "onnx_sha256": engine.onnx_sha256,
            "inputs": list(engine.inputs),
            "outputs": list(engine.outputs),
        }
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "bundle_id": bundle.id,
        "target": target,
        "architecture": target,
        "library": library,
        "library_version": version,
        **facts,
        "graphs": graphs,
        "gates": {},
    }


def _copy(source: Path, copy: Path) -> None:
    """Copy an engine; no link, for what lies in a bundle is the bundle's alone."""
    shutil.copyfile(source, copy)
    copy.chmod(0o644)
    sync_path(copy)


def _move_in(staging: Path, destination: Path, old: Path) -> None:
    """Put a folder into place; an earlier one is exchanged for it where the kernel can."""
    destination.parent.mkdir(exist_ok=True)
    if not destination.exists():
        os.rename(staging, destination)
    elif not _exchange(staging, destination):
        old.parent.mkdir()
        os.rename(destination, old)
        os.rename(staging, destination)  # where this fails or is killed, `_tidy` undoes the first
    sync_folder(destination.parent)


def _tidy(bundle: Bundle, beside: Path) -> None:
    """Put engines back that were moved out of the bundle for others that never came; drop all."""
    for old in (beside / _OLD).glob("*"):
        destination = engine_folder(bundle.path, old.name)
        if not destination.exists():
            os.rename(old, destination)
            sync_folder(destination.parent)
    shutil.rmtree(beside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where libc or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return bool(done == 0)
