"""What the optimizer moves and how fast, with adapters, a projector that trains, and 8 bits."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_adapters import adapted, chunk_loss, one_rank
from tiny_models import build, tiny_config, tiny_inputs, tiny_llm, tiny_vision, tokens_config
from torch import nn

from training.alignment import Aligner, AlignmentConfig
from training.model import PrismaticVLA
from training.optimizers import (
    OptimConfig,
    build_optimizer,
    count_state_bytes,
    main_rate,
    set_rates,
    trained_parameters,
    vision_rate,
)
from vla_align_ros.errors import ConfigurationError

TEACHER = 10


class Pair(nn.Module):
    """The two attributes of an objective that an optimizer looks at."""

    def __init__(self, model: PrismaticVLA, aligner: Aligner | None = None) -> None:
        super().__init__()
        self.model, self.aligner = model, aligner


def build_aligner(model: PrismaticVLA, *, trainable: bool) -> Aligner:
    config = AlignmentConfig(trainable=trainable, hidden=8)
    return Aligner(config, TEACHER, model.llm_width, 24, 3)


def step(pair: Pair, optimizer: torch.optim.Optimizer, optim: OptimConfig, number: int) -> float:
    """One step of the chunk loss; returns the loss before it."""
    set_rates(optimizer, optim, number)
    optimizer.zero_grad(set_to_none=True)
    loss = chunk_loss(pair.model.train())
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@given(
    warmup=st.integers(0, 30),
    total=st.integers(31, 60),
    number=st.integers(0, 60),
    lr=st.floats(1e-6, 1.0),
)
def test_a_constant_rate_is_constant_behind_its_warm_up(
    warmup: int, total: int, number: int, lr: float
) -> None:
    optim = OptimConfig(
        steps=total,
        lr=lr,
        warmup_steps=warmup,
        schedule="constant",
        vision_lr=lr,
        vision_warmup_steps=warmup,
        vision_from_step=5,
    )
    expected = lr * min(1.0, (number + 1) / warmup) if warmup else lr
    assert main_rate(optim, number) == pytest.approx(expected)
    assert vision_rate(optim, number + 5) == main_rate(optim, number)
    assert number >= 5 or vision_rate(optim, number) == 0.0


def test_a_cosine_rate_is_half_way_in_the_middle() -> None:
    optim = OptimConfig(steps=100, lr=1.0, warmup_steps=0, final_fraction=0.2)
    assert main_rate(optim, 0) == 1.0
    assert main_rate(optim, 50) == pytest.approx(0.6)
    assert main_rate(optim, 100) == pytest.approx(0.2)


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    model = build(tiny_config())
    pair = Pair(model, build_aligner(model, trainable=True))
    optimizer = build_optimizer(pair, OptimConfig(weight_decay=0.3))
    seen = [id(parameter) for parameter in trained_parameters(optimizer)]
    assert len(seen) == len(set(seen))
    assert set(seen) == {id(parameter) for parameter in pair.parameters()}
    vision = {id(parameter) for parameter in model.vision.parameters()}
    aligner = {id(parameter) for parameter in pair.aligner.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
            assert group["vision"] == (id(parameter) in vision)
            assert group["name"].startswith("aligner") == (id(parameter) in aligner)


def test_one_step_is_adamw_by_hand() -> None:
    pair = Pair(build(tiny_config()))
    optim = OptimConfig(lr=1e-2, vision_lr=1e-3, warmup_steps=0, vision_warmup_steps=0, beta2=0.9)
    before = {name: value.detach().clone() for name, value in pair.named_parameters()}
    optimizer = build_optimizer(pair, optim)
    step(pair, optimizer, optim, 0)
    for name, value in pair.named_parameters():
        assert value.grad is not None
        lr = 1e-3 if name.startswith("model.vision") else 1e-2
        decayed = before[name] * (1 - lr * (0.01 if value.ndim > 1 else 0.0))
        # In the first step both moments, their biases corrected, are the gradient's own.
        expected = decayed - lr * value.grad / (value.grad.abs() + 1e-8)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_projector_that_trains_moves_and_a_frozen_one_does_not() -> None:
    for trainable in (True, False):
        model = build(tiny_config())
        pair = Pair(model, build_aligner(model, trainable=trainable))
        assert pair.aligner is not None
        optim = OptimConfig(warmup_steps=0)
        optimizer = build_optimizer(pair, optim)
        before = {name: value.clone() for name, value in pair.aligner.state_dict().items()}
        output = model.train()(**tiny_inputs())
        sum(pair.aligner.losses(output, torch.randn(2, 9, TEACHER))).backward()
        set_rates(optimizer, optim, 0)
        optimizer.step()
        moved = [n for n, v in pair.aligner.named_parameters() if not torch.equal(v, before[n])]
        assert bool(moved) == trainable
        assert len(moved) == (len(list(pair.aligner.parameters())) if trainable else 0)


@pytest.mark.parametrize("with_adapter", [True, False])
def test_the_tower_is_let_go_on_time_and_its_base_never(with_adapter: bool) -> None:
    model = adapted() if with_adapter else build(tiny_config())
    optim = OptimConfig(steps=9, vision_from_step=3, vision_warmup_steps=1, warmup_steps=1)
    optimizer = build_optimizer(Pair(model), optim)
    base = {n for n, p in model.vision.named_parameters() if not p.requires_grad}
    assert bool(base) == with_adapter
    for number in range(6):
        frozen = set_rates(optimizer, optim, number)
        assert frozen == (number < 3)
        moving = {n for n, p in model.vision.named_parameters() if p.requires_grad}
        assert moving == (
            set() if frozen else {n for n, _ in model.vision.named_parameters()} - base
        )


def test_a_tower_that_is_frozen_for_good_takes_no_memory() -> None:
    pair = Pair(build(tiny_config()))
    optim = OptimConfig(vision_lr=None)
    optimizer = build_optimizer(pair, optim)
    assert not any(group["vision"] for group in optimizer.param_groups)
    assert set_rates(optimizer, optim, 0)
    step(pair, optimizer, optim, 0)
    assert all(p.grad is None for p in pair.model.vision.parameters())


def test_nothing_to_train_is_refused() -> None:
    pair = Pair(build(tiny_config()))
    pair.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="Nothing trains"):
        build_optimizer(pair, OptimConfig())


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd"},
        {"schedule": "linear"},
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"vision_lr": -1e-5},
        {"warmup_steps": -1},
        {"final_fraction": 1.5},
        {"beta2": 1.0},
        {"clip": 0.0},
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"optim.{next(iter(settings))}"):
        OptimConfig(**settings)


# -- 8 bits -----------------------------------------------------------------------------------
def wide(tied: bool = False) -> PrismaticVLA:
    """Tensors of 4096 elements and more, which is where 8-bit moments begin."""
    llm = tiny_llm(layers=1, hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)
    return build(tiny_config(vision=(tiny_vision(layers=1),), llm=llm))


@pytest.fixture
def eight_bit() -> OptimConfig:
    pytest.importorskip("bitsandbytes", reason="needs the extra [qlora]")
    return OptimConfig(name="adamw8bit", lr=3e-3, warmup_steps=0, vision_warmup_steps=0)


def test_moments_of_8_bits_learn_nearly_as_those_of_32(eight_bit: OptimConfig) -> None:
    curves, sizes = [], []
    for optim in (eight_bit, OptimConfig(lr=3e-3, warmup_steps=0, vision_warmup_steps=0)):
        pair = Pair(wide())
        optimizer = build_optimizer(pair, optim)
        curves.append([step(pair, optimizer, optim, number) for number in range(8)])
        sizes.append(count_state_bytes(optimizer))
    assert curves[0][0] == curves[1][0]
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert curves[0][-1] == pytest.approx(curves[1][-1], rel=0.1)
    assert sizes[0] < 0.75 * sizes[1]  # most of this network is embeddings and small tensors


def test_matrices_have_8_bits_and_embeddings_and_small_tensors_32(eight_bit: OptimConfig) -> None:
    pair = Pair(wide())
    optimizer = build_optimizer(pair, eight_bit)
    step(pair, optimizer, eight_bit, 0)
    tables = {id(m.weight) for m in pair.modules() if isinstance(m, nn.Embedding)}
    kinds = set()
    for parameter in trained_parameters(optimizer):
        state = optimizer.state[parameter]
        if not state:
            continue
        is_large = parameter.numel() >= 4096 and id(parameter) not in tables
        assert state["state1"].dtype == (torch.uint8 if is_large else torch.float32)
        assert state["state1"].shape == parameter.shape
        kinds.add((is_large, id(parameter) in tables))
    assert kinds == {(True, False), (False, False), (False, True)}


def test_8_bit_moments_resume_bit_for_bit(eight_bit: OptimConfig) -> None:
    def train(pair: Pair, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for number in steps:
            step(pair, optimizer, eight_bit, number)

    whole = Pair(wide())
    optimizer = build_optimizer(whole, eight_bit)
    train(whole, optimizer, range(2))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(whole, optimizer, range(2, 4))

    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = Pair(wide())
    second.load_state_dict(state["model"])
    resumed = build_optimizer(second, eight_bit)
    resumed.load_state_dict(state["optimizer"])
    train(second, resumed, range(2, 4))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_8_bit_moments_move_adapters(eight_bit: OptimConfig) -> None:
    llm = tiny_llm(layers=1, hidden_size=64, intermediate_size=512)
    pair = Pair(adapted(tiny_config(llm=llm), moved=False, rank=16))
    optimizer = build_optimizer(pair, eight_bit)
    losses = [step(pair, optimizer, eight_bit, number) for number in range(4)]
    assert losses[-1] < losses[0]
    moments = {state["state1"].dtype for state in optimizer.state.values()}
    assert moments == {torch.uint8, torch.float32}


def test_8_bit_moments_of_sharded_parameters_are_refused(
    eight_bit: OptimConfig, tmp_path: Path
) -> None:
    from torch.distributed.fsdp import fully_shard

    with one_rank(tmp_path) as mesh:
        model = fully_shard(build(tokens_config()), mesh=mesh)
        with pytest.raises(ConfigurationError, match="sharded"):
            build_optimizer(Pair(model), eight_bit)
        assert build_optimizer(Pair(model), OptimConfig()).param_groups
