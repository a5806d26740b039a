"""The loss is the formula that the documentation gives, from pictures and from caches alike."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    GRID,
    VOCABULARY,
    build,
    tiny_config,
    tiny_inputs,
    tiny_llm,
    tokens_config,
)
from tiny_run import make_parts, needs_teacher, read_scalars, read_weights

from training.alignment import Aligner, AlignmentConfig
from training.config import LossConfig
from training.model import (
    GroundingConfig,
    HeadConfig,
    chunk_l1_loss,
    displacement_l1_loss,
    grounding_loss,
)
from training.objective import Objective, grounding_targets
from training.parallel import split_batch
from training.train import train
from training.vqa import vqa_loss
from vla_align_ros.errors import TrainingError


class Colours:
    """A teacher: linear in a cell's mean colour."""

    name, width = "colours", 12

    def preprocess(self, images: Any, grid: int) -> torch.Tensor:
        raise AssertionError("features are in the batch")

    features = to = preprocess


def make_batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.tensor([[[0.2, 0.7], [0.9, 0.1]], [[0.5, 0.5], [1.4, 0.5]]])
    return {
        **tiny_inputs(seed=seed),
        "actions": torch.rand(2, 4, 7, generator=generator) * 2 - 1,
        "teacher_features": torch.randn(2, GRID**2, 12, generator=generator),
        "grounding": grounding_targets(points, GRID, 0.6),
    }


def make_objective(loss: LossConfig, weight: float | None) -> Objective:
    model = build(tiny_config(grounding=GroundingConfig(layer=2, width=8)))
    aligner = None
    if weight is not None:
        aligner = Aligner(AlignmentConfig(weight=weight, hidden=16), 12, 32, 24, 3)
    return Objective(model, aligner, loss)


# -- the formula ------------------------------------------------------------------------------
@given(st.data())
def test_pieces_add_up_to_the_batch_however_chunks_are_cut(data: st.DataObject) -> None:
    pieces = data.draw(st.sampled_from([1, 2, 4]))
    left = data.draw(st.lists(st.integers(1, 6), min_size=8, max_size=8))
    inside = data.draw(st.lists(st.booleans(), min_size=16, max_size=16))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    actions, target = torch.rand(2, 8, 6, 7, generator=generator, dtype=torch.float64)
    maps, logits = torch.rand(2, 8, 2, 9, generator=generator)
    shown = torch.tensor(inside).reshape(8, 2, 1)
    batch = {
        "actions": actions,
        "target": target,
        "is_pad": torch.arange(6) >= torch.tensor(left)[:, None],
        "logits": logits,
        "maps": torch.where(shown, maps / maps.sum(-1, keepdim=True), 0.0),
    }

    def losses(piece: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        chunks = (piece["actions"], piece["target"], piece["is_pad"])
        grounding = grounding_loss(piece["logits"], piece["maps"])
        return chunk_l1_loss(*chunks), displacement_l1_loss(*chunks), grounding

    parts = [losses(piece) for piece in split_batch(batch, pieces)]
    for whole, some in zip(losses(batch), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(some).mean(), whole)


@pytest.mark.parametrize("gripper", [1.0, 0.25])
def test_the_loss_equals_a_plain_second_implementation(gripper: float) -> None:
    loss = LossConfig(grounding=0.3, gripper=gripper, displacement=0.2)
    objective = make_objective(loss, weight=0.4)
    batch = make_batch()
    with torch.no_grad():
        total, scalars = objective(batch)
        output = objective.predict(batch)
    assert output.actions is not None and output.grounding is not None
    assert output.hidden_states is not None and objective.aligner is not None
    predicted, wanted = output.actions.double().numpy(), batch["actions"].double().numpy()
    weights = np.array([1.0] * 6 + [gripper])
    action = (np.abs(predicted - wanted) * weights).sum(-1).mean() / weights.sum()
    with torch.no_grad():
        projected = objective.aligner.projectors[0](output.hidden_states[1][:, output.visual])
    u, z = projected.double().numpy(), batch["teacher_features"].double().numpy()
    cosine = ((u * z).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(z, axis=-1)).mean()
    entropies = []
    for row, (maps, targets) in enumerate(zip(output.grounding, batch["grounding"], strict=True)):
        for k, (logits, target) in enumerate(zip(maps.double(), targets.double(), strict=True)):
            if (row, k) != (1, 1):  # that point is outside of the picture: it costs nothing
                probability = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum()
                entropies.append(-(target.numpy() * np.log(probability)).sum())
    grounding = np.sum(entropies) / 4
    places = [np.abs((predicted - wanted)[:, : n + 1, :6].sum(axis=1)) for n in range(4)]
    moved = np.mean(places)
    whole = action + 0.2 * moved - 0.4 * cosine + 0.3 * grounding
    assert total.item() == pytest.approx(whole, abs=1e-5)
    told = {name: float(value) for name, value in scalars.items()}
    assert told == {
        "loss/action": pytest.approx(action, abs=1e-6),
        "loss/displacement": pytest.approx(moved, abs=1e-6),
        "align/cosine_layer_1": pytest.approx(cosine, abs=1e-6),
        "loss/grounding": pytest.approx(grounding, abs=1e-5),
        "loss/total": pytest.approx(total.item(), abs=1e-6),
    }
    assert not any(value.requires_grad for value in scalars.values())


def test_every_loss_has_its_weight_in_the_sum_and_in_what_the_network_learns() -> None:
    config = tiny_config(
        llm=dataclasses.replace(tiny_llm(), keep_lm_head=True),
        head=HeadConfig(horizon=4, insulate=True),
        grounding=GroundingConfig(layer=2, width=8),
    )
    aligner = Aligner(AlignmentConfig(weight=0.6, hidden=16), 12, 32, 24, 3)
    loss = LossConfig(grounding=0.4, tokens=0.3, displacement=0.2)
    objective = Objective(build(config), aligner, loss, vqa_weight=0.5)
    model, batch, words = objective.model, make_batch(), torch.Generator().manual_seed(3)
    batch["action_tokens"] = torch.randint(3, VOCABULARY, (2, 7), generator=words)
    answers = torch.randint(3, VOCABULARY, (2, 4), generator=words)
    batch["vqa"] = {**tiny_inputs(seed=1), "answer_tokens": answers, "labels": answers}
    total, scalars = objective(batch)
    output = objective.predict(batch)
    assert output.actions is not None and output.grounding is not None
    assert output.logits is not None
    plan = output.actions, batch["actions"]
    parts = {
        "loss/action": (1.0, chunk_l1_loss(*plan)),
        "loss/displacement": (0.2, displacement_l1_loss(*plan)),
        "loss/grounding": (0.4, grounding_loss(output.grounding, batch["grounding"])),
        "loss/tokens": (
            0.3,
            torch.nn.functional.cross_entropy(
                output.logits.transpose(1, 2), batch["action_tokens"]
            ),
        ),
        "loss/vqa": (0.5, vqa_loss(model, batch["vqa"])),
        "align/cosine_layer_1": (
            -0.6,
            -aligner.losses(output, batch["teacher_features"])[0],
        ),
    }
    whole = sum(weight * value for weight, value in parts.values())
    assert isinstance(whole, torch.Tensor)
    expected = {name: value.detach() for name, (_, value) in parts.items()}
    torch.testing.assert_close(scalars, {**expected, "loss/total": whole.detach()})
    assert not any(value.requires_grad for value in scalars.values())
    weights = list(model.parameters())
    for got, wanted in zip(
        torch.autograd.grad(total, weights, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(whole, weights, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_the_weight_of_alignment_is_that_of_the_step() -> None:
    config = AlignmentConfig(weight=0.4, hidden=16, schedule="linear_decay", final_fraction=0.25)
    aligner = Aligner(config, 12, 32, 24, 3)
    objective, batch = Objective(build(tiny_config()), aligner, LossConfig()), make_batch()
    for step in range(3):
        objective.set_step(step, 3)
        _, scalars = objective(batch)
        aligned = aligner.weight_at(step, 3) * scalars["align/cosine_layer_1"]
        torch.testing.assert_close(scalars["loss/total"], scalars["loss/action"] - aligned)


def test_weights_of_the_actions_numbers_move_with_the_network_and_are_in_no_checkpoint() -> None:
    objective = make_objective(LossConfig(gripper=0.25), None)
    names = set(objective.state_dict())
    assert names == {f"model.{name}" for name in objective.model.state_dict()}
    assert objective.to("meta").dim_weights.device.type == "meta"


@pytest.mark.parametrize("weight", [None, 0.0])
def test_weights_of_zero_leave_the_action_loss_alone(weight: float | None) -> None:
    batch, objective = make_batch(), make_objective(LossConfig(), weight)
    del batch["teacher_features"], batch["grounding"]
    total, scalars = objective(batch)
    assert set(scalars) == {"loss/action", "loss/total"}
    predicted = objective.predict(batch).actions
    assert torch.equal(total, torch.nn.functional.l1_loss(predicted, batch["actions"]))


@pytest.mark.parametrize("cut", [False, True])
def test_told_actions_are_no_error_of_the_plan(cut: bool) -> None:
    """A second implementation: the mean over the steps that are neither told nor padding."""
    objective = make_objective(LossConfig(displacement=0.5), None)
    objective.model.take_committed(2)
    batch = {key: value for key, value in make_batch().items() if key != "teacher_features"}
    batch["committed"] = batch["actions"][:, :2]
    batch["committed_mask"] = torch.tensor([[1, 0], [1, 1]])
    steps = [[1, 2, 3], [2, 3]]
    if cut:
        batch["is_pad"] = torch.tensor([[False] * 4, [False, False, False, True]])
        steps = [[1, 2, 3], [2]]
    planned = objective.predict(batch).actions
    assert planned is not None and planned[1, :2].equal(batch["actions"][1, :2])
    errors = (planned - batch["actions"]).abs().mean(dim=-1)
    action = torch.stack([errors[row, own].mean() for row, own in enumerate(steps)]).mean()
    sums = [
        (planned - batch["actions"])[row, own, :6].cumsum(dim=0).abs().mean()
        for row, own in enumerate(steps)
    ]
    torch.testing.assert_close(objective(batch)[0], action + 0.5 * torch.stack(sums).mean())


def test_features_of_a_frozen_tower_replace_its_pictures() -> None:
    objective = make_objective(LossConfig(grounding=0.3), weight=0.4)
    batch = make_batch()
    features = objective.model.encode_images(batch["pixel_values"]).detach()
    cached = {**batch, "vision_features": features}
    del cached["pixel_values"]
    from_cache, _ = objective(cached)
    from_pictures, _ = objective(batch)
    assert from_cache.item() == pytest.approx(from_pictures.item(), abs=1e-6)
    from_cache.backward()
    assert all(p.grad is None for p in objective.model.vision.parameters())
    from_pictures.backward()
    assert any(p.grad is not None for p in objective.model.vision.parameters())


def test_features_of_a_frozen_tower_come_with_the_told_actions() -> None:
    objective, batch = make_objective(LossConfig(), None), make_batch()
    objective.model.take_committed(2)
    batch["committed"] = batch["actions"][:, :2]
    batch["committed_mask"] = torch.tensor([[1, 0], [1, 1]])
    planned = objective.predict(batch).actions
    batch["vision_features"] = objective.model.encode_images(batch.pop("pixel_values"))
    torch.testing.assert_close(objective.predict(batch).actions, planned)
    assert planned is not None and planned[1, :2].equal(batch["actions"][1, :2])


# -- grounding targets ------------------------------------------------------------------------
UNIT = st.floats(0.0, 1.0)


@given(UNIT, UNIT, st.integers(1, 12), st.floats(0.3, 2.0))
def test_a_target_is_the_gaussian_of_its_point(x: float, y: float, grid: int, sigma: float) -> None:
    target = grounding_targets(torch.tensor([[[x, y]]]), grid, sigma)[0, 0].double().numpy()
    plain = np.array(
        [
            math.exp(-0.5 * (((i + 0.5) - x * grid) ** 2 + ((j + 0.5) - y * grid) ** 2) / sigma**2)
            for j in range(grid)  # rows, along y
            for i in range(grid)
        ]
    )
    np.testing.assert_allclose(target, plain / plain.sum(), atol=1e-5)
    assert target.sum() == pytest.approx(1.0, abs=1e-5)
    row, column = divmod(int(target.argmax()), grid)
    assert abs(column + 0.5 - x * grid) < 0.51 and abs(row + 0.5 - y * grid) < 0.51


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_point_outside_of_the_picture_has_no_target(x: float, y: float) -> None:
    target = grounding_targets(torch.tensor([[[x, y], [0.5, 0.5]]]), 4, 0.6)
    inside = 0 <= np.float32(x) <= 1 and 0 <= np.float32(y) <= 1
    assert target[0, 0].sum().item() == pytest.approx(float(inside), abs=1e-5)
    assert target[0, 1].sum().item() == pytest.approx(1.0, abs=1e-5)


# -- both heads train -------------------------------------------------------------------------
def descend(objective: Objective, batch: dict[str, Any], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss, scalars = objective(batch)
        losses.append(float(scalars["loss/action"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_the_chunk_head_learns_a_batch() -> None:
    losses = descend(make_objective(LossConfig(), None), make_batch(), 40)
    assert losses[-1] < 0.5 * losses[0]


def test_the_tokens_head_learns_a_batch_and_speaks_it() -> None:
    model = build(tokens_config())
    aligner = Aligner(AlignmentConfig(hidden=16), 12, 32, 24, 3)
    objective = Objective(model, aligner, LossConfig())
    batch = make_batch()
    assert model.action_tokens is not None
    batch["action_tokens"] = model.action_tokens.encode(batch["actions"][:, 0])
    del batch["state"]
    with torch.no_grad():
        logits = objective.predict(batch).logits
        _, scalars = objective(batch)
    assert logits is not None and logits.shape == (2, 7, VOCABULARY)
    chances = logits.double().softmax(-1).numpy()
    plain = -np.mean(
        [math.log(chances[b, d, batch["action_tokens"][b, d]]) for b in range(2) for d in range(7)]
    )
    assert float(scalars["loss/action"]) == pytest.approx(plain, abs=1e-5)
    losses = descend(objective, batch, 120)
    assert losses[-1] < 0.1 < losses[0]
    inputs = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    said = model.eval().predict(*inputs)
    np.testing.assert_allclose(said[:, 0].numpy(), batch["actions"][:, 0].numpy(), atol=1 / 255)


def test_words_cost_the_same_from_features_of_a_frozen_tower() -> None:
    objective, batch = Objective(build(tokens_config()), None, LossConfig()), make_batch()
    del batch["state"]
    batch["action_tokens"] = torch.arange(3, 17).reshape(2, 7)
    expected, _ = objective(batch)
    batch["vision_features"] = objective.model.encode_images(batch.pop("pixel_values"))
    torch.testing.assert_close(objective(batch)[0], expected)


def test_the_loss_of_words_is_precise_though_the_network_is_not() -> None:
    objective = Objective(build(tokens_config()), None, LossConfig()).to(torch.bfloat16)
    batch = make_batch()
    del batch["state"]
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    batch["action_tokens"] = torch.arange(3, 17).reshape(2, 7)
    with torch.no_grad():
        logits = objective.predict(batch).logits
        loss, _ = objective(batch)
    assert logits is not None and logits.dtype == torch.bfloat16
    expected = torch.nn.functional.cross_entropy(
        logits.double().transpose(1, 2), batch["action_tokens"]
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_tokens_head_without_tokens_is_one_clear_error() -> None:
    batch = make_batch()
    del batch["state"]
    with pytest.raises(TrainingError, match=r"no action tokens to learn.*action_tokens"):
        Objective(build(tokens_config()), None, LossConfig())(batch)


@needs_teacher
def test_a_run_with_the_tokens_head_trains_and_is_measured(
    tabletop_data: Path, tmp_path: Path, one_thread: None
) -> None:
    settings = (
        *("model.head.horizon=1", "model.head.kind=tokens", "optim.steps=4", "evaluate_every=2"),
        *("optim.vision_from_step=2", "data.validation=0.2"),
    )
    result = train("debug_cpu", [tabletop_data], tmp_path, settings=settings, progress=False)
    assert result["val/l1"] > 0.0 and result["val/first_frame_blind_m"] > 0.0
    assert [step for step, _ in read_scalars(tmp_path)["val/l1"]] == [2, 4]
    assert all(torch.isfinite(value).all() for value in read_weights(tmp_path).values())
    parts = make_parts(tabletop_data, *settings)
    batch = parts.batch(parts.data.indices("train")[:4], frozen_vision=True)
    tokens = parts.objective.model.action_tokens
    assert tokens is not None and batch["action_tokens"].shape == (4, 7)
    words = parts.processor.tokenizer.vocabulary_size
    assert batch["action_tokens"].min() >= words  # no bin borrows a word
    np.testing.assert_allclose(
        tokens.decode(batch["action_tokens"]), batch["actions"][:, 0], atol=1 / 254
    )
