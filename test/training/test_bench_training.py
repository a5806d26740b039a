"""What alignment costs is timed on whole steps, interleaved, beside the noise of the machine."""

from __future__ import annotations

import json

import numpy as np
import pytest

from training.bench import VARIANTS, bench_training
from training.recipes import find_recipe
from training.settings import override
from vla_align_ros.cli import main
from vla_align_ros.errors import ConfigurationError


def test_every_variant_is_a_whole_step_and_the_teacher_costs_something() -> None:
    result = bench_training(find_recipe("debug_cpu"), 4, progress=False)
    for name in VARIANTS:
        assert 0 < result[f"{name}_ms"] <= result[f"{name}_p90_ms"]
        assert result[f"{name}_samples_per_s"] == pytest.approx(8e3 / result[f"{name}_ms"])
    # The teacher is far larger than this student.
    assert result["online_ms"] > 1.5 * result["cached_ms"]
    assert result["online_ratio"] == pytest.approx(result["online_ms"] / result["default_ms"])
    assert result["trained"] == result["parameters"], "a part that the recipe trains was frozen"


def test_an_adapter_and_a_tokens_head_are_timed_as_they_train() -> None:
    settings = ["adapter.kind=lora", "adapter.rank=2", "loss.grounding=0"]
    result = bench_training(override(find_recipe("debug_cpu"), settings), 1, progress=False)
    assert 0 < result["trained"] < result["parameters"]
    assert np.isfinite([result[f"{name}_ms"] for name in VARIANTS]).all()


@pytest.mark.parametrize(
    ("settings", "steps", "says"),
    [(["alignment.weight=0"], 1, "does not align"), ([], 0, "Nothing to time")],
)
def test_what_cannot_be_compared_is_refused(settings: list[str], steps: int, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        bench_training(override(find_recipe("debug_cpu"), settings), steps, progress=False)


def test_the_command_prints_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "training", "--recipe", "debug_cpu", "--steps", "1", "--batch-size", "2"]
    assert main([*words, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["batch_size"] == 2 and found["recipe"] == "debug_cpu"
    assert {"default_ms", "online_ms", "cached_ms", "online_ratio", "cached_ratio"} <= set(found)


def test_an_unknown_measurement_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed-of-light"]) == 1
    assert "training" in capsys.readouterr().err
