"""The manifest of a bundle: which files belong to it, their hashes, and what they mean."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vla_align_ros.contract.engines import ENGINES
from vla_align_ros.contract.files import (
    canonical_json,
    hash_file,
    read_json_object,
    readable_json,
    write_durably,
)
from vla_align_ros.contract.graphs import check_graphs
from vla_align_ros.contract.motion_limits import check_motion_limits
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import BundleError, ContractError

FORMAT = "vla_align_ros.bundle"
SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.json"
REFETCH = "fetch or export the bundle again"

_KEYS = {
    "format",
    "schema_version",
    "id",
    "provenance",
    "spec_fingerprint",
    "processor",
    "graphs",
    "files",
    "manifest_sha256",
}
_SAFE_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def write_manifest(
    root: Path,
    processor: Processor,
    graphs: dict[str, dict[str, Any]],
    provenance: Mapping[str, Any],
    limits: Mapping[str, float] | None = None,
) -> None:
    """Hash all files that lie in ``root``, and write the manifest beside them."""
    files = {}
    for name in sorted(list_files(root)):
        sha256, size = hash_file(root / name)
        files[name] = {"sha256": sha256, "bytes": size}
    manifest = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "id": _compute_id(files),
        "provenance": dict(provenance),
        "spec_fingerprint": processor.spec.fingerprint(),
        "processor": processor.to_dict(),
        "graphs": graphs,
        "files": files,
        **({} if limits is None else {"limits": check_motion_limits(limits)}),
    }
    manifest["manifest_sha256"] = _hash_manifest(manifest)
    write_durably(root / MANIFEST_NAME, readable_json(manifest))


def read_manifest(root: Path, present: set[str]) -> dict[str, Any]:
    """Read the manifest; BundleError if it is missing, foreign or altered."""
    if MANIFEST_NAME not in present:
        raise BundleError(
            "folder is no policy bundle",
            got=sorted(present)[:8],
            expected=f"a {MANIFEST_NAME}",
            fix="give the folder that `vla-align export` wrote",
        )
    manifest = read_json_object(root / MANIFEST_NAME, BundleError)
    identity = (manifest.get("format"), manifest.get("schema_version"))
    if identity != (FORMAT, SCHEMA_VERSION):
        raise BundleError(
            "manifest is of another format",
            got=identity,
            expected=(FORMAT, SCHEMA_VERSION),
            fix="export the policy with this version of vla_align_ros",
        )
    if set(manifest) - {"limits"} != _KEYS:
        raise BundleError(
            "manifest has the wrong keys", got=sorted(manifest), expected=sorted(_KEYS), fix=REFETCH
        )
    if manifest["manifest_sha256"] != _hash_manifest(manifest):
        raise BundleError(
            "manifest was altered",
            got=_hash_manifest(manifest),
            expected=manifest["manifest_sha256"],
            fix=REFETCH,
        )
    return manifest


def check_files(root: Path, files: object, present: set[str]) -> None:
    """Check paths, sizes and hashes; BundleError if a file is missing, extra or altered."""
    if not isinstance(files, dict):
        raise BundleError("manifest lists no files", got=type(files).__name__, expected="an object")
    for name, entry in files.items():
        if (
            not _SAFE_PATH.fullmatch(name)
            or not isinstance(entry, dict)
            or set(entry) != {"sha256", "bytes"}
        ):
            raise BundleError(
                "manifest lists a file that no bundle may hold",
                got=repr(name),
                expected="a plain path below the bundle, with sha256 and bytes",
                fix=REFETCH,
            )
    missing = sorted(set(files) - present)
    extra = sorted(present - set(files) - {MANIFEST_NAME, REPORT_NAME})
    if missing or extra:
        raise BundleError(
            "bundle's files differ from its manifest",
            got=f"missing {missing}, extra {extra}",
            expected="exactly the files listed",
            fix=REFETCH,
        )
    for name, entry in files.items():
        try:
            sha256, size = hash_file(root / name)
        except OSError as cause:
            raise BundleError(
                f"cannot read {name}", got=cause, expected="a regular file"
            ) from cause
        if {"sha256": sha256, "bytes": size} != entry:
            raise BundleError(
                f"{name} was altered",
                got=f"{size} bytes, sha256 {sha256}",
                expected=f"{entry['bytes']} bytes, sha256 {entry['sha256']}",
                fix=REFETCH,
            )


def check_consistency(manifest: Mapping[str, Any], processor: Processor) -> None:
    """Check what the manifest repeats against the files; BundleError if it says something else."""
    facts = {
        "id": _compute_id(manifest["files"]),
        "spec_fingerprint": processor.spec.fingerprint(),
        "processor": processor.to_dict(),
    }
    for name, value in facts.items():
        if manifest[name] != value:
            raise BundleError(
                f"manifest's {name} does not follow from the files",
                got=manifest[name],
                expected=value,
                fix=REFETCH,
            )
    graphs = manifest["graphs"]
    if not isinstance(graphs, dict):
        raise BundleError("manifest names no graphs", got=graphs, expected="an object")
    for name, entry in graphs.items():
        path = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(path, str) or path not in manifest["files"]:
            raise BundleError(
                f"graph {name!r} is not among the files",
                got=entry,
                expected=sorted(manifest["files"]),
            )
    check_graphs(graphs, processor)
    try:
        check_motion_limits(manifest.get("limits", {}))
    except ContractError as cause:
        raise BundleError("bundle's limits cannot be used", got=cause, fix=REFETCH) from cause
    if not isinstance(manifest["provenance"], dict) or not isinstance(
        manifest["provenance"].get("precision"), str
    ):
        raise BundleError(
            "provenance lacks the precision",
            got=manifest["provenance"],
            expected="an object with the key 'precision'",
        )


def list_files(root: Path) -> set[str]:
    """Return the relative paths of all files; BundleError if a link or a device lies there.

    Engines are looked through for links, and left out: they are made from the bundle.
    """
    found: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=False, onerror=_raise):
        for name in (*folders, *files):
            entry = Path(folder, name)
            try:
                mode = entry.lstat().st_mode
            except OSError as cause:
                _raise(cause)
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise BundleError(
                    "bundle holds something other than plain files",
                    got=entry.relative_to(root),
                    expected="no links, sockets or devices",
                    fix="copy the bundle with its links resolved",
                )
        found.update(Path(folder, name).relative_to(root).as_posix() for name in files)
    return {name for name in found if not name.startswith(f"{ENGINES}/")}


def _raise(cause: OSError) -> NoReturn:
    raise BundleError("bundle cannot be read", got=cause, fix="check its permissions") from cause


def _compute_id(files: Mapping[str, Any]) -> str:
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _hash_manifest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(canonical_json(content)).hexdigest()
