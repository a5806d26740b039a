"""Graphs of a policy fit its processor and each other, or the bundle is refused."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_policy import make_processor, make_spec

from vla_align_ros.contract.graphs import (
    GraphSpec,
    check_graphs,
    chunk_graphs,
    find_layout,
    token_graphs,
)
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BundleError, ContractError

CHUNK = make_processor()
TOKENS = make_processor(make_spec(horizon=1, state=False))


def to_json(specs):
    return {spec.name: {"path": f"model/{spec.name}.onnx", **spec.to_dict()} for spec in specs}


def layouts():
    return {
        "chunk": (CHUNK, chunk_graphs(CHUNK)),
        "split": (CHUNK, chunk_graphs(CHUNK, (1, 9, 32))),
        "tokens": (TOKENS, token_graphs(TOKENS, (1, 9, 32), rows=38, block=(3, 2, 8))),
    }


@pytest.mark.parametrize("name", ["chunk", "split", "tokens"])
def test_what_a_layout_describes_is_read_back(name):
    processor, specs = layouts()[name]
    assert check_graphs(to_json(specs), processor) == specs


def test_a_further_graph_takes_no_part():
    graphs = to_json(chunk_graphs(CHUNK)) | {"sight": {"path": "model/sight.onnx"}}
    assert [spec.name for spec in check_graphs(graphs, CHUNK)] == ["policy"]


@pytest.mark.parametrize("names", [(), ("vision",), ("prefill", "decode"), ("vision", "decode")])
def test_graphs_that_make_no_policy_are_refused_with_those_that_do(names):
    with pytest.raises(BundleError, match="vision\\+prefill\\+decode"):
        find_layout(names)


@given(st.data())
def test_any_changed_tensor_is_refused(data):
    processor, specs = layouts()[data.draw(st.sampled_from(["chunk", "split", "tokens"]))]
    graphs = copy.deepcopy(to_json(specs))
    spec = data.draw(st.sampled_from(specs))
    side = data.draw(st.sampled_from(["inputs", "outputs"]))
    tensors = graphs[spec.name][side]
    tensor = tensors[data.draw(st.integers(0, len(tensors) - 1))]
    match data.draw(st.sampled_from(["name", "dtype", "rank", "gone"])):
        case "name":
            tensor["name"] += "_"
        case "dtype":
            tensor["dtype"] = "float64"
        case "rank":
            tensor["shape"] = [*tensor["shape"], 1]
        case "gone":
            tensors.remove(tensor)
    with pytest.raises(BundleError):
        check_graphs(graphs, processor)


def test_a_cache_without_extents_is_refused():
    processor, specs = layouts()["tokens"]
    graphs = copy.deepcopy(to_json(specs))
    for tensor in (t for graph in graphs.values() for t in graph["inputs"] + graph["outputs"]):
        if tensor["name"] == "keys":
            tensor["shape"] = []
    with pytest.raises(BundleError):
        check_graphs(graphs, processor)


def test_a_shape_that_is_not_fixed_is_refused():
    graphs = to_json(chunk_graphs(CHUNK, (1, 9, 32)))
    for entry, side in (("vision", "outputs"), ("policy", "inputs")):
        graphs[entry][side][0]["shape"] = [1, None, 32]
    with pytest.raises(BundleError, match="not static"):
        check_graphs(graphs, CHUNK)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "x", "dtype": "float32", "shape": [1, -2]},
        {"name": "x", "dtype": "float32", "shape": [True]},
        {"name": "x", "dtype": "float32", "shape": "12"},
        {"name": 3, "dtype": "float32", "shape": []},
        {"name": "x", "dtype": "float32"},
        [],
    ],
)
def test_a_tensor_that_is_none_is_refused(data):
    with pytest.raises(ContractError):
        TensorSpec.from_dict(data)
    with pytest.raises(ContractError):
        GraphSpec.from_dict("policy", {"inputs": [data], "outputs": []})
    with pytest.raises(ContractError):
        GraphSpec.from_dict("policy", {"inputs": "no list", "outputs": []})
