"""Actions that are decided reach the plan: they stay in it, and what follows goes on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_models import build, tiny_config, tiny_inputs, tokens_config

from training.model import HeadConfig, PrismaticVLA, chunk_l1_loss
from training.model.checkpoint import read_json
from vla_align_ros.errors import ConfigurationError

HORIZON, TOLD = 4, 2
HEADS = [HeadConfig(horizon=HORIZON), HeadConfig(horizon=HORIZON, insulate=True, hidden=24)]


def tell(counts: tuple[int, int], seed: int = 3) -> dict[str, torch.Tensor]:
    """The first `counts` of two random actions, for each of two samples."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "committed": torch.rand(2, TOLD, 7, generator=generator) * 2 - 1,
        "committed_mask": (torch.arange(TOLD) < torch.tensor(counts)[:, None]).long(),
    }


def make_told(head: HeadConfig, **overrides: Any) -> PrismaticVLA:
    """A network whose told actions matter, as after training."""
    model = build(tiny_config(head=head, **overrides))
    model.take_committed(TOLD)
    assert model.committed is not None
    torch.nn.init.normal_(model.committed.fc.weight, std=0.3)
    return model


@pytest.mark.parametrize("head", HEADS, ids=["queries", "insulated"])
def test_a_network_that_learns_of_them_computes_at_first_what_it_did(head: HeadConfig) -> None:
    model, inputs = build(tiny_config(head=head)), tiny_inputs()
    before = model(**inputs).actions
    model.take_committed(TOLD)
    assert model.config.head.committed == TOLD
    torch.testing.assert_close(model(**inputs).actions, before, rtol=0, atol=0)
    after = model(**inputs, **tell((1, 2))).actions
    torch.testing.assert_close(after[:, TOLD:], before[:, TOLD:], rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["causal_prefix", "bidirectional"])
@pytest.mark.parametrize("head", HEADS, ids=["queries", "insulated"])
def test_told_actions_stay_and_change_what_follows(head: HeadConfig, attention: str) -> None:
    model, inputs, told = make_told(head, attention=attention), tiny_inputs(), tell((1, 2))
    plain, planned = model(**inputs).actions, model(**inputs, **told).actions
    assert planned[0, 0].equal(told["committed"][0, 0])
    assert planned[1, :2].equal(told["committed"][1])
    assert not planned[0, 1].equal(told["committed"][0, 1]), "this one was not told"
    assert (planned[:, TOLD:] - plain[:, TOLD:]).abs().amax(dim=(1, 2)).min() > 1e-4
    torch.testing.assert_close(planned, model.predict(**inputs, **told))


@pytest.mark.parametrize("head", HEADS, ids=["queries", "insulated"])
def test_what_the_mask_leaves_out_is_not_seen(head: HeadConfig) -> None:
    model, inputs, told = make_told(head), tiny_inputs(), tell((0, 1))
    other = {**told, "committed": told["committed"].clone()}
    other["committed"][0] += 5.0
    other["committed"][1, 1] -= 5.0
    torch.testing.assert_close(
        model(**inputs, **told).actions, model(**inputs, **other).actions, rtol=0, atol=0
    )


@pytest.mark.parametrize("head", HEADS, ids=["queries", "insulated"])
def test_it_learns_a_plan_that_only_the_told_actions_decide(head: HeadConfig) -> None:
    """Two samples of one picture and one text whose plans go on as they were begun."""
    torch.manual_seed(0)
    model = build(tiny_config(head=head)).train()
    model.take_committed(TOLD)
    inputs = {
        name: value[:1].repeat(2, *[1] * (value.ndim - 1)) for name, value in tiny_inputs().items()
    }
    begun = torch.tensor([-0.6, 0.6])[:, None, None]
    target = begun.expand(2, HORIZON, 7)
    told = {"committed": target[:, :TOLD], "committed_mask": torch.ones(2, TOLD, dtype=torch.int64)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = chunk_l1_loss(model(**inputs, **told).actions[:, TOLD:], target[:, TOLD:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2, "without them no plan is nearer than 0.6 to both"


def test_it_comes_back_from_disk_and_others_are_written_as_before(tmp_path: Path) -> None:
    model, inputs, told = make_told(HEADS[0]), tiny_inputs(), tell((2, 1))
    model.save(tmp_path / "told")
    back = PrismaticVLA.load(tmp_path / "told")
    assert back(**inputs, **told).actions.equal(model(**inputs, **told).actions)
    build(tiny_config()).save(tmp_path / "plain")
    assert "committed" not in str(read_json(tmp_path / "plain/model.json"))


def test_another_count_keeps_what_was_learnt() -> None:
    model, inputs, told = make_told(HEADS[0]), tiny_inputs(), tell((1, 1))
    before = model(**inputs, **told).actions
    model.take_committed(1)
    fewer = {name: value[:, :1] for name, value in told.items()}
    torch.testing.assert_close(model(**inputs, **fewer).actions, before)
    model.take_committed(TOLD)
    torch.testing.assert_close(model(**inputs, **told).actions, before)


def test_a_network_that_cannot_be_told_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"train it with HeadConfig\.committed"):
        build(tiny_config())(**tiny_inputs(), **tell((1, 1)))


@pytest.mark.parametrize("count", [-1, HORIZON])
def test_a_plan_must_hold_more_than_what_is_told(count: int) -> None:
    with pytest.raises(ConfigurationError, match="fewer than the horizon"):
        HeadConfig(horizon=HORIZON, committed=count)
    with pytest.raises(ConfigurationError, match="fewer than the horizon"):
        build(tokens_config()).take_committed(1)
