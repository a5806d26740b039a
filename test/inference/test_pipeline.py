"""Several graphs act as one: in order, with a cache that grows by a row a step."""

from __future__ import annotations

import numpy as np
import pytest
from sample_policy import make_processor, make_spec

from vla_align_ros.contract.graphs import chunk_graphs, token_graphs
from vla_align_ros.contract.spec import ACTION_DIM
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import FakeBackend
from vla_align_ros.inference.pipeline import GraphPipeline

TOKENS = make_processor(make_spec(horizon=1, state=False))
READ, BLOCK = 30, (2, 1, 3)
ROWS = READ + ACTION_DIM - 1
SPECS = token_graphs(TOKENS, (1, 4, 8), rows=ROWS, block=BLOCK)


class Graph:
    """A graph in numpy, with the tensors of its specification."""

    name = "numpy"

    def __init__(self, spec, function):
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self.function = function
        self.calls = 0
        self.closed = False

    def infer(self, inputs):
        self.calls += 1
        return self.function(inputs)

    def close(self):
        self.closed = True


def vision(inputs):
    return {"visual": np.full((1, 4, 8), inputs["pixel_values"].mean(), np.float32)}


def prefill(inputs):
    keys = np.zeros((ROWS, *BLOCK), np.float32)
    keys[:READ] = 1.0
    return {
        "token": np.array([[100]]),
        "action": np.array([[0.1]], np.float32),
        "keys": keys,
        "values": 2 * keys,
    }


def decode(inputs):
    """The next token counts the rows that the cache holds; the step's rows hold the token."""
    held = (inputs["keys"].reshape(ROWS, -1) != 0).all(axis=1)
    step = int(inputs["step"][0])
    assert held[: READ + step].all() and not held[READ + step :].any()
    expected = np.arange(100, 100 + step)
    assert np.array_equal(inputs["keys"][READ : READ + step, 0, 0, 0], expected)
    token = inputs["token"]
    new = np.full((1, *BLOCK), float(token[0, 0]), np.float32)
    return {
        "next_token": token + 1,
        "action": (token + 1).astype(np.float32) / 100,
        "new_keys": new,
        "new_values": 2 * new,
    }


def make_pipeline():
    functions = {"vision": vision, "prefill": prefill, "decode": decode}
    return GraphPipeline(SPECS, {spec.name: Graph(spec, functions[spec.name]) for spec in SPECS})


def make_inputs(processor):
    return {
        tensor.name: np.ones(tuple(n or 1 for n in tensor.shape), tensor.dtype)
        for tensor in processor.input_tensors()
    }


def test_a_token_policy_decodes_one_token_for_each_dimension():
    out = make_pipeline().infer(make_inputs(TOKENS))
    assert np.array_equal(out["tokens"], [np.arange(100, 107)])
    assert out["actions"].shape == (1, 1, ACTION_DIM)
    np.testing.assert_allclose(out["actions"][0, 0, 1:], np.arange(101, 107) / 100, rtol=1e-6)


def test_it_takes_what_the_processor_gives_and_gives_what_it_reads():
    pipeline = make_pipeline()
    assert set(pipeline.inputs) == set(TOKENS.input_tensors())
    assert TOKENS.output_tensors()[0] in pipeline.outputs


def test_a_chunk_policy_with_vision_apart_runs_both():
    processor = make_processor()
    specs = chunk_graphs(processor, (1, 4, 8))
    horizon = processor.spec.action.horizon

    def policy(inputs):
        value = inputs["visual"][0, 0, 0]
        return {"actions": np.full((1, horizon, ACTION_DIM), value, np.float32)}

    graphs = {"vision": Graph(specs[0], vision), "policy": Graph(specs[1], policy)}
    pipeline = GraphPipeline(specs, graphs)
    inputs = make_inputs(processor)
    inputs["pixel_values"] *= 0.5
    assert np.array_equal(pipeline.infer(inputs)["actions"], np.full((1, horizon, 7), 0.5))
    assert set(pipeline.inputs) == set(processor.input_tensors())
    pipeline.close()
    assert all(graph.closed for graph in graphs.values())


def test_an_engine_with_other_tensors_is_refused():
    wrong = {spec.name: Graph(SPECS[0], vision) for spec in SPECS}
    with pytest.raises(BackendError, match="wrong input"):
        GraphPipeline(SPECS, wrong)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(BackendError, match="wrong inputs"):
        make_pipeline().infer({"pixel_values": np.ones(3)})


def test_an_engine_that_declares_nothing_is_believed():
    specs = chunk_graphs(make_processor())
    horizon = make_processor().spec.action.horizon
    fake = FakeBackend(np.zeros((horizon, ACTION_DIM)))
    assert GraphPipeline(specs, {"policy": fake}).infer(make_inputs(make_processor()))
