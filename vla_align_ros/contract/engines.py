"""Engines compiled from a bundle for one GPU: a sidecar says of what, for what and with what proof.

An engine set lies in ``BUNDLE/engines/<target>/``: one ``<graph>.engine`` a graph, and
``engine.json``. It is outside of the bundle's id, because it is made from the bundle; the sidecar
names that id, the library and the GPU, and none other is served. Needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.contract.files import (
    canonical_json,
    hash_file,
    lock_folder,
    read_json_object,
    readable_json,
    replace_in_bundle,
)
from vla_align_ros.errors import BundleError

ENGINES = "engines"
SIDECAR = "engine.json"
FORMAT = "vla_align_ros.engine"
SCHEMA_VERSION = 1
LIBRARIES = ("tensorrt", "tensorrt_rtx")
AHEAD_OF_TIME = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Targets that TensorRT-RTX builds for without a GPU; all others are built on their own device."""

_COMMAND = ("vla-align", "export", "--trt")
_TARGET = re.compile(r"sm[0-9]{2,3}")
_GRAPH = re.compile(r"[a-z][a-z0-9_]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GRAPH_KEYS = {"path", "sha256", "bytes", "onnx_sha256", "inputs", "outputs"}
_TEXTS = (
    "bundle_id",
    "target",
    "architecture",
    "library",
    "library_version",
    "precision",
    "scheme",
    "command",
)
_KEYS = {"format", "schema_version", *_TEXTS, "versions", "graphs", "gates", "sha256"}


class EngineSet:
    """The engines of one bundle for one GPU architecture. Use ``Bundle.engine`` to open one.

    Attributes:
        path: the folder ``engines/<target>``. facts: content of engine.json, already checked:
        ``target`` and ``architecture`` ("sm89"), ``library`` ("tensorrt" or "tensorrt_rtx"),
        ``library_version``, ``precision``, ``scheme``, ``command``, ``versions``, ``graphs``
        (name -> path, sha256, bytes, onnx_sha256, inputs, outputs) and ``gates``.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.facts = facts

    @classmethod
    def open(cls, path: Path | str, bundle_id: str) -> EngineSet:
        """Open an engine set after checking schema, bundle, paths, sizes and every sha256.

        Raises:
            BundleError: if it is none, belongs to another bundle, or a file is missing, extra,
                altered, truncated or a link.
        """
        root = Path(path)
        fix = _fix(root)
        present = _list_plain_files(root, fix)
        if SIDECAR not in present:
            raise BundleError(
                f"engine set has no {SIDECAR}", got=sorted(present)[:8], expected=SIDECAR, fix=fix
            )
        facts = read_json_object(root / SIDECAR, BundleError)
        _check_sidecar(facts, root.name, bundle_id, fix)
        listed = {str(graph["path"]): graph for graph in facts["graphs"].values()}
        if present - {SIDECAR} != set(listed):
            raise BundleError(
                "engine set's files differ from its sidecar",
                got=sorted(present - {SIDECAR}),
                expected=sorted(listed),
                fix=fix,
            )
        for name, graph in listed.items():
            try:
                found = hash_file(root / name)
            except OSError as cause:
                raise BundleError(f"cannot read {name}", got=cause, fix=fix) from cause
            if found != (graph["sha256"], graph["bytes"]):
                raise BundleError(
                    f"engine {name} was altered or truncated",
                    got=f"{found[1]} bytes, sha256 {found[0]}",
                    expected=f"{graph['bytes']} bytes, sha256 {graph['sha256']}",
                    fix=fix,
                )
        return cls(root, facts)

    @property
    def target(self) -> str:
        """What was asked for, such as "sm89"; the name of the folder."""
        return str(self.facts["target"])

    @property
    def precision(self) -> str:
        """Precision of the weights, such as "int8"."""
        return str(self.facts["precision"])

    @property
    def gates(self) -> dict[str, Any]:
        """What ``verify`` proved of these engines; {} while nothing is proved."""
        return dict(self.facts["gates"])

    def engine_path(self, graph: str) -> Path:
        """Return the path of a graph's engine; BundleError, naming those there are, if missing."""
        graphs = self.facts["graphs"]
        if graph not in graphs:
            raise BundleError(
                "engine set has no such graph",
                got=repr(graph),
                expected=sorted(graphs),
                fix=_fix(self.path),
            )
        return self.path / str(graphs[graph]["path"])

    def repeat_command(self, target: str) -> str:
        """Return the command that made these engines, for the bundle where it lies and a target."""
        plain = build_command(self.path.parent.parent, target, self.precision)
        try:
            words = shlex.split(self.facts["command"])
        except ValueError:
            return plain
        known = shlex.split(plain)
        # Nothing shows that nobody wrote another command there, which somebody might paste.
        if tuple(words[: len(_COMMAND)]) != _COMMAND:
            return plain
        return shlex.join([*known, *words[len(known) :]])

    def add_gates(self, gates: Mapping[str, Any]) -> EngineSet:
        """Put results into the sidecar's gates, replacing those of the same name, in one step.

        What others put there at the same time is kept: they wait.

        Raises:
            BundleError: if they cannot be written there, or the engines were made again since they
                were opened.
        """
        name = f"{ENGINES}/{self.path.name}/{SIDECAR}"
        with lock_folder(self.path):
            facts = seal({**self.facts, "gates": {**self.read_gates(), **gates}})
            replace_in_bundle(self.path.parent.parent, name, readable_json(facts))
        return EngineSet(self.path, facts)

    def read_gates(self) -> dict[str, Any]:
        """Read what the sidecar's gates are by now; BundleError if it is of other engines."""
        found = read_json_object(self.path / SIDECAR, BundleError)
        gates: Any = found.get("gates")
        if not _are_gates(gates) or found != seal({**self.facts, "gates": gates}):
            raise BundleError(
                "engines were made again since they were opened",
                got=f"another {SIDECAR} in {self.path}",
                expected="the one that was opened",
                fix="verify those that lie there now",
            )
        return dict(gates)


def seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an engine set with the hash of themselves, ready to be written."""
    return {**facts, "sha256": _hash_facts(facts)}


def engine_folder(bundle: Path, target: str) -> Path:
    """Return where a bundle's engines for a target lie; BundleError if it is no target's name."""
    if not _TARGET.fullmatch(target):
        raise BundleError("engine target is unknown", got=repr(target), expected="such as sm89")
    return bundle / ENGINES / target


def list_targets(bundle: Path) -> list[str]:
    """Return the targets that a bundle folder has engines for, sorted; nothing is checked yet."""
    root = bundle / ENGINES
    if not root.is_dir():
        return []
    return sorted(
        entry.name
        for entry in root.iterdir()
        if _TARGET.fullmatch(entry.name) and (entry / SIDECAR).is_file()
    )


def build_command(
    bundle: Path,
    target: str,
    precision: str = "bf16",
    *,
    block: int | None = None,
    options: Iterable[str] = (),
    data: Iterable[str | Path] = (),
) -> str:
    """Return the command that makes the engines of a bundle for a target.

    Args:
        bundle, target, precision: what it is made of, for and in. block: of int4, where it is not
            the default. options: of the builder. data: what ranges are measured on.
    """
    asked = target if target in AHEAD_OF_TIME else "device"
    words = [*_COMMAND, "--bundle", str(bundle), "--target", asked, "--precision", precision]
    words += [] if block is None else ["--block", str(block)]
    words += [word for option in options for word in ("--trt-option", option)]
    roots = [str(root) for root in data]
    return shlex.join([*words, *(["--data", *roots] if roots else [])])


def _check_sidecar(facts: Mapping[str, Any], folder: str, bundle_id: str, fix: str) -> None:
    """Check the sidecar's own words; BundleError names the first that is wrong."""

    def refuse(summary: str, got: object, expected: object) -> None:
        raise BundleError(summary, got=got, expected=expected, fix=fix)

    identity = (facts.get("format"), facts.get("schema_version"))
    if identity != (FORMAT, SCHEMA_VERSION):
        refuse("engine sidecar is of another format", identity, (FORMAT, SCHEMA_VERSION))
    if set(facts) != _KEYS:
        refuse("engine sidecar has the wrong keys", sorted(facts), sorted(_KEYS))
    if facts["sha256"] != _hash_facts(facts):
        refuse("engine sidecar was altered", _hash_facts(facts), facts["sha256"])
    wrong = [key for key in _TEXTS if not isinstance(facts[key], str)]
    wrong += [key for key in ("versions", "graphs") if not isinstance(facts[key], dict)]
    wrong += [] if _are_gates(facts["gates"]) else ["gates"]
    if wrong or not facts["graphs"]:
        refuse("engine sidecar has values of the wrong type", wrong, "texts and filled objects")
    if facts["bundle_id"] != bundle_id:
        refuse("engines belong to another bundle", facts["bundle_id"], bundle_id)
    if facts["target"] != folder or not _TARGET.fullmatch(folder):
        refuse("engines lie in another target's folder", facts["target"], folder)
    if facts["library"] not in LIBRARIES:
        refuse("engine library is unknown", facts["library"], " or ".join(LIBRARIES))
    for name, graph in facts["graphs"].items():
        if not _is_graph(name, graph):
            refuse(f"engine sidecar's graph {name!r} is malformed", graph, sorted(_GRAPH_KEYS))


def _are_gates(gates: object) -> bool:
    """Say whether a sidecar's gates are objects by name, as `is_proved` reads them."""
    return isinstance(gates, dict) and all(isinstance(gate, dict) for gate in gates.values())


def _is_graph(name: str, graph: object) -> bool:
    """Say whether a sidecar's entry of a graph has the right form, its path above all."""
    return (
        bool(_GRAPH.fullmatch(name))
        and isinstance(graph, dict)
        and set(graph) == _GRAPH_KEYS
        and graph["path"] == f"{name}.engine"
        and all(_is_sha256(graph[key]) for key in ("sha256", "onnx_sha256"))
        and type(graph["bytes"]) is int
        and all(
            isinstance(graph[key], list) and all(isinstance(t, dict) for t in graph[key])
            for key in ("inputs", "outputs")
        )
    )


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def _list_plain_files(root: Path, fix: str) -> set[str]:
    """Return the names in an engine set's folder; BundleError unless all are regular files."""
    try:
        if root.is_symlink() or root.parent.is_symlink() or not root.is_dir():
            raise BundleError(
                "no such engine set",
                got=str(root),
                expected=f"a folder with a {SIDECAR}, reached through no link",
                fix=fix,
            )
        with os.scandir(root) as entries:
            modes = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    except OSError as cause:
        raise BundleError(
            "engine set cannot be read", got=cause, fix="check its permissions"
        ) from cause
    others = sorted(name for name, mode in modes.items() if not stat.S_ISREG(mode))
    if others:
        raise BundleError(
            "engine set holds something other than plain files",
            got=others,
            expected="no links, folders, sockets or devices",
            fix=fix,
        )
    return set(modes)


def _fix(root: Path) -> str:
    return "build them again: " + build_command(root.parent.parent, root.name)


def _hash_facts(facts: Mapping[str, Any]) -> str:
    content = {key: value for key, value in facts.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(content)).hexdigest()
