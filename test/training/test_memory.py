"""Activation checkpointing and compilation: the same numbers, fewer kept activations."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_adapters import adapted, chunk_loss, gradients
from tiny_models import build, tiny_config, tiny_inputs, tiny_vision, tokens_config
from torch import Tensor, nn

from training.memory import (
    MemoryConfig,
    apply_memory,
    checkpoint_blocks,
    compile_blocks,
    find_blocks,
)
from training.model import PrismaticVLA
from vla_align_ros.errors import ConfigurationError


def kept_bytes(model: PrismaticVLA) -> int:
    """What a forward pass keeps for its backward pass, without the weights themselves."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = chunk_loss(model.train())
    loss.backward()  # until here all that was kept is alive, so addresses tell tensors apart
    return sum(kept.values())


def test_blocks_are_those_of_the_towers_and_of_the_llm() -> None:
    model = build(tokens_config(vision=(tiny_vision(), tiny_vision(width=16, layers=1))))
    assert [name for name, _ in find_blocks(model)] == [
        "vision.0.backbone.encoder.layer.0",
        "vision.0.backbone.encoder.layer.1",
        "vision.1.backbone.encoder.layer.0",
        "llm.model.layers.0",
        "llm.model.layers.1",
        "llm.model.layers.2",
    ]
    for name, block in find_blocks(model):
        assert model.get_submodule(name) is block


@pytest.mark.parametrize("with_adapter", [False, True])
def test_checkpointed_gradients_are_equal(with_adapter: bool) -> None:
    model = adapted(dropout=0.3) if with_adapter else build(tiny_config())
    names = list(model.state_dict())
    torch.manual_seed(5)
    plain = gradients(model)
    assert checkpoint_blocks(model) == 5
    torch.manual_seed(5)
    again = gradients(model)
    assert plain.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    assert list(model.state_dict()) == names
    if with_adapter:  # the dropout of the comparison was really drawn
        torch.manual_seed(6)
        other = gradients(model)
        assert not all(torch.equal(value, other[name]) for name, value in plain.items())


def test_checkpointing_keeps_less_and_evaluates_the_same() -> None:
    model = build(tiny_config())
    before = kept_bytes(model)
    with torch.no_grad():
        expected = model.eval()(**tiny_inputs())
    assert apply_memory(model, MemoryConfig(checkpointing=True)) == 5
    assert kept_bytes(model) < 0.6 * before
    with torch.no_grad():
        output = model.eval()(**tiny_inputs())
    assert torch.equal(output.actions, expected.actions)
    for one, other in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)


def test_quantised_blocks_checkpoint_too() -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra [qlora]")
    model = adapted(quantize="nf4")
    plain = gradients(model)
    checkpoint_blocks(model)
    again = gradients(model)
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


def test_a_copy_computes_with_its_own_weights() -> None:
    model = build(tiny_config())
    checkpoint_blocks(model)
    assert checkpoint_blocks(model) == 5  # a second time changes nothing
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.llm.parameters():
            parameter.zero_()
        changed, kept = (m(**tiny_inputs()).hidden_states for m in (other, model))
    assert torch.equal(changed[0], changed[1])  # a block of zeros adds nothing
    assert not torch.equal(kept[0], kept[1])


def test_nothing_asked_changes_nothing() -> None:
    model = build(tiny_config())
    kinds = [type(block) for _, block in find_blocks(model)]
    assert apply_memory(model, MemoryConfig()) == 0
    assert [type(block) for _, block in find_blocks(model)] == kinds


def test_a_network_without_blocks_is_refused() -> None:
    model = build(tiny_config())
    model.vision[0] = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"Linear at vision\.0"):
        find_blocks(model)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it while it compiles
@pytest.mark.parametrize("kind", ["plain", "checkpointed", "adapted"])
def test_compiled_blocks_give_the_same_gradients(kind: str) -> None:
    model = adapted() if kind == "adapted" else build(tiny_config())
    names, plain = list(model.state_dict()), gradients(model)
    if kind == "checkpointed":
        checkpoint_blocks(model)
    assert compile_blocks(model, backend="eager") == 5
    try:
        again = gradients(model)
    finally:
        torch.compiler.reset()
    assert plain.keys() == again.keys() and list(model.state_dict()) == names
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7)
