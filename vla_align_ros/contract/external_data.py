"""What an ONNX graph brings from elsewhere, by the file's own bytes; needs no onnx.

That is the files that it takes weights from, and what was compiled for a device beforehand. Of
protobuf's wire format only what leads to a node or a tensor is followed; weights are skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vla_align_ros.errors import BundleError

GRAPH_SUFFIX = ".onnx"  # by the name alone ONNX Runtime reads a file as one of its other formats

PARTS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""By message of onnx.proto: the numbers of its fields that may hold a tensor's external data."""

COMPILED = "EPContext"
"""ONNX Runtime's operator for a device's program, in the node or in a file: it is run unread."""

_ENTRY = "StringStringEntryProto"
_NODE, _OPERATOR = "NodeProto", 4
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_LARGEST_TAG = 2**32 - 1


@dataclass(frozen=True, slots=True)
class References:
    """What a graph names: the places of its tensors' external data, and its operators."""

    files: frozenset[str]
    operators: frozenset[str]


def check_external_data(root: Path, graph: str, files: Mapping[str, Any]) -> None:
    """Check that a graph is all there: operators, and weights in files whose hashes are known.

    Args:
        root: the bundle's folder. graph: path of the graph in it. files: what the manifest lists.

    Raises:
        BundleError: if it would read a file that does not lie beside it or that the manifest does
            not list, holds a part that was compiled beforehand, or is no ONNX file.
    """
    if not graph.endswith(GRAPH_SUFFIX):
        raise BundleError("bundle's graph is no ONNX file", got=graph, expected=f"*{GRAPH_SUFFIX}")
    folder = PurePosixPath(graph).parent
    beside = {name.name for name in map(PurePosixPath, files) if name.parent == folder}
    found = read_references(root / graph)
    if COMPILED in found.operators:
        raise BundleError(
            f"{graph} holds a part that was compiled for a device beforehand",
            got=f"an operator {COMPILED}",
            expected="operators that can be read and proven; engines lie in a folder of their own",
            fix="export the policy again; do not use this bundle",
        )
    strange = found.files - beside
    if strange:
        raise BundleError(
            f"{graph} takes weights from a file that the manifest does not vouch for",
            got=ascii(sorted(strange)[:4]),
            expected=f"names of files beside it that the manifest lists: {sorted(beside)}",
            fix="export the policy again; do not use this bundle",
        )


def read_references(path: Path) -> References:
    """Return what an ONNX file names as places of external data and as operators.

    Raises:
        BundleError: if the file cannot be read, or is no protobuf message.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            found = set(_find_references(data))
    except (OSError, ValueError) as cause:
        raise BundleError(
            f"{path.name} is no ONNX file", got=cause, expected="a serialised ModelProto"
        ) from cause
    files, operators = (
        frozenset(name for message, name in found if message == kind) for kind in (_ENTRY, _NODE)
    )
    return References(files, operators)


def _find_references(data: mmap.mmap) -> Iterator[tuple[str, str]]:
    """Give ("StringStringEntryProto", place) and ("NodeProto", operator) as often as they stand."""
    waiting = [("ModelProto", 0, len(data))]
    while waiting:
        message, begin, end = waiting.pop()
        if message == _ENTRY:
            entry = {n: data[first:last] for n, first, last in _read_fields(data, begin, end)}
            if entry.get(1) == b"location":
                yield _ENTRY, entry.get(2, b"").decode(errors="replace")
            continue
        for number, first, last in _read_fields(data, begin, end):
            if message == _NODE and number == _OPERATOR:
                yield _NODE, data[first:last].decode(errors="replace")
            part = PARTS[message].get(number)
            if part is not None:
                waiting.append((part, first, last))


def _read_fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give number, begin and end of every field with a length; skip the others.

    ValueError on what protobuf would refuse, or might read otherwise than this.
    """
    while at < end:
        tag, at = _read_varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if tag > _LARGEST_TAG or number == 0:
            raise ValueError(f"field {number} at byte {at}")
        if kind == _VARINT:
            _, at = _read_varint(data, at, end)
        elif kind == _LENGTH:
            size, at = _read_varint(data, at, end)
            yield number, at, at + size
            at += size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
    if at != end:
        raise ValueError(f"a field ends at byte {at}, its message at {end}")


def _read_varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number that does not end at byte {at}")
