"""A bundle's graphs read no weights but those whose hashes its manifest has, nor compiled parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_align_ros.contract.external_data import (
    PARTS,
    References,
    check_external_data,
    read_references,
)
from vla_align_ros.errors import BundleError

ENTRY = "StringStringEntryProto"
LISTED = {"model/policy.onnx": {}, "model/policy.onnx.data": {}, "report.json": {}}
in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def message_fields(name: str) -> dict[int, Any]:
    found = getattr(onnx, name).DESCRIPTOR.fields
    return {field.number: field for field in found if field.message_type is not None}


def leads_to_a_tensor(name: str, seen: frozenset[str] = frozenset()) -> bool:
    return name == "TensorProto" or any(
        leads_to_a_tensor(field.message_type.name, seen | {name})
        for field in message_fields(name).values()
        if field.message_type.name not in seen | {name} and hasattr(onnx, field.message_type.name)
    )


def test_the_parts_are_those_of_onnx_that_lead_to_a_tensor() -> None:
    for name, parts in PARTS.items():
        fields = {n: field.message_type.name for n, field in message_fields(name).items()}
        if name == "TensorProto":
            assert parts == {13: ENTRY} and fields[13] == ENTRY
        else:
            assert parts == {n: part for n, part in fields.items() if leads_to_a_tensor(part)}


def grow(
    message: Message,
    draw: Callable[[Any], Any],
    places: set[str],
    operators: set[str],
    depth: int,
) -> None:
    """Fill some parts of a message: operators of drawn names, tensors with data in drawn files.

    Beside them numbers as they stand in every graph: of ten bytes where negative, of four.
    """
    if message.DESCRIPTOR.name == "AttributeProto":
        message.i = draw(st.integers(-(2**63), 2**63 - 1))  # type: ignore[attr-defined]
        message.f = draw(st.floats(width=32))  # type: ignore[attr-defined]
    if message.DESCRIPTOR.name == "NodeProto":
        message.op_type = draw(st.sampled_from(["Add", "EPContext"]))  # type: ignore[attr-defined]
        operators.add(message.op_type)  # type: ignore[attr-defined]
    for number, part in PARTS[message.DESCRIPTOR.name].items():
        field = message_fields(message.DESCRIPTOR.name)[number]
        for _ in range(draw(st.integers(0, 2 if depth else 0))):
            inner = getattr(message, field.name)
            inner = inner.add() if hasattr(inner, "add") else inner
            if part == ENTRY:
                inner.key = draw(st.sampled_from(["location", "offset", "length"]))
                inner.value = draw(st.text(max_size=8))
                places |= {inner.value} if inner.key == "location" else set()
            else:
                grow(inner, draw, places, operators, depth - 1)


@in_one_folder
@given(data=st.data())
def test_every_place_and_operator_is_found_wherever_it_stands(tmp_path: Path, data: Any) -> None:
    model = onnx.ModelProto(producer_name="p", ir_version=10)
    places, operators = set[str](), set[str]()
    grow(model, data.draw, places, operators, 5)
    path = tmp_path / "any.onnx"
    path.write_bytes(model.SerializeToString())
    assert read_references(path) == References(frozenset(places), frozenset(operators))


@in_one_folder
@given(content=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.onnx"
    path.write_bytes(content)
    with contextlib.suppress(BundleError):
        read_references(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a\x05\x0a",  # a graph of five bytes that ends after one
        b"\x3b\x3c",  # a group
        b"\xba\x80\x80\x80\x90\x01\x00",  # the graph's tag for who reads its lowest 32 bits
        b"\x3a" + b"\x80" * 11,
        b"\x02\x00",  # a field of the number 0
        b"\x09" + bytes(7),  # eight bytes that end after seven
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policy.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"policy\.onnx is no ONNX file"):
        read_references(tmp_path / "policy.onnx")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BundleError, match="is no ONNX file"):
            read_references(path)


def length_delimited(number: int, content: bytes) -> bytes:
    assert number < 16 and len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def test_of_a_place_that_stands_twice_the_one_is_found_that_protobuf_takes(tmp_path: Path) -> None:
    first = onnx.StringStringEntryProto(key="location", value="policy.onnx.data")
    second = onnx.StringStringEntryProto(value="/etc/hostname")
    content = first.SerializeToString() + second.SerializeToString()
    for number in (13, 5, 7):  # of the entry in its tensor, of that in its graph, and in its model
        content = length_delimited(number, content)
    (entry,) = onnx.ModelProto.FromString(content).graph.initializer[0].external_data
    assert (entry.key, entry.value) == ("location", "/etc/hostname")
    (tmp_path / "any.onnx").write_bytes(content)
    assert read_references(tmp_path / "any.onnx").files == {"/etc/hostname"}


def test_fields_of_fixed_width_are_passed_over(tmp_path: Path) -> None:
    graph = onnx.GraphProto(node=[onnx.NodeProto(op_type="Add")])
    (tmp_path / "any.onnx").write_bytes(
        b"\x09"
        + b"\xff" * 8
        + b"\x0d"
        + b"\xff" * 4
        + onnx.ModelProto(graph=graph).SerializeToString()
    )
    assert read_references(tmp_path / "any.onnx").operators == {"Add"}


def write_graph(root: Path, *locations: str) -> None:
    tensors = []
    for location in locations:
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
        tensor.external_data.add(key="location", value=location)
        tensors.append(tensor)
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=tensors))
    (root / "model").mkdir()
    (root / "model" / "policy.onnx").write_bytes(model.SerializeToString())


def test_weights_in_a_listed_file_beside_the_graph_are_taken(tmp_path: Path) -> None:
    write_graph(tmp_path, "policy.onnx.data")
    check_external_data(tmp_path, "model/policy.onnx", LISTED)


@pytest.mark.parametrize(
    "location",
    [
        "/etc/hostname",
        "../../outside.bin",
        "../engines/in.bin",
        "../report.json",
        "report.json",
        "./policy.onnx.data",
        "other.data",
        "*/_ORT_MEM_ADDR_/*",
        "",
    ],
)
def test_weights_in_any_other_file_are_refused(tmp_path: Path, location: str) -> None:
    write_graph(tmp_path, "policy.onnx.data", location)
    with pytest.raises(BundleError, match="does not vouch for"):
        check_external_data(tmp_path, "model/policy.onnx", LISTED)


@pytest.mark.parametrize("branch", [False, True], ids=["node", "branch_of_a_node"])
def test_a_part_that_was_compiled_beforehand_is_refused(tmp_path: Path, branch: bool) -> None:
    compiled = onnx.NodeProto(op_type="EPContext", domain="com.microsoft")
    compiled.attribute.add(name="ep_cache_context", s=b"../engine.bin")
    nodes = onnx.GraphProto(node=[compiled])
    if branch:
        choice = onnx.NodeProto(op_type="If")
        choice.attribute.add(name="then_branch", g=nodes)
        nodes = onnx.GraphProto(node=[choice])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "policy.onnx").write_bytes(
        onnx.ModelProto(graph=nodes).SerializeToString()
    )
    with pytest.raises(BundleError, match="compiled for a device beforehand"):
        check_external_data(tmp_path, "model/policy.onnx", LISTED)


@pytest.mark.parametrize("name", ["model/policy.ort", "model/policy.onnx.ort"])
def test_a_graph_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    write_graph(tmp_path)
    (tmp_path / "model/policy.onnx").rename(tmp_path / name)
    with pytest.raises(BundleError, match="no ONNX file"):
        check_external_data(tmp_path, name, {name: {}})
