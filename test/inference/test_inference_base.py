"""Backends are opened by name, import their library late, and are checked against the contract."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sample_policy import make_graph

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import BACKENDS, FakeBackend, open_backend
from vla_align_ros.inference.base import check_graph

ACTIONS = TensorSpec("actions", "float32", (1, 4, 7))


def test_an_unknown_name_is_answered_with_the_valid_ones(tmp_path):
    with pytest.raises(BackendError, match=r"got 'onyx'; expected .*onnx"):
        open_backend("onyx", tmp_path)


def test_an_unknown_option_is_answered_with_the_valid_ones(tmp_path):
    with pytest.raises(BackendError, match=r"got \['speed'\]; expected some of \['threads', "):
        open_backend("onnx", make_graph(tmp_path / "policy.onnx"), speed=9)


def test_a_missing_library_is_answered_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vla_align_ros.inference.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"cannot be imported.*fix: install"):
        open_backend("onnx", tmp_path / "policy.onnx")


def test_no_name_opens_the_fake():
    assert "fake" not in BACKENDS


def test_the_seam_itself_imports_no_engine():
    code = (
        "import sys, vla_align_ros.inference, vla_align_ros.runtime.policy;"
        "print(sorted({'torch', 'rclpy', 'onnxruntime', 'onnx', 'tensorrt'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("shape", [(1, 4, 7), (None, 4, 7), (None, None, None)])
def test_a_graph_with_free_extents_fits(shape):
    check_graph([TensorSpec("actions", "float32", shape)], [ACTIONS], "output", exact=True)


@pytest.mark.parametrize(
    "actual",
    [
        [],
        [TensorSpec("actions", "float16", (1, 4, 7))],
        [TensorSpec("actions", "float32", (1, 8, 7))],
        [TensorSpec("actions", "float32", (4, 7))],
        [TensorSpec("logits", "float32", (1, 4, 7))],
    ],
)
def test_a_graph_of_another_form_is_refused(actual):
    with pytest.raises(BackendError, match="expected"):
        check_graph(actual, [ACTIONS], "output", exact=False)


def test_superfluous_tensors_are_refused_only_where_they_must_be_fed():
    actual = [ACTIONS, TensorSpec("hidden", "float32", (1, 9))]
    check_graph(actual, [ACTIONS], "output", exact=False)
    with pytest.raises(BackendError, match="wrong inputs"):
        check_graph(actual, [ACTIONS], "input", exact=True)


def test_the_fake_answers_late_and_fails_as_told():
    slept: list[float] = []
    backend = FakeBackend(np.zeros((4, 7)), latency_s=0.5, fail_after=1, sleep=slept.append)
    assert backend.infer({"state": np.ones(1)})["actions"].shape == (1, 4, 7)
    assert slept == [0.5] and list(backend.calls[0]) == ["state"]
    with pytest.raises(BackendError, match="as asked"):
        backend.infer({})
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer({})


def test_the_fake_can_answer_by_a_function_of_its_inputs():
    backend = FakeBackend(lambda inputs: np.full((1, 2, 7), inputs["state"][0, 0]))
    found = backend.infer({"state": np.full((1, 7), 3.0)})["actions"]
    np.testing.assert_array_equal(found, np.full((1, 2, 7), 3.0, np.float32))
