"""Losses and schedules are the formulas that their docstrings give."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.alignment import LOSSES, SCHEDULES, AlignmentConfig, build_loss
from vla_align_ros.errors import ConfigurationError

TEMPERATURE = 0.11


def features(seed: int, batch: int = 3, count: int = 5, width: int = 7) -> torch.Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def plain_cosine(u, z):
    return -np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs(u, z)])


def plain_l2(u, z):
    return np.mean([((a - b) ** 2).mean() for a, b in pairs(u, z)])


def plain_infonce(u, z):
    terms = []
    for students, teachers in zip(u, z, strict=True):
        for i, a in enumerate(students):
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in teachers]
            shares = np.exp(np.array(cosines) / TEMPERATURE)
            terms.append(-math.log(shares[i] / shares.sum()))
    return np.mean(terms)


PLAIN = {"cosine": plain_cosine, "l2": plain_l2, "infonce": plain_infonce}


def pairs(u, z):
    return zip(u.reshape(-1, u.shape[-1]), z.reshape(-1, z.shape[-1]), strict=True)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_equals_its_plain_second_implementation(name: str) -> None:
    u, z = features(0), features(1)
    loss = build_loss(name, temperature=TEMPERATURE)
    assert loss.name == name
    expected = PLAIN[name](u.double().numpy(), z.double().numpy())
    assert loss(u, z).item() == pytest.approx(expected, rel=1e-5)
    coarse = loss(u.bfloat16(), z.bfloat16())
    assert coarse.dtype == torch.float32 and coarse.item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_falls_along_its_gradient_to_its_least_value_at_the_target(name: str) -> None:
    loss, z = build_loss(name, temperature=TEMPERATURE), features(1)
    u = features(0).requires_grad_()
    optimizer = torch.optim.Adam([u], lr=0.05)
    first = loss(u, z).item()
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(u, z)
        value.backward()
        optimizer.step()
    least = {"cosine": -1.0, "l2": 0.0}.get(name, loss(z, z).item())
    assert value.item() < first - 0.3
    if name == "infonce":  # pushing the others away can go below the target's own value
        assert value.item() <= least + 1e-3
    else:
        assert value.item() == pytest.approx(least, abs=2e-2)


def test_l2_counts_lengths_and_the_others_do_not() -> None:
    u, z = features(0), features(1)
    for name in LOSSES:
        loss = build_loss(name, temperature=TEMPERATURE)
        is_equal = loss(3 * u, z).item() == pytest.approx(loss(u, z).item(), rel=1e-4)
        assert is_equal == (name != "l2")


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_infonce_is_the_mean_over_samples_however_the_batch_is_divided(sizes: list[int]) -> None:
    loss = build_loss("infonce", temperature=TEMPERATURE)
    u, z = features(0, sum(sizes)), features(1, sum(sizes))
    parts = zip(u.split(sizes), z.split(sizes), sizes, strict=True)
    divided = sum(loss(a, b).item() * size for a, b, size in parts) / sum(sizes)
    assert divided == pytest.approx(loss(u, z).item(), rel=1e-5)


def test_infonce_is_log_k_when_features_tell_nothing() -> None:
    same = torch.ones(2, 9, 4)
    value = build_loss("infonce", temperature=TEMPERATURE)(same, same)
    assert value.item() == pytest.approx(math.log(9), rel=1e-6)


def test_infonce_is_as_sharp_under_autocast() -> None:
    loss = build_loss("infonce", temperature=0.07)
    u, z = features(0), features(1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(u, z)
    assert value.item() == loss(u, z).item()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_unequal_grids_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="give the teacher the student's grid"):
        build_loss(name, temperature=TEMPERATURE)(features(0), features(1, count=4))


# -- schedules --------------------------------------------------------------------------------
def shares(name: str, total: int, steps: int = 0, final: float = 0.0) -> list[float]:
    return [SCHEDULES[name](step, total, steps, final) for step in range(total)]


def test_schedules_are_what_their_names_say() -> None:
    assert shares("constant", 4) == [1.0] * 4
    assert shares("warmup", 6, steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert shares("linear_decay", 4) == [1.0, 0.75, 0.5, 0.25]
    assert shares("linear_decay", 5, steps=2, final=0.5) == [1.0, 0.75, 0.5, 0.5, 0.5]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert shares("cosine_decay", 10, final=0.1) == pytest.approx(expected)


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(0.0, 1.0),
)
def test_a_share_lies_between_zero_and_one_and_never_turns(
    name: str, total: int, steps: int, final: float
) -> None:
    values = shares(name, total, steps, final)
    assert all(-1e-12 <= value <= 1.0 + 1e-12 for value in values)
    rises = [after - before for before, after in itertools.pairwise(values)]
    assert all(r >= -1e-12 for r in rises) or all(r <= 1e-12 for r in rises)


# -- configuration ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"loss": "mse"}, r"No such alignment\.loss: got 'mse'; expected one of cosine, l2, info"),
        ({"projector": "vit"}, r"No such alignment\.projector: got 'vit'; expected one of mlp"),
        ({"schedule": "step"}, r"No such alignment\.schedule: got 'step'; expected one of const"),
        ({"at": "decoder"}, "expected one of llm, encoder"),
        ({"at": "encoder", "layers": (1,)}, "got alignment.layers .1,. at the encoder"),
        ({"weight": -0.1}, "got alignment weight -0.1"),
        ({"weight": math.inf}, "got alignment weight inf"),
        ({"weight": math.nan}, "got alignment weight nan"),
        ({"temperature": 0.0}, "got alignment.temperature 0.0; expected a number above 0"),
        ({"final_fraction": 1.5}, "got alignment.final_fraction 1.5"),
        ({"schedule": "warmup"}, "got alignment.schedule_steps 0 with warmup; expected 1 or more"),
        ({"schedule_steps": -1}, "got alignment.schedule_steps -1"),
        ({"hidden": 0}, "got alignment.hidden 0"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(values, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        AlignmentConfig(**values)


def test_the_papers_variant_is_the_default() -> None:
    default = AlignmentConfig()
    assert (default.weight, default.schedule, default.loss) == (0.2, "constant", "cosine")
    assert (default.projector, default.trainable, default.hidden) == ("mlp", False, 2048)
    assert (default.at, default.layers, default.shared) == ("llm", (), False)
