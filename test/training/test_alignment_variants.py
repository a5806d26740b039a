"""Every variant trains through the whole student: its gradient, its parameters, its scalars."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from tiny_models import GRID, build, tiny_config, tiny_inputs
from tiny_run import needs_teacher, read_scalars, read_state, run_short

from training.alignment import LOSSES, PROJECTORS, Aligner, AlignmentConfig
from training.model import chunk_l1_loss
from vla_align_ros.errors import ConfigurationError

TEACHER, ENCODER, DEPTH = 12, 24, 3
TARGET = torch.randn(2, GRID**2, TEACHER, generator=torch.Generator().manual_seed(1))


def make(**values):
    model = build(tiny_config()).train()
    config = AlignmentConfig(hidden=16, **values)
    return model, Aligner(config, TEACHER, model.llm_width, ENCODER, DEPTH).train()


def step(model, aligner, optimizer=None, weight=None):
    """One step of action loss and alignment; returns the scalars."""
    out = model(**tiny_inputs())
    action = chunk_l1_loss(out.actions, torch.zeros_like(out.actions))
    total, scalars = aligner.total(action, out, TARGET, weight)
    if optimizer is not None:
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return scalars


@pytest.mark.parametrize(
    ("loss", "projector", "trainable", "at"),
    [
        (*pair, bool(number % 2), "encoder" if number % 4 == 1 else "llm")
        for number, pair in enumerate(itertools.product(sorted(LOSSES), sorted(PROJECTORS)))
    ],
)
def test_every_variant_raises_its_cosine_through_the_student(loss, projector, trainable, at):
    model, aligner = make(loss=loss, projector=projector, trainable=trainable, at=at, weight=5.0)
    place = "encoder" if at == "encoder" else "layer_1"
    moving = [p for p in (*model.parameters(), *aligner.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=5e-3)
    before = {n: p.detach().clone() for n, p in aligner.named_parameters()}
    first = step(model, aligner, optimizer)
    assert all(p.grad is not None and p.grad.any() for p in model.vision.parameters() if p.ndim > 1)
    for _ in range(10):
        last = step(model, aligner, optimizer)
    assert set(first) == {f"align/cosine_{place}"} | (
        {f"align/{loss}_{place}"} if loss != "cosine" else set()
    )
    gained = f"align/{loss}_{place}"
    rise = last[gained] - first[gained]
    assert (rise if loss == "cosine" else -rise) > 0.01
    moved = {n for n, p in aligner.named_parameters() if not torch.equal(p, before[n])}
    assert moved == (set(before) if trainable else set())


def test_at_the_encoder_the_language_model_gets_nothing_of_it():
    model, aligner = make(at="encoder")
    out = model(**tiny_inputs())
    aligner.losses(out, TARGET)[0].backward()
    assert all(p.grad is not None for n, p in model.vision.named_parameters() if "weight" in n)
    assert all(p.grad is None for p in model.llm.parameters())
    assert all(p.grad is None for p in model.projector.parameters())
    expected = aligner.projectors[0](out.vision_features)
    cosine = torch.nn.functional.cosine_similarity(expected, TARGET, dim=-1).mean()
    assert aligner.cosines(out, TARGET)["align/cosine_encoder"].item() == pytest.approx(
        cosine.item()
    )


def test_a_shared_projector_is_one_and_sees_every_layer():
    model, apart = make(layers=(1, 2, 3))
    _, shared = make(layers=(1, 2, 3), shared=True)
    assert (len(apart.projectors), len(shared.projectors)) == (3, 1)
    assert len(list(shared.state_dict())) * 3 == len(list(apart.state_dict()))
    out = model(**tiny_inputs())
    for layer, loss, other in zip(
        (1, 2, 3), shared.losses(out, TARGET), apart.losses(out, TARGET), strict=True
    ):
        projected = shared.projectors[0](out.hidden_states[layer][:, out.visual])
        cosine = torch.nn.functional.cosine_similarity(projected, TARGET, dim=-1).mean()
        assert loss.item() == pytest.approx(-cosine.item(), abs=1e-6)
        assert (loss.item() == other.item()) == (layer == 1)


def test_a_trainable_shared_projector_gets_the_sum_of_the_layers_gradients():
    model, shared = make(layers=(1, 2), shared=True, trainable=True)
    shared.eval()  # no dropout
    out = model(**tiny_inputs())
    weight = shared.projectors[0].layers[1].weight
    each = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0]
        for loss in shared.losses(out, TARGET)
    ]
    action = torch.zeros((), requires_grad=True)
    total, _ = shared.total(action, out, TARGET)
    torch.testing.assert_close(torch.autograd.grad(total, weight)[0], 0.2 * (each[0] + each[1]))


def test_scalars_are_detached_tensors_and_equal_what_cosines_measures():
    for loss in LOSSES:
        model, aligner = make(loss=loss, layers=(1, 3))
        out = model(**tiny_inputs())
        _, scalars = aligner.total(torch.zeros(()), out, TARGET)
        assert all(isinstance(v, torch.Tensor) and v.ndim == 0 for v in scalars.values())
        assert not any(v.requires_grad for v in scalars.values())
        cosines = aligner.cosines(out, TARGET)
        assert set(cosines) == {"align/cosine_layer_1", "align/cosine_layer_3"}
        for name, value in cosines.items():
            assert not value.requires_grad
            assert value.item() == pytest.approx(scalars[name].item(), abs=1e-6)


def test_measuring_the_cosine_changes_nothing():
    model, aligner = make(projector="whitening")
    out = model(**tiny_inputs())
    before = {name: value.clone() for name, value in aligner.state_dict().items()}
    aligner.cosines(out, TARGET)
    assert aligner.training
    assert all(torch.equal(value, before[name]) for name, value in aligner.state_dict().items())
    aligner.total(torch.zeros(()), out, TARGET)
    assert aligner.projectors[0].whiten.batches == 1


def test_lambda_follows_its_schedule_and_weighs_the_loss():
    model, aligner = make(schedule="warmup", schedule_steps=4, weight=0.8)
    weights = [aligner.weight_at(number, 6) for number in range(6)]
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    out = model(**tiny_inputs())
    action = torch.tensor(1.5)
    align = aligner.losses(out, TARGET)[0].item()
    for weight in weights:
        total, _ = aligner.total(action, out, TARGET, weight)
        assert total.item() == pytest.approx(1.5 + weight * align, abs=1e-6)
    assert aligner.total(action, out, TARGET)[0].item() == pytest.approx(1.5 + 0.8 * align)


def test_where_a_schedule_reaches_zero_the_step_is_the_default_one():
    model, aligner = make(schedule="linear_decay", schedule_steps=3)
    assert [aligner.weight_at(number, 9) for number in (3, 8)] == [0.0, 0.0]
    action = torch.zeros(())
    total, scalars = aligner.total(
        action, model(**tiny_inputs()), lambda: pytest.fail("the teacher ran"), 0.0
    )
    assert total is action and scalars == {}


@pytest.mark.parametrize("layers", [(4,), (-1,), (1, 1)])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ConfigurationError, match="numbers from 0 to 3, each once"):
        make(layers=layers)


@needs_teacher
@pytest.mark.parametrize("trainable", [False, True])
def test_a_run_trains_its_projectors_where_asked_and_keeps_all_of_them_in_its_checkpoint(
    tabletop_data: Path, tmp_path: Path, one_thread: None, trainable: bool
) -> None:
    settings = (
        *(
            "optim.steps=3",
            "optim.vision_from_step=2",
            "checkpoint_every=1",
            "alignment.layers=[1,2]",
            "alignment.hidden=16",
        ),
        *(f"alignment.trainable={str(trainable).lower()}", "alignment.projector=film"),
        *("alignment.loss=l2", "alignment.schedule_steps=2", "alignment.schedule=linear_decay"),
    )
    run_short(tabletop_data, tmp_path, *settings)
    tensors = read_state(tmp_path)["tensors"]
    saved = {
        name.partition("aligner.")[2]: value
        for name, value in tensors.items()
        if "aligner.projectors" in name and "optim" not in name
    }
    config = AlignmentConfig(
        projector="film", trainable=trainable, layers=(1, 2), hidden=16, loss="l2"
    )
    start = Aligner(config, 384, 32, 32, 2).state_dict()
    assert set(saved) == set(start) and any(name.startswith("projectors.1.") for name in start)
    moved = {name for name in start if not torch.equal(saved[name], start[name])}
    assert moved == (set(start) if trainable else set())
    # Lambda has reached 0 at the third step, the only one that is logged.
    assert not any(name.startswith("align/") for name in read_scalars(tmp_path))


RANKS = """
import sys
import torch
import torch.distributed as dist
from training.alignment import Aligner, AlignmentConfig

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]),
                        world_size=2)
config = AlignmentConfig(projector="whitening", trainable=True)
aligner = Aligner(config, 6, 20, 20, 4).train()
whole = torch.randn(4, 9, 20, generator=torch.Generator().manual_seed(0))
part = whole[:3] if dist.get_rank() == 0 else whole[3:]
projector = aligner.projectors[0]
for factor in (1.0, 2.0):
    projector(factor * part + factor)
projector(part).pow(4).mean().backward()
aligner.average_gradients()
torch.save({"state": aligner.state_dict(), "grads": [p.grad for p in aligner.parameters()]},
           sys.argv[3] + sys.argv[2])
dist.destroy_process_group()
"""


def test_two_ranks_whiten_and_train_as_one(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", RANKS, str(tmp_path / "meet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*arguments, str(rank), str(tmp_path / "rank")], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    one, other = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2))
    for name, value in one["state"].items():
        assert torch.equal(value, other["state"][name]), name
    for left, right in zip(one["grads"], other["grads"], strict=True):
        assert torch.equal(left, right) and left.any()
    aligner = Aligner(AlignmentConfig(projector="whitening", trainable=True), 6, 20, 20, 4).train()
    whole = torch.randn(4, 9, 20, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 2.0):  # a single process that sees every token
        aligner.projectors[0](factor * whole + factor)
    aligner.projectors[0](whole)
    for name, value in aligner.state_dict().items():
        torch.testing.assert_close(value, one["state"][name], atol=1e-5, rtol=1e-5)
