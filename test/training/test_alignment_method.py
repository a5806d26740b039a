"""The loss is the paper's, its gradient goes where it must, lambda 0 is the default run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_models import GRID, build, tiny_config, tiny_inputs

from training.alignment import (
    Aligner,
    AlignmentConfig,
    build_projector,
    compute_targets,
    cosine_alignment_loss,
)
from training.model import chunk_l1_loss
from vla_align_ros.errors import ConfigurationError

ENCODER = 24  # width of the tiny tower


class LinearTeacher(torch.nn.Module):
    """A small real teacher: a cell's mean colour, mapped linearly. An nn.Module on purpose."""

    name = "linear"

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.map = torch.nn.Linear(3, width)
        self.calls = 0

    @property
    def width(self) -> int:
        return self.map.out_features

    def preprocess(self, images, grid):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.adaptive_avg_pool2d(pixels, grid)

    def features(self, pixels):
        self.calls += 1
        return self.map(pixels.flatten(2).transpose(1, 2))


def pictures(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8)


def make(config=None):
    torch.manual_seed(0)
    teacher = LinearTeacher()
    model = build(tiny_config())
    config = config or AlignmentConfig(hidden=16)
    return model, teacher, Aligner(config, teacher.width, model.llm_width, ENCODER, 3)


def plain_projector(projector, x):
    """Second implementation, numpy: LayerNorm, Linear, SiLU, Linear, SiLU, Linear."""
    weights = [p.detach().double().numpy() for p in projector.parameters()]
    gain, shift, w1, b1, w2, b2, w3, b3 = weights
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + shift
    for w, b in ((w1, b1), (w2, b2)):
        x = x @ w.T + b
        x = x / (1 + np.exp(-x))
    return x @ w3.T + b3


def plain_cosine(u, z):
    total = 0.0
    for b in range(u.shape[0]):
        cosines = [
            u[b, j] @ z[b, j] / (np.linalg.norm(u[b, j]) * np.linalg.norm(z[b, j]))
            for j in range(u.shape[1])
        ]
        total += -sum(cosines) / len(cosines)
    return total / u.shape[0]


def test_total_equals_a_plain_second_implementation_summed_over_layers():
    model, teacher, aligner = make(AlignmentConfig(layers=(1, 3), hidden=16, seed=4))
    aligner.train()
    out = model(**tiny_inputs())
    target = compute_targets(teacher, pictures(), GRID)
    action = chunk_l1_loss(out.actions, torch.zeros_like(out.actions))
    total, scalars = aligner.total(action, out, target)
    expected = []
    for layer, projector in zip((1, 3), aligner.projectors, strict=True):
        tokens = out.hidden_states[layer][:, 1 : 1 + GRID**2].detach().double().numpy()
        expected.append(plain_cosine(plain_projector(projector, tokens), target.double().numpy()))
    assert total.item() == pytest.approx(action.item() + 0.2 * sum(expected), abs=1e-6)
    assert scalars["align/cosine_layer_3"].item() == pytest.approx(-expected[1], abs=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-4


def test_the_loss_is_minus_one_for_equal_directions_and_one_for_opposite_ones():
    z = torch.randn(2, 5, 7)
    assert cosine_alignment_loss(3 * z, z).item() == pytest.approx(-1.0, abs=1e-6)
    assert cosine_alignment_loss(-z, z).item() == pytest.approx(1.0, abs=1e-6)
    assert cosine_alignment_loss(z.bfloat16(), z).dtype == torch.float32


def test_gradient_reaches_the_students_backbone_and_neither_teacher_nor_projector():
    model, teacher, aligner = make()
    out = model(**tiny_inputs())
    total, _ = aligner.total(
        out.actions.sum() * 0, out, lambda: compute_targets(teacher, pictures(), GRID)
    )
    total.backward()
    for part in (model.vision, model.projector, model.llm.base_model.layers[0]):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is None and not p.requires_grad for p in aligner.projectors.parameters())
    # The aligned layer is the middle one: later blocks get nothing from this loss.
    assert all(
        p.grad is None or not p.grad.any() for p in model.llm.base_model.layers[2].parameters()
    )


def test_lambda_zero_is_the_default_run_bit_for_bit():
    def train(with_aligner):
        model = build(tiny_config())
        torch.manual_seed(1)
        teacher = LinearTeacher() if with_aligner else None
        torch.manual_seed(2)
        aligner = (
            Aligner(
                AlignmentConfig(weight=0.0, hidden=16), teacher.width, model.llm_width, ENCODER, 3
            )
            if with_aligner
            else None
        )
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(3):
            out = model(**tiny_inputs(seed=step))
            loss = chunk_l1_loss(out.actions, torch.randn_like(out.actions))
            if aligner is not None:
                assert (
                    aligner.total(loss, out, lambda: pytest.fail("the teacher must not run"))[0]
                    is loss
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    plain, aligned = train(False), train(True)
    assert all(torch.equal(plain[name], aligned[name]) for name in plain)


def test_alignment_training_raises_the_cosine():
    model, teacher, aligner = make()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    target = compute_targets(teacher, pictures(), GRID)
    cosines = []
    for _ in range(60):
        out = model(**tiny_inputs())
        total, scalars = aligner.total(0 * out.actions.sum(), out, target)
        cosines.append(scalars["align/cosine_layer_1"].item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert cosines[-1] > cosines[0] + 0.2


def test_the_middle_layer_and_the_papers_lambda_are_the_defaults():
    _, _, aligner = make(AlignmentConfig(hidden=16))
    assert aligner.layers == (1,)
    assert AlignmentConfig().weight == 0.2 and AlignmentConfig().hidden == 2048
    assert Aligner(AlignmentConfig(hidden=8), 12, 16, ENCODER, 32).layers == (16,)


def test_projector_is_random_by_its_own_seed_frozen_and_never_drops_out():
    state = torch.random.get_rng_state()
    a, b, c = (build_projector("mlp", 8, 5, hidden=16, seed=s, trainable=False) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    x = torch.randn(2, 4, 8)
    parent = torch.nn.ModuleList([a]).train()
    assert not a.training and parent.training
    assert torch.equal(a(x), a(x)) and torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))
    kinds = [type(layer).__name__ for layer in a.layers]
    assert kinds == [
        "LayerNorm",
        "Linear",
        "SiLU",
        "Dropout",
        "Linear",
        "SiLU",
        "Dropout",
        "Linear",
    ]
    assert [layer.p for layer in a.layers if isinstance(layer, torch.nn.Dropout)] == [0.1, 0.1]
    weight = a.layers[1].weight
    assert weight.std().item() == pytest.approx(8**-0.5 / 3**0.5, rel=0.15)


def test_checkpoint_holds_the_projectors_and_not_the_teacher():
    _, _, aligner = make(AlignmentConfig(layers=(1, 2), hidden=16))
    names = list(aligner.state_dict())
    assert len([n for n in names if n.startswith("projectors.1.")]) == 8
    assert all(n.startswith("projectors.") for n in names)
    _, _, other = make(AlignmentConfig(layers=(1, 2), hidden=16, seed=9))
    other.load_state_dict(aligner.state_dict())
    x = torch.randn(1, 2, 32)
    assert torch.equal(other.projectors[1](x), aligner.projectors[1](x))
    assert not torch.equal(aligner.projectors[0](x), aligner.projectors[1](x))


def test_several_cameras_keep_the_order_of_the_visual_tokens():
    teacher = LinearTeacher()
    images = pictures(6).reshape(3, 2, 60, 80, 3)
    both = compute_targets(teacher, images, GRID)
    assert both.shape == (3, 2 * GRID**2, 12)
    torch.testing.assert_close(both[:, GRID**2 :], compute_targets(teacher, images[:, 1], GRID))


def test_mistakes_are_refused():
    model, _, aligner = make()
    out = model(**tiny_inputs(), output_hidden_states=False)
    with pytest.raises(ConfigurationError, match="hidden states"):
        aligner.total(torch.zeros(()), out, torch.zeros(2, 9, 12))
    with pytest.raises(ConfigurationError, match="teacher features"):
        aligner.total(torch.zeros(()), model(**tiny_inputs()), None)
    with pytest.raises(ConfigurationError, match="grid"):
        aligner.losses(model(**tiny_inputs()), torch.zeros(2, 16, 12))
    with pytest.raises(ConfigurationError, match="layers"):
        make(AlignmentConfig(layers=(4,), hidden=16))
    with pytest.raises(ConfigurationError, match="weight"):
        AlignmentConfig(weight=float("nan"))
