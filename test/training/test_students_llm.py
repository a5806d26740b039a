"""Any causal language model as a student's trunk: the same numbers as by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

import transformers
from tiny_models import VOCABULARY, build, tiny_config, tiny_inputs, tokens_config

from training.model import LlmConfig, PrismaticVLA, VlaConfig
from training.model.llm import build_llm
from vla_align_ros.errors import ConfigurationError

BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
GEMMA = {"head_dim": 8, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
FAMILIES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True, "num_attention_heads": 8},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", **GEMMA},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 8, "sliding_window": 64, **GEMMA},
    "gemma3": {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 8,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 3.0,
        **GEMMA,
    },
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request, tmp_path_factory) -> Path:
    """A random model of one family, saved by transformers in its own layout."""
    values = {**BASE, **FAMILIES[request.param]}
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # otherwise ones or zeros, which would hide a norm that is left out
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embed" in name:  # logits far apart enough to have one clear winner
                parameter.mul_(20.0)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return path


def reference(folder: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def without_state(**overrides):
    inputs = tiny_inputs(**overrides)
    del inputs["state"]
    return inputs


def plain_embeddings(model, inputs, row):
    """One row's unpadded embeddings: BOS, visual tokens, the other words."""
    length = int(inputs["attention_mask"][row].sum())
    words = model.llm.get_input_embeddings()(inputs["input_ids"][row : row + 1, :length])
    visual = model.projector(model.encode_images(inputs["pixel_values"][row : row + 1]))
    return torch.cat([words[:, :1], visual, words[:, 1:]], dim=1)


@torch.no_grad()
def test_hidden_states_equal_a_plain_forward_on_the_same_embeddings(folder):
    model = build(tokens_config(llm=LlmConfig(pretrained=str(folder))))
    inputs = without_state(batch=3)
    out = model(**inputs)
    own = reference(folder)
    for row in range(3):
        plain = own(inputs_embeds=plain_embeddings(model, inputs, row), output_hidden_states=True)
        assert len(plain.hidden_states) == len(out.hidden_states) == 4
        for expected, got in zip(plain.hidden_states, out.hidden_states, strict=True):
            torch.testing.assert_close(
                got[row, out.visual], expected[0, out.visual], atol=2e-5, rtol=1e-4
            )
        torch.testing.assert_close(out.logits[row, 0], plain.logits[0, -1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_greedy_tokens_equal_those_of_the_model_by_itself(folder):
    model = build(tokens_config(llm=LlmConfig(pretrained=str(folder))))
    inputs = without_state(batch=2)
    tokens = model.generate_tokens(**inputs)
    own = reference(folder)
    for row in range(2):
        embeds = plain_embeddings(model, inputs, row)
        for step in range(7):
            expected = own(inputs_embeds=embeds).logits[0, -1].argmax()
            assert tokens[row, step] == expected
            word = own.get_input_embeddings()(expected[None, None])
            embeds = torch.cat([embeds, word], dim=1)


@torch.no_grad()
def test_a_saved_student_comes_back_without_the_source(folder, tmp_path):
    model = build(tiny_config(llm=LlmConfig(pretrained=str(folder))))
    model.save(tmp_path)
    described = VlaConfig.from_dict(model.describe())
    absent = dataclasses.replace(described.llm, pretrained="/nowhere/at/all")
    model.config = dataclasses.replace(model.config, llm=absent)
    model.save(tmp_path)  # as on another machine, where the pretrained folder does not exist
    loaded = PrismaticVLA.load(tmp_path)
    assert torch.equal(model.predict(**tiny_inputs()), loaded.predict(**tiny_inputs()))


def test_every_weight_of_the_trunk_trains(folder):
    model = build(tiny_config(llm=LlmConfig(pretrained=str(folder)))).train()
    model(**tiny_inputs()).actions.square().sum().backward()
    still = [n for n, p in model.llm.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_sequence_beyond_the_sliding_window_is_refused_not_miscomputed():
    values = {**BASE, **FAMILIES["gemma3"], "sliding_window": 16}
    model = build(tiny_config(llm=LlmConfig(config=values)))
    with pytest.raises(ConfigurationError, match=r"23 tokens .* at most 16"):
        model(**tiny_inputs())
    values["sliding_window"] = 23
    assert (
        build(tiny_config(llm=LlmConfig(config=values)))(**tiny_inputs()).actions.isfinite().all()
    )


def test_attention_that_a_model_lacks_is_refused():
    config = tiny_config(
        llm=LlmConfig(config={**BASE, **FAMILIES["gemma2"]}), attention_backend="sdpa"
    )
    with pytest.raises(ConfigurationError, match="attention_backend"):
        build(config)


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path):
    model = build_llm(LlmConfig(config={**BASE, **FAMILIES["llama"]}), "eager")
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigurationError, match=r"layers\.1\.mlp\.up_proj"):
        build_llm(LlmConfig(pretrained=str(tmp_path)), "eager")


def test_an_absent_source_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"LlmConfig\.pretrained"):
        build_llm(LlmConfig(pretrained=str(tmp_path / "nothing")), "eager")
