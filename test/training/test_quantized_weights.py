"""Frozen weights in 4 and 8 bits: what is quantised, how, and that gradients pass through it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_adapters import adapted, chunk_loss, gradients, move, one_rank
from tiny_models import build, tiny_config, tiny_inputs, tiny_llm
from torch import Tensor, nn

from training.adapter_files import load_adapter, save_adapter
from training.adapters import AdapterConfig, adapted_layers, apply_adapter, describe_adapter
from training.memory import find_blocks
from training.merging import merge_adapter, merged_state_dict, save_merged
from training.model import PrismaticVLA
from training.quantize import count_packed, dense_weight, is_quantized, quantize_linears
from vla_align_ros.errors import ConfigurationError

pytest.importorskip("bitsandbytes", reason="needs the extra [qlora]")

KINDS = ("nf4", "int8")
# The 16 levels of NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E).
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def quantized_linear(kind: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A quantised layer of 96 x 64 and the weight that it was made from."""
    torch.manual_seed(seed)
    holder = nn.Sequential(nn.Linear(64, 96))
    weight = holder[0].weight.detach().clone()
    assert quantize_linears(holder, ["0"], kind, compute_dtype=torch.float32) == 1
    return holder[0], weight


def plain_base(model: PrismaticVLA) -> PrismaticVLA:
    """The same adapted network on dense weights that hold what quantised ones multiply with."""
    dense = copy.deepcopy(model)
    for _, layer in adapted_layers(dense):
        base = layer.get_base_layer()
        if is_quantized(base):
            linear = nn.Linear(base.in_features, base.out_features, base.bias is not None)
            linear.weight = nn.Parameter(dense_weight(base).clone(), requires_grad=False)
            linear.bias = base.bias
            layer.base_layer = linear
    return dense


def test_nf4_takes_the_nearest_level_of_its_block() -> None:
    layer, weight = quantized_linear("nf4")
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks.div(scale).unsqueeze(-1) - NF4).abs().argmin(dim=-1)
    error = (dense_weight(layer).reshape(-1, 64) - NF4[nearest] * scale).abs() / scale
    assert float(error.max()) < 0.02  # the scales themselves are kept in 8 bits
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == weight.numel() // 2
    assert count_packed(layer) == weight.numel() // 2


def test_int8_rounds_each_row_to_a_127th_of_its_largest() -> None:
    layer, weight = quantized_linear("int8")
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    expected = (weight / scale).round() * scale
    error = (dense_weight(layer) - expected).abs() / scale
    assert float(error.max()) < 1.07  # now and then the other side of a tie: it starts from float16
    assert float(error.mean()) < 0.02
    assert layer.weight.dtype == torch.int8 and count_packed(layer) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_llm_is_quantised_and_vision_only_if_asked(kind: str) -> None:
    for vision, counts in ((False, {"llm": 21}), (True, {"vision": 12, "llm": 21})):
        report = describe_adapter(adapted(quantize=kind, quantize_vision=vision, moved=False))
        assert report.to_dict()["quantized_layers"] == counts
        assert set(report.quantized) <= set(report.adapted)
        same = describe_adapter(adapted(moved=False))
        assert report.trained == same.trained
        assert report.frozen_parameters == same.frozen_parameters  # as before quantisation


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_through_quantised_layers(kind: str) -> None:
    model = adapted(quantize=kind, quantize_vision=True)
    found, expected = gradients(model), gradients(plain_base(model))
    assert set(found) == set(expected) == set(describe_adapter(model).trained)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_in_between_leaves_the_gradient_as_it_is(kind: str) -> None:
    model = adapted(quantize=kind)
    before = gradients(model)
    with torch.no_grad():
        model.eval()(**tiny_inputs())
    after = gradients(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_quantised_weights_lowers_the_loss(kind: str) -> None:
    model = adapted(quantize=kind, moved=False).train()
    stored = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        loss = chunk_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, stored[n]) for n, p in model.named_parameters() if n in stored)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_computes_what_was_trained(kind: str, tmp_path: Path) -> None:
    model = adapted(
        quantize=kind, quantize_vision=True
    ).train()  # int8 rounds inputs when it evaluates
    with torch.no_grad():
        wrapped = model(**tiny_inputs()).actions
    save_merged(model, tmp_path)
    state = merged_state_dict(model)
    names = list(build(tiny_config()).state_dict())
    assert list(state) == names
    merged = merge_adapter(model)
    assert list(merged.state_dict()) == names
    assert not any(is_quantized(module) for module in merged.modules())
    assert not vars(merged).keys() & {"peft_config", "is_loaded_in_4bit", "is_loaded_in_8bit"}
    loaded = PrismaticVLA.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(merged(**tiny_inputs()).actions, wrapped, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded(**tiny_inputs()).actions, wrapped, rtol=1e-5, atol=1e-5)
    assert all(value.dtype == torch.float32 for value in merged.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_rebuilt_run_is_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = adapted(quantize=kind)
    save_adapter(model, tmp_path)
    again = adapted(quantize=kind, moved=False)
    move(again, seed=9)
    load_adapter(again, tmp_path)
    with torch.no_grad():
        one, other = (m.eval()(**tiny_inputs()).actions for m in (model, again))
    assert torch.equal(one, other)


def test_four_bits_need_about_an_eighth_of_float32() -> None:
    wide = tiny_config(llm=tiny_llm(hidden_size=128, intermediate_size=256))
    layers = [
        layer.get_base_layer()
        for _, layer in adapted_layers(adapted(wide, quantize="nf4", moved=False))
        if is_quantized(layer.get_base_layer())
    ]
    kept = sum(
        value.numel() * value.element_size()
        for layer in layers
        for name, value in layer.state_dict().items()
        if "quant_map" not in name  # the levels themselves: a constant
    )
    dense = 4 * sum(layer.in_features * layer.out_features for layer in layers)
    assert 0.12 < kept / dense < 0.16


def test_a_base_in_bfloat16_comes_back_in_bfloat16() -> None:
    for kind in KINDS:
        model = build(tiny_config()).to(torch.bfloat16)
        apply_adapter(model, AdapterConfig(kind="lora", rank=4, quantize=kind))  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            chunk_loss(model.train()).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert merge_adapter(model).llm.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # the head's last view is not changed
def test_four_bit_blocks_can_be_sharded(tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    expected = gradients(adapted(quantize="nf4"))
    model = adapted(quantize="nf4")
    with one_rank(tmp_path) as mesh:
        for _, block in find_blocks(model):
            fully_shard(block, mesh=mesh)
        found = gradients(fully_shard(model, mesh=mesh))
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.equal(value.full_tensor(), expected[name]), name


def test_nothing_to_quantise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Nothing would be quantised"):
        quantize_linears(nn.Linear(2, 2), [], "nf4", compute_dtype=torch.float32)
