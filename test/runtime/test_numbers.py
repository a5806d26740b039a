"""Errors are judged as multiples of bfloat16's noise, and nothing that is not finite passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.runtime.numbers import (
    LEAST_FLOOR,
    UNBOUNDED,
    Recorder,
    judge_numbers,
    measure_outputs,
    record_graphs,
    relative_rms,
)


class Scale:
    """Gives its input times a factor, and the sign of it."""

    name = "scale"
    inputs = (TensorSpec("x", "float32", (2,)),)
    outputs = (TensorSpec("y", "float32", (2,)), TensorSpec("sign", "int64", (2,)))

    def __init__(self, factor):
        self.factor = factor

    def infer(self, inputs):
        y = self.factor * inputs["x"]
        return {"y": y, "sign": np.sign(y).astype(np.int64)}

    def close(self):
        pass


def test_the_error_is_a_share_of_the_references_size():
    reference = np.array([3.0, -4.0])
    assert relative_rms(reference * 1.01, reference) == pytest.approx(0.01)
    assert relative_rms(reference, reference) == 0.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_off(wrong):
    assert relative_rms([1.0, wrong], [1.0, 1.0]) == UNBOUNDED


def test_a_recorder_keeps_copies_of_what_went_in_and_out():
    recorder = Recorder(Scale(2.0))
    x = np.ones(2, np.float32)
    recorder.infer({"x": x})
    x[:] = 9.0
    ((inputs, outputs),) = recorder.calls
    assert np.array_equal(inputs["x"], [1.0, 1.0]) and np.array_equal(outputs["y"], [2.0, 2.0])


def test_real_outputs_are_compared_by_size_and_whole_ones_by_equality():
    recorder = Recorder(Scale(1.0))
    for value in (1.0, -2.0):
        recorder.infer({"x": np.full(2, value, np.float32)})
    found = measure_outputs(recorder.calls, Scale(-1.0))
    assert found == {"y": {"error": pytest.approx(2.0)}, "sign": {"agreement": 0.0}}


def test_graphs_are_recorded_each_with_what_the_one_before_gave():
    specs = (
        GraphSpec("vision", (TensorSpec("x", "float32", (2,)),), Scale.outputs),
        GraphSpec(
            "policy", (TensorSpec("y", "float32", (2,)),), (TensorSpec("z", "float32", (2,)),)
        ),
    )

    class Half:
        name, inputs, outputs = "half", specs[1].inputs, specs[1].outputs

        def infer(self, inputs):
            return {"z": inputs["y"] / 2}

        def close(self):
            pass

    calls = record_graphs(
        specs, {"vision": Scale(3.0), "policy": Half()}, [{"x": np.ones(2, np.float32)}]
    )
    assert np.array_equal(calls["policy"][0][0]["y"], [3.0, 3.0])
    assert np.array_equal(calls["policy"][0][1]["z"], [1.5, 1.5])


@given(st.floats(0.0, 10.0), st.floats(1e-5, 1.0), st.floats(0.1, 20.0))
def test_an_output_passes_up_to_its_multiple_of_the_noise(error, floor, limit):
    verdict = judge_numbers(
        {"policy": {"actions": {"error": error}}},
        {"policy": {"actions": {"error": floor}}},
        limit,
        1.0,
    )
    row = verdict["outputs"]["policy.actions"]
    assert row["ratio"] == pytest.approx(error / floor)
    assert verdict["ok"] == row["ok"] == (error / floor <= limit)


def test_a_floor_of_nothing_allows_float32s_own_rounding_alone():
    outputs = {"policy": {"actions": {"error": LEAST_FLOOR}}}
    nothing = {"policy": {"actions": {"error": 0.0}}}
    assert judge_numbers(outputs, nothing, 1.0, 1.0)["ok"]
    outputs["policy"]["actions"]["error"] = 2 * LEAST_FLOOR
    assert not judge_numbers(outputs, nothing, 1.0, 1.0)["ok"]


def test_noise_that_is_not_finite_excuses_nothing():
    noise = {"policy": {"actions": {"error": UNBOUNDED}}}
    for error in (UNBOUNDED, 50.0):
        assert not judge_numbers({"policy": {"actions": {"error": error}}}, noise, 16.0, 1.0)["ok"]


def test_too_few_equal_tokens_fail():
    found = {"decode": {"next_token": {"agreement": 0.89}}}
    assert not judge_numbers(found, {}, 1.0, 0.9)["ok"]
    assert judge_numbers(found, {}, 1.0, 0.89)["ok"]
