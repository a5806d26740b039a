"""LoRA: what it adapts and trains, that it computes W + alpha / r B A, and how it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_adapters import adapted, chunk_loss, gradients, move
from tiny_models import build, tiny_config, tiny_inputs, tiny_llm, tiny_vision, tokens_config
from torch import nn

from training.adapter_files import (
    adapter_state_dict,
    full_state_dict,
    load_adapter,
    save_adapter,
)
from training.adapters import (
    AdapterConfig,
    _name_pattern,
    adapted_layers,
    apply_adapter,
    describe_adapter,
    has_adapter,
)
from training.merging import merge_adapter, merged_state_dict, save_merged
from training.model import PrismaticVLA, ProjectorConfig, VlaConfig

LAYERS = {"vision": 2 * 6, "projector": 2, "llm": 3 * 7}


def two_towers() -> VlaConfig:
    return tokens_config(vision=(tiny_vision(), tiny_vision(width=16, layers=1)))


def outputs(model: PrismaticVLA) -> torch.Tensor:
    """Hidden states and what the head makes of them, in evaluation mode."""
    inputs = tiny_inputs(channels=3 * len(model.vision))
    if model.config.state is None:
        inputs.pop("state")
    with torch.no_grad():
        output = model.eval()(**inputs)
    result = output.actions if output.actions is not None else output.logits
    assert result is not None and output.hidden_states is not None
    return torch.cat([result.flatten(), output.hidden_states[-1].flatten()])


def test_every_linear_layer_is_adapted_and_the_vocabulary_output_is_not() -> None:
    model = adapted(tokens_config())
    assert describe_adapter(model).to_dict()["adapted_layers"] == LAYERS
    names = {name for name, _ in adapted_layers(model)}
    plain = build(tokens_config())
    linears = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear)}
    assert linears - names == {"llm.lm_head"}
    assert names <= linears


def test_gradients_reach_adapters_and_new_parts_only() -> None:
    config = tiny_config(projector=ProjectorConfig(position_embedding=True))
    model = adapted(config, dropout=0.1)
    found = gradients(model)
    new = ("action_head", "action_queries", "state_encoder", "visual_positions")
    for name, parameter in model.named_parameters():
        trains = ".lora_" in name or name.startswith(new)
        assert parameter.requires_grad == trains, name
        assert (name in found) == trains, name
        assert not trains or bool(found[name].abs().sum() > 0), name
    report = describe_adapter(model)
    assert report.to_dict()["trained_in_full"] == sorted(new)
    assert set(report.trained) == set(found)
    assert report.trained_parameters == sum(value.numel() for value in found.values())
    every = sum(parameter.numel() for parameter in model.parameters())
    assert report.trained_parameters + report.frozen_parameters == every


def test_training_moves_no_frozen_weight() -> None:
    model = adapted(moved=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    losses = []
    for _ in range(6):
        loss = chunk_loss(model.train())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == set(describe_adapter(model).trained)


def test_a_fresh_adapter_changes_nothing() -> None:
    torch.testing.assert_close(
        outputs(adapted(moved=False)), outputs(build(tiny_config())), rtol=0, atol=0
    )


@pytest.mark.parametrize("config", [tiny_config(), two_towers()], ids=["chunk", "tokens"])
def test_the_forward_is_w_plus_scaled_b_a(config: VlaConfig) -> None:
    model = adapted(config, rank=4, alpha=12)
    state = dict(build(config).state_dict())
    matrices = adapter_state_dict(model)
    for name in {key.rsplit(".lora_", 1)[0] for key in matrices}:
        a, b = (matrices[f"{name}.lora_{letter}.weight"] for letter in "AB")
        assert a.shape[0] == b.shape[1] == 4
        state[f"{name}.weight"] = state[f"{name}.weight"] + 12 / 4 * torch.einsum("or,ri->oi", b, a)
    state.update(full_state_dict(model))
    second = build(config)
    second.load_state_dict(state)
    torch.testing.assert_close(outputs(model), outputs(second), rtol=1e-5, atol=1e-5)


def test_gaussian_init_has_deviation_one_over_rank() -> None:
    model = adapted(moved=False, rank=8, init="gaussian")
    matrices = adapter_state_dict(model)
    a = torch.cat([value.flatten() for name, value in matrices.items() if "lora_A" in name])
    assert float(a.std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(a.mean()) == pytest.approx(0.0, abs=0.01)
    assert all(not value.any() for name, value in matrices.items() if "lora_B" in name)
    other = adapter_state_dict(adapted(moved=False, rank=8, init="kaiming"))
    name = next(name for name in matrices if "lora_A" in name)
    bound = 1 / other[name].shape[1] ** 0.5
    assert float(other[name].abs().max()) <= bound


@pytest.mark.parametrize(
    "config",
    [tiny_config(), two_towers(), tokens_config(llm=tiny_llm(tie_word_embeddings=True))],
    ids=["chunk", "tokens", "tied"],
)
def test_merged_saved_and_loaded_equals_the_adapted_network(
    config: VlaConfig, tmp_path: Path
) -> None:
    model = adapted(config)
    wrapped = outputs(model)
    untouched = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merged_state_dict(model)
    save_merged(model, tmp_path)
    assert has_adapter(model)
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())

    plain = merge_adapter(model)
    assert plain is model and not has_adapter(plain)
    assert list(plain.state_dict()) == list(build(config).state_dict())
    assert list(merged) == list(plain.state_dict())
    assert all(torch.equal(value, merged[name]) for name, value in plain.state_dict().items())
    torch.testing.assert_close(outputs(plain), wrapped, rtol=1e-5, atol=1e-5)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    torch.testing.assert_close(outputs(PrismaticVLA.load(tmp_path)), outputs(plain), rtol=0, atol=0)
    apply_adapter(plain, AdapterConfig(kind="lora", rank=2))  # and it can be adapted anew
    assert describe_adapter(plain).to_dict()["adapted_layers"]["projector"] >= 2


def test_a_network_without_adapter_is_saved_as_it_is(tmp_path: Path) -> None:
    model = build(tiny_config())
    save_merged(model, tmp_path / "a")
    model.save(tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()
    assert merge_adapter(model) is model
    report = apply_adapter(model, AdapterConfig())
    assert (report.adapted, report.frozen_parameters) == ((), 0)


def test_the_adapter_apart_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path)
    other = adapted(moved=False)
    move(other, seed=7)
    assert not torch.equal(outputs(other), outputs(model))
    load_adapter(other, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert torch.equal(outputs(other), outputs(model))


def test_peft_itself_opens_the_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted()
    save_adapter(model, tmp_path)
    base = build(tiny_config())
    base.load_state_dict(full_state_dict(model), strict=False)
    opened = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        actions = opened(**tiny_inputs()).actions
        torch.testing.assert_close(actions, model.eval()(**tiny_inputs()).actions, rtol=0, atol=0)


def test_parts_named_in_full_train_in_full() -> None:
    model = adapted(full=("projector",))
    found = gradients(model)
    assert {"projector.fc1.weight", "projector.fc2.bias"} <= set(found)
    assert describe_adapter(model).to_dict()["adapted_layers"] == {
        name: count for name, count in LAYERS.items() if name != "projector"
    }
    assert "projector.fc1.weight" in full_state_dict(model)


def test_what_trains_is_float32_above_a_base_in_bfloat16() -> None:
    model = build(tiny_config()).to(torch.bfloat16)
    apply_adapter(model, AdapterConfig(kind="lora", rank=4))
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    move(model)
    with torch.autocast("cpu", torch.bfloat16):
        chunk_loss(model.train()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    merged = merge_adapter(model)
    assert merged.llm.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16


@given(
    st.lists(
        st.from_regex(r"(llm|vision)(\.[0-9]{1,2})?\.(fc|q_proj)[12]?", fullmatch=True),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    st.data(),
)
def test_the_pattern_matches_the_chosen_names_only(every: list[str], data: st.DataObject) -> None:
    import re

    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    pattern = _name_pattern(chosen, every)
    assert {name for name in every if re.fullmatch(pattern, name)} == set(chosen)
