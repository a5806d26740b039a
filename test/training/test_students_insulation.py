"""Knowledge insulation: an action error that never reaches the backbone, and a head that learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_models import VOCABULARY, build, tiny_config, tiny_inputs, tiny_llm

from training.model import GroundingConfig, HeadConfig, PrismaticVLA, chunk_l1_loss
from vla_align_ros.errors import ConfigurationError

HEAD = HeadConfig(horizon=4, insulate=True)


def insulated(**overrides) -> PrismaticVLA:
    return build(tiny_config(head=HEAD, **overrides))


def moved_groups(model) -> set[str]:
    return {
        group
        for group, members in model.parameter_groups().items()
        if any(p.grad is not None and p.grad.any() for _, p in members)
    }


def test_the_action_error_stops_before_the_backbone():
    model = insulated().train()
    out = model(**tiny_inputs())
    chunk_l1_loss(out.actions, torch.ones_like(out.actions)).backward()
    assert moved_groups(model) == {"head", "state"}
    still = [
        name
        for group in ("head", "state")
        for name, p in model.parameter_groups()[group]
        if p.grad is None or not p.grad.any()
    ]
    assert still == []


def test_without_insulation_the_same_error_reaches_everything():
    model = build(tiny_config()).train()
    out = model(**tiny_inputs())
    chunk_l1_loss(out.actions, torch.ones_like(out.actions)).backward()
    assert moved_groups(model) == {"vision", "projector", "llm", "state", "head"}


def test_other_losses_still_train_the_backbone():
    model = insulated().train()
    out = model(**tiny_inputs())
    (out.actions.sum() + out.hidden_states[2][:, out.visual].square().mean()).backward()
    assert {"vision", "projector", "llm"} <= moved_groups(model)


def test_the_backbone_learns_action_tokens_while_the_expert_learns_the_chunk():
    model = insulated(llm=dataclasses.replace(tiny_llm(), keep_lm_head=True)).train()
    tokens = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    out = model(**tiny_inputs(), action_tokens=tokens)
    assert out.logits.shape == (2, 7, VOCABULARY) and out.actions.shape == (2, 4, 7)
    torch.testing.assert_close(out.actions, model(**tiny_inputs()).actions, atol=1e-6, rtol=1e-5)
    torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), tokens.flatten()).backward()
    assert moved_groups(model) == {"vision", "projector", "llm"}


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal_prefix", "bidirectional"])
def test_actions_depend_on_picture_words_and_state_but_not_on_padding(attention):
    model, inputs = insulated(attention=attention), tiny_inputs()
    actions = model(**inputs).actions
    for name in ("pixel_values", "state"):
        other = {**inputs, name: inputs[name] + 1.0}
        assert (model(**other).actions - actions).abs().max() > 1e-5
    words = {**inputs, "input_ids": inputs["input_ids"].clone()}
    words["input_ids"][:, 3] = 5
    assert (model(**words).actions - actions).abs().max() > 1e-6
    padded = {
        **inputs,
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=7),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 5)),
    }
    torch.testing.assert_close(model(**padded).actions, actions, atol=1e-5, rtol=1e-5)


def test_the_expert_alone_can_learn_what_the_frozen_states_tell():
    model = insulated().train()
    target = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(2)) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = chunk_l1_loss(model(**tiny_inputs()).actions, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_an_insulated_model_comes_back_from_disk(tmp_path):
    model = insulated()
    model.save(tmp_path)
    loaded = PrismaticVLA.load(tmp_path)
    assert torch.equal(model.predict(**tiny_inputs()), loaded.predict(**tiny_inputs()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: HeadConfig(kind="tokens", horizon=1, insulate=True), "tokens head with insulate"),
        (
            lambda: tiny_config(head=HEAD, grounding=GroundingConfig(layer=1, to_actions=True)),
            "insulated head",
        ),
    ],
)
def test_impossible_insulation_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        change()


def test_action_tokens_need_causal_attention_and_a_vocabulary():
    tokens = torch.ones(2, 7, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match="causal"):
        insulated(attention="bidirectional")(**tiny_inputs(), action_tokens=tokens)
    with pytest.raises(ConfigurationError, match="keep_lm_head"):
        insulated()(**tiny_inputs(), action_tokens=tokens)
