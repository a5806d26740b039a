"""What one inference does is worked out from the graphs' tensors, or refused before it starts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.tensorrt.program import Copy, Run, count_bytes, plan_program


def tensor(name, *shape, dtype="float32"):
    return TensorSpec(name, dtype, shape)


def token_graphs(read=9, layers=2, heads=1, width=4):
    ids = [tensor("input_ids", 1, 5, dtype="int64"), tensor("attention_mask", 1, 5, dtype="int64")]
    cache = [tensor(name, read + 6, layers, heads, width) for name in ("keys", "values")]
    new = [tensor(f"new_{name}", 1, layers, heads, width) for name in ("keys", "values")]
    token, action = tensor("token", 1, 1, dtype="int64"), tensor("action", 1, 1)
    following = tensor("next_token", 1, 1, dtype="int64")
    step = tensor("step", 1, dtype="int64")
    return {
        "vision": ([tensor("pixel_values", 1, 3, 2, 2)], [tensor("visual", 1, 4, 8)]),
        "prefill": ([tensor("visual", 1, 4, 8), *ids], [token, action, *cache]),
        "decode": ([token, step, ids[1], *cache], [following, action, *new]),
    }


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8))
def test_each_decoding_step_adds_one_contiguous_row_and_never_leaves_its_buffer(
    read, layers, heads, width
):
    program = plan_program(token_graphs(read, layers, heads, width))
    row = 4 * layers * heads * width
    for cache in ("keys", "values"):
        rows = [s for s in program.steps if isinstance(s, Copy) and s.target == cache]
        assert [copy.target_at for copy in rows] == [row * (read + k) for k in range(6)]
        assert {copy.size_bytes for copy in rows} == {row}
    for step in program.steps:
        if isinstance(step, Copy):
            for name, start in ((step.source, step.source_at), (step.target, step.target_at)):
                assert 0 <= start <= count_bytes(program.buffers[name]) - step.size_bytes
    runs = [step.graph for step in program.steps if isinstance(step, Run)]
    assert runs == ["vision", "prefill", *["decode"] * 6]


def test_only_the_processors_tensors_go_in_and_only_actions_and_tokens_come_out():
    program = plan_program(token_graphs())
    assert [t.name for t in program.inputs] == ["pixel_values", "input_ids", "attention_mask"]
    assert [(t.name, t.shape) for t in program.outputs] == [
        ("actions", (1, 1, 7)),
        ("tokens", (1, 7)),
    ]
    np.testing.assert_array_equal(program.constants["steps"], range(6))


def test_a_step_reads_the_token_before_it_and_its_own_number():
    steps = plan_program(token_graphs()).steps
    decodes = [i for i, step in enumerate(steps) if step == Run("decode")]
    for k, index in enumerate(decodes):
        assert steps[index - 1] == Copy("steps", "step", 8, source_at=8 * k)
        behind = steps[index + 1 : index + 6]
        assert Copy("next_token", "token", 8) in behind
        assert Copy("action", "actions", 4, target_at=4 * (k + 1)) in behind


def test_a_chunk_policy_is_its_graphs_in_order():
    pixels, visual, actions = (
        tensor("pixel_values", 1, 3),
        tensor("visual", 1, 2),
        tensor("actions", 1, 4, 7),
    )
    one = plan_program({"policy": ([pixels], [actions])})
    assert one.steps == (Run("policy"),) and one.inputs == (pixels,) and one.outputs == (actions,)
    two = plan_program({"policy": ([visual], [actions]), "vision": ([pixels], [visual])})
    assert two.steps == (Run("vision"), Run("policy")) and two.inputs == (pixels,)


@pytest.mark.parametrize("names", [[], ["vision"], ["prefill", "decode"], ["policy", "decode"]])
def test_graphs_that_make_no_policy_are_refused(names):
    with pytest.raises(BackendError, match="make no policy"):
        plan_program({name: ([tensor("x", 1)], [tensor("y", 1)]) for name in names})


@pytest.mark.parametrize(
    ("graph", "side", "change", "says"),
    [
        ("decode", 0, tensor("keys", 16, 2, 1, 4), "differ in the tensor 'keys'"),
        ("decode", 0, tensor("keys", 15, 2, 1, 4, dtype="float16"), "differ in the tensor 'keys'"),
        ("decode", 1, tensor("new_keys", 1, 2, 1, 8), "does not fit its rows"),
        ("prefill", 0, tensor("input_ids", 1, None, dtype="int64"), "no fixed shape"),
        ("decode", 1, tensor("new_token", 1, 1, dtype="int64"), None),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(graph, side, change, says):
    graphs = token_graphs()
    sides = [list(s) for s in graphs[graph]]
    kept = [t for t in sides[side] if t.name != change.name]
    if says is None:
        kept, says = [t for t in kept if t.name != "next_token"], "lack a tensor.*next_token"
    sides[side] = [*kept, change]
    with pytest.raises(BackendError, match=says):
        plan_program({**graphs, graph: tuple(sides)})
