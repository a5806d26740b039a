"""Ranges are measured on frames of the run's own data, prepared as the robot prepares them."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="needs the extra [export]")

from tiny_run import needs_teacher

from training.export.bundle import export_run
from training.export.calibration_data import read_calibration
from training.export.engines import export_engines
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ExportError

pytestmark = needs_teacher


def quietly(_line):
    pass


@pytest.fixture(scope="module")
def exported(tabletop_data, short, tmp_path_factory):
    """The data, a bundle of a short run on it, and the run's configuration."""
    bundle = tmp_path_factory.mktemp("calibration") / "bundle"
    export_run(short, bundle, say=quietly)
    return tabletop_data, bundle, json.loads((short / "config.json").read_text())


def test_samples_are_what_the_processor_gives_and_the_same_each_time(exported):
    data, path, config = exported
    processor = Bundle.open(path).processor
    samples = read_calibration([data], processor, config, 5)
    assert len(samples) == 5
    for tensor in processor.input_tensors():
        assert {sample[tensor.name].shape for sample in samples} == {tensor.shape}
    again = read_calibration([data], processor, config, 5)
    assert all(
        np.array_equal(a[name], b[name]) for a, b in zip(samples, again, strict=True) for name in a
    )


def test_engines_are_calibrated_on_the_data_that_is_given(exported, tmp_path, monkeypatch):
    data, path, _ = exported
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra [trt-rtx]")
    steps = []
    result = export_engines(path, "sm89", "fp8", data=[data], say=steps.append)
    assert result["ok"] and "ranges ..." in steps


def test_a_policy_of_unknown_making_is_refused(exported):
    data, path, _ = exported
    with pytest.raises(ExportError, match="leave --data out"):
        read_calibration([data], Bundle.open(path).processor, {})
