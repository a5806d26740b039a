"""The doctor knows every engine, imports it for real, and names the command that adds it."""

from __future__ import annotations

import sys

import pytest

from vla_align_ros.commands import engine_checks
from vla_align_ros.commands.engine_checks import (
    PROBES,
    check_engine,
    check_engines,
    check_provider,
)
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import BACKENDS
from vla_align_ros.inference.base import open_backend


def test_every_backend_is_looked_at():
    assert set(PROBES) == set(BACKENDS)
    assert set(BACKENDS) <= {finding.name for finding in check_engines()}


def test_the_base_engine_works_and_names_its_providers():
    finding = check_engine("onnx")
    assert finding.ok and "CPUExecutionProvider" in finding.found


@pytest.mark.parametrize("built_in", [True, False])
def test_a_provider_of_a_gpu_is_said_to_be_for_python_code_and_not_for_the_node(
    monkeypatch, built_in
):
    there = ["CUDAExecutionProvider"] if built_in else ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: there)
    finding = check_provider("onnx on CUDA", "CUDAExecutionProvider")
    assert finding.ok is built_in
    told = finding.found if built_in else finding.fix
    assert "Python code" in told
    assert built_in or ("the node use a GPU by tensorrt" in told and "onnxruntime-gpu" in told)


@pytest.mark.parametrize(
    ("name", "library", "module", "command"),
    [
        ("openvino", "openvino", "openvino", "pip install '.[openvino]'"),
        ("openvino_bf16", "openvino", "openvino", "pip install '.[openvino]'"),
        ("torch", "torch", "torch", "pip install '.[train]'"),
    ],
)
def test_an_absent_library_is_answered_with_its_command(
    monkeypatch, name, library, module, command
):
    monkeypatch.delitem(sys.modules, f"vla_align_ros.inference.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    finding = check_engine(name)
    assert not finding.ok and finding.found == "not installed" and command in finding.fix


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_that_cannot_run_here_says_what_mends_it(name, tmp_path):
    finding = check_engine(name)
    if finding.ok:
        pytest.skip(f"{name} runs here: {finding.found}")
    assert finding.fix
    with pytest.raises(BackendError):
        open_backend(name, tmp_path)


def test_a_cpu_without_bf16_is_told_which_engine_serves(monkeypatch):
    module = pytest.importorskip(
        "vla_align_ros.inference.openvino", reason="needs the extra [openvino]"
    )

    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr(module.openvino, "Core", Core)
    finding = check_engine("openvino_bf16")
    assert not finding.ok and "FP32, INT8" in finding.found and "onnx" in finding.fix


def test_a_loader_that_fails_in_its_own_way_does_not_stop_the_doctor(monkeypatch):
    def explode():
        raise OSError("libnothing.so: cannot open shared object file")

    monkeypatch.setitem(engine_checks.PROBES, "onnx", explode)
    finding = check_engine("onnx")
    assert not finding.ok and "libnothing.so" in finding.found
