"""The tokens head: OpenVLA's bins, teacher forcing, and greedy decoding that agrees with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_models import VOCABULARY, build, tiny_inputs, tokens_config

from training.model import ActionTokens, HeadConfig
from vla_align_ros.errors import ConfigurationError


def published_encode(action, vocab_size):
    """OpenVLA's published formula, in numpy."""
    return vocab_size - np.digitize(np.clip(action, -1.0, 1.0), np.linspace(-1, 1, 256))


def published_decode(token, vocab_size):
    bins = np.linspace(-1, 1, 256)
    centers = (bins[:-1] + bins[1:]) / 2.0
    return centers[np.clip(vocab_size - token - 1, a_min=0, a_max=centers.shape[0] - 1)]


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=20))
def test_bins_equal_the_published_formula(values):
    tokens = ActionTokens(32000)
    actions = np.array(values)
    encoded = tokens.encode(torch.from_numpy(actions))
    np.testing.assert_array_equal(encoded.numpy(), published_encode(actions, 32000))
    np.testing.assert_array_equal(
        tokens.decode(encoded).numpy(), published_decode(encoded.numpy(), 32000)
    )


@given(st.floats(-1, 1))
def test_a_decoded_action_lies_within_half_a_bin(value):
    tokens = ActionTokens(32000)
    back = tokens.decode(tokens.encode(torch.tensor([value], dtype=torch.float64)))
    assert abs(back.item() - value) <= 1 / 255 + 1e-12


def test_foreign_tokens_read_as_the_nearest_bin():
    tokens = ActionTokens(32000)
    assert tokens.decode(torch.tensor([5, 31999])).tolist() == pytest.approx(
        [254 / 255, -254 / 255]
    )


def naive_greedy(model, inputs, count):
    """Decode row by row through the language model alone, without cache or padding."""
    rows = []
    for i in range(inputs["input_ids"].shape[0]):
        length = int(inputs["attention_mask"][i].sum())
        embed = model.llm.get_input_embeddings()
        text = embed(inputs["input_ids"][i : i + 1, :length])
        visual = model.projector(model.encode_images(inputs["pixel_values"][i : i + 1]))
        x = torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)
        ids = []
        for _ in range(count):
            token = model.llm(inputs_embeds=x).logits[:, -1].argmax(-1)
            ids.append(int(token))
            x = torch.cat([x, embed(token)[:, None]], dim=1)
        rows.append(ids)
    return torch.tensor(rows)


def token_inputs(batch=3):
    inputs = tiny_inputs(batch=batch)
    del inputs["state"]
    return inputs


@torch.no_grad()
def test_cached_padded_decoding_equals_decoding_row_by_row_without_either():
    model = build(tokens_config())
    inputs = token_inputs()
    generated = model.generate_tokens(**inputs)
    assert torch.equal(generated, naive_greedy(model, inputs, 7))
    assert len(torch.unique(generated)) > 1


@torch.no_grad()
def test_teacher_forcing_predicts_what_greedy_decoding_chose():
    model = build(tokens_config())
    inputs = token_inputs()
    generated = model.generate_tokens(**inputs)
    logits = model(**inputs, action_tokens=generated).logits
    assert logits.shape == (3, 7, VOCABULARY)
    assert torch.equal(logits.argmax(-1), generated)
    torch.testing.assert_close(model(**inputs).logits, logits[:, :1], atol=1e-5, rtol=1e-5)


def test_prediction_decodes_to_one_normalised_action():
    model = build(tokens_config())
    actions = model.predict(**token_inputs())
    assert actions.shape == (3, 1, 7) and actions.abs().max() <= 1.0


def test_cross_entropy_reaches_every_part():
    model = build(tokens_config()).train()
    target = model.action_tokens.encode(torch.rand(3, 7) * 2 - 1)
    logits = model(**token_inputs(), action_tokens=target).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
    for name in ("vision", "projector", "llm"):
        assert any(
            p.grad is not None and p.grad.abs().sum() > 0 for p in getattr(model, name).parameters()
        )


def test_tokens_need_causal_attention_and_horizon_one():
    with pytest.raises(ConfigurationError, match="bidirectional"):
        tokens_config(attention="bidirectional")
    with pytest.raises(ConfigurationError, match="horizon 8"):
        HeadConfig(kind="tokens", horizon=8)
