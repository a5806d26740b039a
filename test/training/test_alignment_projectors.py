"""A projector is the formula that its docstring gives and keeps what it is named for."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.alignment import PROJECTORS, Projector, build_projector
from training.alignment.whitening import MOMENTUM, SHRINKAGE
from vla_align_ros.errors import ConfigurationError

NAMES = sorted(PROJECTORS)
STUDENT, TEACHER, HIDDEN = 20, 6, 16
Array = NDArray[np.float64]


def make(name: str, *, trainable: bool = False, seed: int = 0, **widths: int) -> Projector:
    sizes = {"student_width": STUDENT, "teacher_width": TEACHER, "hidden": HIDDEN, **widths}
    return build_projector(name, **sizes, seed=seed, trainable=trainable)


def tokens(batch: int = 3, count: int = 8, width: int = STUDENT, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 + 3.0 * torch.randn(batch, count, width, generator=generator)


def train_steps(projector: Projector, steps: int = 20, **options: float) -> None:
    """AdamW toward random features, through the projector alone."""
    optimizer = torch.optim.AdamW([p for p in projector.parameters() if p.requires_grad], **options)
    target = tokens(width=TEACHER, seed=9)
    projector.train()
    for seed in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(projector(tokens(seed=seed)), target).backward()
        optimizer.step()
    projector.eval()


# -- second implementations, in numpy and float64 ---------------------------------------------
def norm(x: Array, weights: dict[str, Array], name: str = "norm") -> Array:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: dict[str, Array], name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def plain_mlp(x: Array, w: dict[str, Array]) -> Array:
    x = silu(linear(norm(x, w, "layers.0"), w, "layers.1"))
    return linear(silu(linear(x, w, "layers.4")), w, "layers.7")


def plain_orthogonal(x: Array, w: dict[str, Array]) -> Array:
    return norm(x, w) @ w["weight"].T


def plain_cosine(x: Array, w: dict[str, Array]) -> Array:
    x, rows = norm(x, w), w["weight"]
    lengths = np.linalg.norm(x, axis=-1, keepdims=True) * np.linalg.norm(rows, axis=-1)
    return w["gain"] * (x @ rows.T) / lengths


def plain_whitening(x: Array, w: dict[str, Array]) -> Array:
    """Of the running statistics; in another form of whitening with the same L, by inversion."""
    y, covariance = linear(norm(x, w), w, "linear"), w["whiten.covariance"]
    shrunk = (1 - SHRINKAGE) * covariance
    shrunk = shrunk + SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return (y - w["whiten.mean"]) @ np.linalg.inv(np.linalg.cholesky(shrunk)).T


def plain_film(x: Array, w: dict[str, Array]) -> Array:
    x = norm(x, w)
    out = []
    for sample in x:
        modulation = linear(sample.mean(0), w, "modulation")
        gamma, beta = modulation[:HIDDEN], modulation[HIDDEN:]
        out.append(linear(silu((1 + gamma) * linear(sample, w, "hidden") + beta), w, "out"))
    return np.stack(out)


PLAIN = {
    "mlp": plain_mlp,
    "spectral": plain_mlp,
    "orthogonal": plain_orthogonal,
    "cosine": plain_cosine,
    "whitening": plain_whitening,
    "film": plain_film,
}


def effective_weights(projector: Projector) -> dict[str, Array]:
    """Weights as they act: those that are computed from free parameters too."""
    tensors: dict[str, Any] = dict(projector.state_dict())
    for path, module in projector.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            tensors[f"{path}.weight".lstrip(".")] = module.weight
    if projector.name == "orthogonal":
        tensors["weight"] = projector.matrix()
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_projector_equals_its_plain_second_implementation(name: str, trainable: bool) -> None:
    projector = make(name, trainable=trainable, seed=3)
    if trainable:
        train_steps(
            projector, lr=1e-2
        )  # so that gains, norms and statistics are not at their start
    elif name == "whitening":
        projector.train()(tokens(seed=5))
    projector.eval()
    x = tokens()
    got = projector(x).detach().numpy()
    expected = PLAIN[name](x.double().numpy(), effective_weights(projector))
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)
    assert got.shape == (3, 8, TEACHER) and got.std() > 0


# -- what each is named for -------------------------------------------------------------------
@given(student=st.integers(2, 24), teacher=st.integers(2, 24), trainable=st.booleans())
@settings(max_examples=40, deadline=None)
def test_orthogonal_keeps_p_transposed_p_the_identity(
    student: int, teacher: int, trainable: bool
) -> None:
    projector = make(
        "orthogonal", trainable=trainable, student_width=student, teacher_width=teacher
    )
    p = projector.matrix().detach().double().numpy().T
    gram = p.T @ p if teacher <= student else p @ p.T
    np.testing.assert_allclose(gram, np.eye(min(student, teacher)), atol=1e-5)


def test_orthogonal_stays_orthogonal_while_it_trains_with_weight_decay() -> None:
    projector = make("orthogonal", trainable=True)
    before = projector.matrix().detach().clone()
    assert torch.allclose(before, projector.weight.detach(), atol=1e-5)  # drawn orthogonal
    train_steps(projector, steps=30, lr=3e-2, weight_decay=0.5)
    p = projector.matrix().detach().double().numpy().T
    np.testing.assert_allclose(p.T @ p, np.eye(TEACHER), atol=1e-5)
    assert (projector.matrix() - before).abs().max() > 0.05


def test_orthogonal_to_a_wider_teacher_keeps_every_angle() -> None:
    projector = make("orthogonal", teacher_width=32)
    x = projector.norm(tokens())[0]
    y = projector(tokens())[0]
    torch.testing.assert_close(y @ y.T, x @ x.T, atol=1e-4, rtol=1e-4)


def singular_values(projector: Projector) -> list[float]:
    weights = [layer.weight for layer in projector.layers if isinstance(layer, torch.nn.Linear)]
    return [np.linalg.svd(w.detach().double().numpy(), compute_uv=False)[0] for w in weights]


def test_spectral_divides_every_matrix_by_its_largest_singular_value() -> None:
    frozen, free = make("spectral"), make("mlp")
    assert singular_values(frozen) == pytest.approx([1.0] * 3, abs=1e-5)
    assert min(abs(value - 1.0) for value in singular_values(free)) > 0.02
    for layer, other in zip(frozen.layers, free.layers, strict=True):
        if isinstance(layer, torch.nn.Linear):  # the same directions
            ratio = other.weight / layer.weight
            torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=1e-4)


def test_spectral_keeps_its_norm_while_it_trains() -> None:
    torch.manual_seed(0)  # of dropout
    projector = make("spectral", trainable=True)
    assert singular_values(projector) == pytest.approx([1.0] * 3, abs=0.02)
    free = {n: p.detach().clone() for n, p in projector.named_parameters()}
    train_steps(projector, steps=30, lr=1e-2)
    assert singular_values(projector) == pytest.approx([1.0] * 3, abs=0.04)
    moved = {n for n, p in projector.named_parameters() if not torch.equal(p, free[n])}
    assert moved == set(free)


def covariance_of(y: torch.Tensor) -> Array:
    flat = y.detach().double().flatten(0, 1).numpy()
    return np.cov(flat.T, bias=True)


def test_whitening_gives_the_first_batch_an_identity_covariance() -> None:
    projector = make("whitening").train()
    x = tokens(batch=16, count=64) @ torch.randn(
        STUDENT, STUDENT, generator=torch.Generator().manual_seed(1)
    )
    y = projector(x)
    np.testing.assert_allclose(y.flatten(0, 1).mean(0).numpy(), 0.0, atol=1e-4)
    np.testing.assert_allclose(covariance_of(y), np.eye(TEACHER), atol=0.02)
    raw = covariance_of(projector.linear(projector.norm(x)))
    assert np.linalg.cond(raw) > 3.0  # there was something to whiten


def test_whitening_follows_the_tokens_as_an_exponential_average() -> None:
    projector = make("whitening").train()
    means, covariances = [], []
    for seed in range(4):
        x = tokens(seed=seed)
        projector(x)
        mapped = projector.linear(projector.norm(x)).detach().double().flatten(0, 1).numpy()
        means.append(mapped.mean(0))
        covariances.append(np.cov(mapped.T, bias=True))
    mean, covariance = means[0], covariances[0]
    for newer_mean, newer_covariance in zip(means[1:], covariances[1:], strict=True):
        mean = (1 - MOMENTUM) * mean + MOMENTUM * newer_mean
        covariance = (1 - MOMENTUM) * covariance + MOMENTUM * newer_covariance
    np.testing.assert_allclose(projector.whiten.mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(projector.whiten.covariance.numpy(), covariance, atol=1e-5)
    assert projector.whiten.batches == 4


def test_whitening_stays_finite_when_tokens_are_fewer_than_channels_or_all_equal() -> None:
    projector = make("whitening", teacher_width=64).train()
    assert projector(tokens(batch=1, count=5)).isfinite().all()
    constant = make("whitening").train()
    x = torch.randn(1, 1, STUDENT, requires_grad=True)
    y = constant(x.expand(2, 7, STUDENT))
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_cosine_takes_no_notice_of_the_length_of_its_vectors() -> None:
    projector = make("cosine")
    y = projector(tokens())
    assert y.abs().max() <= math.sqrt(STUDENT)
    assert y.std().item() == pytest.approx(1.0, abs=0.35)
    with torch.no_grad():
        projector.weight *= torch.rand(TEACHER, 1) + 0.5
    torch.testing.assert_close(projector(tokens()), y, atol=1e-5, rtol=1e-5)


def test_film_lets_the_rest_of_the_picture_change_a_token() -> None:
    x = tokens(batch=1)
    other = x.clone()
    other[:, 1:] = tokens(batch=1, seed=7)[:, 1:]
    film, mlp = make("film"), make("mlp")
    assert (film(x)[:, 0] - film(other)[:, 0]).abs().max() > 1e-3
    assert torch.equal(mlp(x)[:, 0], mlp(other)[:, 0])


# -- what all share ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_frozen_takes_no_gradient_but_passes_it_on(name: str) -> None:
    parent = torch.nn.ModuleList([make(name)]).train()
    projector = parent[0]
    assert isinstance(projector, Projector)
    assert projector.training == (name == "whitening")
    assert not any(p.requires_grad for p in projector.parameters())
    x = tokens().requires_grad_()
    projector(x).square().mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None for p in projector.parameters())
    projector.eval()
    assert torch.equal(projector(x), projector(x))


@pytest.mark.parametrize("name", NAMES)
def test_trainable_moves_every_parameter(name: str) -> None:
    projector = make(name, trainable=True)
    before = {n: p.detach().clone() for n, p in projector.named_parameters()}
    assert before and all(p.requires_grad for p in projector.parameters())
    train_steps(projector, steps=3, lr=1e-2)
    for n, p in projector.named_parameters():
        assert not torch.equal(p, before[n]), n


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_the_start_and_the_global_state_is_untouched(
    name: str, trainable: bool
) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (make(name, trainable=trainable, seed=s).eval() for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    x = tokens()
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_its_state_dict_is_all_of_it(name: str, trainable: bool) -> None:
    projector = make(name, trainable=trainable, seed=1)
    if trainable:
        train_steps(projector, steps=3, lr=1e-2)
    else:
        projector.train()(tokens(seed=4))
    projector.eval()
    other = make(name, trainable=trainable, seed=2).eval()
    other.load_state_dict(copy.deepcopy(projector.state_dict()))
    assert torch.equal(other(tokens()), projector(tokens()))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_bf16_tokens_under_autocast_are_taken(name: str, trainable: bool) -> None:
    projector = make(name, trainable=trainable).eval()  # no dropout
    x = tokens().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = projector(x)
        half_exact = make(name, trainable=trainable).eval()(x.float())
    torch.testing.assert_close(y.float(), half_exact.float(), atol=0.05, rtol=0.05)
    y.float().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    if projector.exact:
        assert y.dtype == torch.float32


def test_dropout_acts_only_while_the_mlp_trains() -> None:
    free = make("mlp", trainable=True).train()
    x = tokens(batch=8)
    assert not torch.equal(free(x), free(x))
    free.eval()
    assert torch.equal(free(x), free(x))


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"No such alignment\.projector: got 'mpl'; expected one of mlp, cosine, orthogonal, "
        r"spectral, whitening, film",
    ):
        make("mpl")
