"""The pointing head: what it reads, what it is scored on, and that it can be dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_models import build, tiny_config, tiny_inputs

from training.model import GroundingConfig, GroundingHead, grounding_loss
from training.model.grounding import centres_of_mass


def test_loss_equals_a_plain_numpy_cross_entropy_over_all_maps():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 2, 5))
    targets = rng.random((2, 2, 5))
    targets /= targets.sum(-1, keepdims=True)
    targets[1, 0] = 0.0
    values = []
    for b in range(2):
        for k in range(2):
            if targets[b, k].sum() > 0:
                log_z = np.log(np.exp(logits[b, k]).sum())
                values.append(
                    sum(t * (log_z - x) for t, x in zip(targets[b, k], logits[b, k], strict=True))
                )
    loss = grounding_loss(torch.from_numpy(logits).float(), torch.from_numpy(targets).float())
    assert loss.item() == pytest.approx(np.sum(values) / 4, rel=1e-5)


def test_nothing_in_view_costs_nothing():
    assert grounding_loss(torch.randn(2, 2, 5), torch.zeros(2, 2, 5)).item() == 0.0


def test_it_learns_to_point_at_the_marked_patch():
    torch.manual_seed(0)
    head = GroundingHead(16, maps=1, width=16)
    words, patches = torch.randn(4, 16), torch.randn(4, 16)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        order = torch.stack([torch.randperm(4) for _ in range(8)])
        word = torch.randint(4, (8,))
        target = (order == word[:, None]).float()[:, None]
        loss = grounding_loss(head(words[word], patches[order]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_maps_depend_on_the_words_and_not_on_the_padding():
    model = build(tiny_config(grounding=GroundingConfig(layer=2)))
    inputs = tiny_inputs()
    maps = model(**inputs).grounding
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, 2] = 11
    assert (model(**other).grounding - maps).abs().max() > 1e-6
    padded = {**inputs, "input_ids": inputs["input_ids"] + 9 * (1 - inputs["attention_mask"])}
    torch.testing.assert_close(model(**padded).grounding, maps)


def test_dropping_it_changes_no_action():
    model = build(tiny_config(grounding=GroundingConfig(layer=2)))
    before = model.predict(**tiny_inputs())
    model.without_grounding()
    assert torch.equal(model.predict(**tiny_inputs()), before)
    assert not any("grounding" in name for name, _ in model.named_parameters())


def test_a_sharp_map_points_at_its_patch_and_a_flat_one_at_the_middle():
    logits = torch.zeros(1, 3, 9)
    logits[0, 0, 2] = logits[0, 1, 3] = 50.0
    points = centres_of_mass(logits, 3)[0]
    expected = torch.tensor([[1.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(points, expected, atol=1e-5, rtol=0)


def test_actions_read_the_points_and_teach_them():
    model = build(tiny_config(grounding=GroundingConfig(layer=2, to_actions=True)))
    out = model.train()(**tiny_inputs())
    out.actions.sum().backward()
    assert model.grounding.query.weight.grad.abs().sum() > 0
    model.eval().without_grounding()
    assert model.grounding is not None
    before = model.predict(**tiny_inputs())
    torch.testing.assert_close(before, out.actions.detach())
    with torch.no_grad():
        model.grounding.query.weight.mul_(-3.0)
    assert (model.predict(**tiny_inputs()) - before).abs().max() > 1e-6
