"""Alignment, the vision tower and the rates act when the configuration says so, and only then."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import (
    SHORT,
    assert_equal,
    make_parts,
    needs_teacher,
    read_scalars,
    read_state,
    read_weights,
    run_short,
)

from training import setup_model
from training.alignment import Aligner, AlignmentConfig
from training.optimizers import OptimConfig, main_rate, vision_rate
from training.trainer import Trainer

pytestmark = [needs_teacher, pytest.mark.usefixtures("one_thread")]


def test_lambda_zero_is_the_run_without_an_aligner_bit_for_bit(
    tabletop_data: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        pytest.fail("the teacher was built")

    monkeypatch.setattr(setup_model, "build_teacher", refuse)
    run_short(tabletop_data, tmp_path / "default", "alignment.weight=0")
    parts = make_parts(tabletop_data, *SHORT, "alignment.weight=0")
    assert parts.objective.aligner is None and parts.teacher is None
    model = parts.objective.model
    parts.objective.aligner = Aligner(
        AlignmentConfig(weight=0.0, hidden=64), 384, model.llm_width, model.vision[0].width, 2
    )
    Trainer(parts, tmp_path / "aligner", progress=False).run()
    names = ("default", "aligner")
    own, others = (
        {
            name: value
            for name, value in read_state(tmp_path / name)["tensors"].items()
            if "aligner.projectors" not in name
        }
        for name in names
    )
    assert_equal(own, others)
    default = read_weights(tmp_path / "default")
    aligned = read_weights(short)
    assert any(not torch.equal(aligned[name], default[name]) for name in default)
    assert "align/cosine_layer_1" in read_scalars(short)
    assert "align/cosine_layer_1" not in read_scalars(tmp_path / "default")


def watch_vision(
    parts: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, torch.Tensor]], list[bool]]:
    """Train; the tower's weights before every step and at the end, and which steps reached it."""
    seen: list[dict[str, torch.Tensor]] = []
    reached: list[bool] = []
    vision, step = parts.objective.model.vision, Trainer._train_step

    def watch(self: Trainer) -> Any:
        seen.append({name: value.clone() for name, value in vision.state_dict().items()})
        scalars = step(self)
        reached.append(any(parameter.grad is not None for parameter in vision.parameters()))
        return scalars

    monkeypatch.setattr(Trainer, "_train_step", watch)
    Trainer(parts, out, progress=False).run()
    return [*seen, dict(vision.state_dict())], reached


@pytest.mark.parametrize("cache", ["true", "false"])
def test_vision_stays_bitwise_the_same_until_it_is_let_go(
    tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    parts = make_parts(tabletop_data, *SHORT, f"data.cache={cache}")
    seen, reached = watch_vision(parts, tmp_path, monkeypatch)
    assert reached == [False] * 6 + [True] * 6
    for before in seen[1:7]:
        assert_equal(before, seen[0])
    for one, other in itertools.pairwise(seen[6:]):
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_vision_without_a_rate_is_frozen_for_good_and_the_rest_is_not(
    tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts(tabletop_data, *SHORT, "optim.vision_lr=null", "optim.steps=4")
    first = {name: value.clone() for name, value in parts.objective.model.state_dict().items()}
    seen, reached = watch_vision(parts, tmp_path, monkeypatch)
    assert_equal(seen[-1], seen[0])
    assert not any(reached)
    last = parts.objective.model.state_dict()
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved >= {"llm", "projector", "action_head", "state_encoder", "grounding"}
    assert "vision" not in moved


OPTIMS = st.builds(
    OptimConfig,
    steps=st.integers(1, 3000),
    lr=st.floats(1e-6, 1e-2),
    vision_lr=st.none() | st.floats(1e-6, 1e-2),
    vision_from_step=st.integers(0, 3000),
    vision_warmup_steps=st.integers(0, 500),
    warmup_steps=st.integers(0, 500),
    final_fraction=st.floats(0.0, 1.0),
)


@given(OPTIMS, st.data())
def test_rates_stay_between_nothing_and_their_peak(optim: OptimConfig, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, optim.steps - 1))
    assert 0.0 < main_rate(optim, step) <= optim.lr * (1 + 1e-12)
    rate = vision_rate(optim, step)
    if optim.vision_lr is None or step < optim.vision_from_step:
        assert rate == 0.0
    else:  # never 0 again, which would bring the frozen tower's old features back
        assert 0.0 < rate <= optim.vision_lr * (1 + 1e-12)


@given(OPTIMS)
def test_rates_rise_in_the_warm_up_and_then_fall_to_the_final_fraction(optim: OptimConfig) -> None:
    rates = [main_rate(optim, step) for step in range(optim.steps)]
    warm = min(optim.warmup_steps, optim.steps)
    assert all(a < b for a, b in itertools.pairwise(rates[:warm]))
    assert all(a >= b for a, b in itertools.pairwise(rates[warm:]))
    if optim.warmup_steps < optim.steps:
        assert rates[warm] == pytest.approx(optim.lr)
        assert main_rate(optim, optim.steps) == pytest.approx(optim.lr * optim.final_fraction)
    if optim.vision_lr is not None and optim.steps > optim.vision_from_step:
        # the same curve, from the step on which the tower is let go
        same = OptimConfig(
            steps=optim.steps - optim.vision_from_step,
            lr=optim.vision_lr,
            warmup_steps=optim.vision_warmup_steps,
            final_fraction=optim.final_fraction,
        )
        for step in range(0, same.steps, 37):
            assert vision_rate(optim, optim.vision_from_step + step) == main_rate(same, step)
