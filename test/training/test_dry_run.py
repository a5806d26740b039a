"""The dry run: every tensor of OpenVLA-7B by name and shape, and memory that real steps confirm."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [lora]")

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import openvla_layout as layout
from tiny_models import tiny_config, tiny_llm

from training.adapters import AdapterConfig, adapted_layers, apply_adapter
from training.dry_run import dry_run, read_published_tensors
from training.layouts import count_activations, estimate_layouts, name_dtype
from training.memory import checkpoint_blocks
from training.model import PrismaticVLA
from training.model.openvla import (
    build_empty,
    find_carried,
    load_openvla,
)
from training.preview import preview
from training.recipes import find_recipe
from training.settings import override
from training.setup_model import find_base, fit_vocabulary
from vla_align_ros.errors import ConfigurationError

BATCH, PROMPT = 2, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with np.load(Path(__file__).parent / "golden" / "openvla_tiny.npz") as stored:
        shapes = json.loads(str(stored["shapes"]))
    path = tmp_path_factory.mktemp("openvla") / "tiny"
    layout.write_folder(path, shapes)
    return path


@pytest.fixture(scope="module")
def full_size():
    return dry_run()


def test_openvla_7b_has_the_published_tensors_and_no_other(full_size):
    assert full_size["missing_keys"] == []
    assert full_size["unexpected_keys"] == []
    assert full_size["mismatched_shapes"] == []


def test_the_list_is_that_of_the_hubs_index(full_size):
    # huggingface.co/openvla/openvla-7b: model.safetensors.index.json has 982 tensors and
    # metadata.total_size 15082474368, two bytes a parameter.
    assert full_size["tensors"] == 982
    assert full_size["parameters"] * 2 == 15_082_474_368


def test_what_openvla_never_uses_is_the_last_blocks_the_norms_and_the_pooling():
    tensors = read_published_tensors()
    carried = find_carried(tensors)
    dino, siglip = 12 * 1024**2 + 15 * 1024, 4 * 1152**2 + 2 * 1152 * 4304 + 9 * 1152 + 4304
    pooling = siglip + 1152  # as a block, with the probe in place of one of its two norms
    counted = sum(math.prod(tensors[name]) for name in carried)
    assert counted == dino + siglip + pooling + 2 * (1024 + 1152) - 2 * 1152


def test_lora_of_rank_32_trains_what_the_published_run_trains_on_layers_in_use(full_size):
    # Published: 110,828,288 on 439 layers. Of these, 13 are never used, two embed patches by
    # convolution and one is lm_head, which our adapters leave alone.
    tensors = read_published_tensors()
    unused = [n for n in find_carried(tensors) if n.endswith("weight") and len(tensors[n]) == 2]
    patches = [n for n in tensors if n.endswith("patch_embed.proj.weight")]
    left_out = [*unused, *patches, "language_model.lm_head.weight"]
    assert (len(unused), len(patches)) == (13, 2)
    sizes = [(tensors[name][0], math.prod(tensors[name][1:])) for name in left_out]
    expected = 110_828_288 - 32 * sum(map(sum, sizes))
    assert full_size["trained_parameters"]["lora"] == expected
    used = full_size["parameters"] - full_size["unused_parameters"]
    assert full_size["trained_parameters"]["full"] == used


def test_a_real_folder_is_compared_by_its_headers(folder):
    report = dry_run(folder)
    assert (report["missing_keys"], report["unexpected_keys"]) == ([], [])
    model = load_openvla(folder).model
    used = sum(p.numel() for p in model.parameters())
    assert report["parameters"] - report["unused_parameters"] == used
    json.dumps(report)


def test_a_base_that_a_setting_names_is_the_one_that_is_looked_at(folder):
    told = preview("openvla_7b_align", settings=[f"base={folder}"])
    assert told["source"] == str(folder)
    assert told["parameters"] == preview("openvla_7b_align", base=str(folder))["parameters"]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="not found"):
        dry_run(tmp_path / "absent")


def tiny_openvla(folder: Path) -> PrismaticVLA:
    return load_openvla(folder, dtype=torch.float32).model.train()


def inputs_for(model: PrismaticVLA) -> dict[str, torch.Tensor]:
    ones = torch.ones(BATCH, PROMPT, dtype=torch.int64)
    return {
        "pixel_values": torch.zeros(BATCH, 6, 224, 224),
        "input_ids": ones,
        "attention_mask": ones,
        "action_tokens": torch.ones(BATCH, 7, dtype=torch.int64),
    }


def measure_kept_bytes(model: PrismaticVLA) -> int:
    """Bytes that a real forward pass saves, each storage once, parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        pointer = value.untyped_storage().data_ptr()
        if pointer not in known:
            kept[pointer] = value.untyped_storage()
        return value

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = model(**inputs_for(model))
    assert out.logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("adapted", [False, True])
def test_activations_are_those_that_a_real_step_keeps(folder, adapted):
    real = tiny_openvla(folder)
    laid_out = build_empty(real.config)
    if adapted:
        for model in (real, laid_out):
            apply_adapter(model.to(torch.bfloat16), AdapterConfig(kind="lora", rank=4))
    counted = count_activations(laid_out, BATCH, PROMPT)
    assert counted.peak(checkpointing=False) == pytest.approx(measure_kept_bytes(real), rel=0.02)


def test_checkpointing_keeps_the_blocks_inputs_alone(folder):
    counted = count_activations(build_empty(tiny_openvla(folder).config), BATCH, PROMPT)
    real = tiny_openvla(folder)
    checkpoint_blocks(real)
    kept = counted.peak(checkpointing=True) - max(counted.inner)
    assert kept == pytest.approx(measure_kept_bytes(real), rel=0.05)
    assert kept < counted.peak(checkpointing=False) / 2


def test_weights_gradients_and_moments_are_those_of_adamw(folder):
    model = tiny_openvla(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    full = estimate_layouts(model.config)["full"]
    weights = sum(p.nbytes for p in model.parameters())
    assert full["weights"] == full["gradients"] == pytest.approx(weights / 1e9)
    assert full["optimizer"] == pytest.approx(moments / 1e9)


@pytest.mark.parametrize(("layout_name", "kind"), [("qlora_nf4", "nf4"), ("lora_int8", "int8")])
def test_quantised_weights_take_what_bitsandbytes_takes(layout_name, kind):
    pytest.importorskip("bitsandbytes", reason="needs the extra [lora]")
    llm = tiny_llm(hidden_size=256, intermediate_size=640, num_key_value_heads=4)
    config = tiny_config(llm=llm)
    estimated = estimate_layouts(config, rank=4)
    model = PrismaticVLA(config).to(torch.bfloat16)
    apply_adapter(model, AdapterConfig(kind="lora", rank=4, quantize=kind))
    saved = sum(
        2 * layer.in_features * layer.out_features - packed_bytes(layer.get_base_layer(), kind)
        for name, layer in adapted_layers(model)
        if name.startswith("llm.")
    )
    difference = estimated["lora"]["weights"] - estimated[layout_name]["weights"]
    assert difference * 1e9 == pytest.approx(saved, rel=1e-3)


def packed_bytes(layer: torch.nn.Module, kind: str) -> int:
    """Bytes of a real quantised weight, without code tables, which do not grow with it."""
    if kind == "int8":
        return layer.weight.nbytes + 4 * layer.out_features
    state = layer.weight.quant_state
    return layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes


def test_sharding_divides_what_each_rank_owns():
    layouts = estimate_layouts(tiny_config())
    for kind in ("full", "lora"):
        for part in ("weights", "gradients", "optimizer"):
            assert layouts[f"{kind}_fsdp_8"][part] == pytest.approx(layouts[kind][part] / 8)
        assert layouts[f"{kind}_fsdp_8"]["gathered"] == layouts[f"{kind}_fsdp_2"]["gathered"] > 0


def test_gpus_that_divide_a_batch_keep_the_activations_of_their_share():
    whole = estimate_layouts(tiny_config(), batch_size=8, divided=True)
    each = {size: estimate_layouts(tiny_config(), batch_size=size) for size in (1, 2, 4)}
    for kind in ("full", "lora"):
        for ranks in (2, 4, 8):
            name = f"{kind}_fsdp_{ranks}"
            assert whole[name] == each[8 // ranks][name]
        assert whole[f"{kind}_fsdp_16"]["activations"] == each[1][f"{kind}_fsdp_16"]["activations"]
        assert whole[kind] == estimate_layouts(tiny_config(), batch_size=8)[kind]


def test_a_preview_divides_the_batch_and_invents_no_words():
    told = preview("debug_cpu")
    assert told["assumptions"]["batch_size"] == 8 and told["assumptions"]["batch_divided_by_n"]
    assert told["assumptions"]["vocabulary_size"] == 64
    fixed = find_recipe("debug_cpu").model
    llm = dataclasses.replace(fixed.llm, config={**fixed.llm.config, "vocab_size": 64})
    described = dataclasses.replace(fixed, llm=llm)
    network = PrismaticVLA(described, pretrained=False)
    assert told["parameters"] == sum(p.numel() for p in network.parameters())
    alone = estimate_layouts(described, batch_size=2)["full_fsdp_4"]["total"]
    assert told["memory_gb"]["full_fsdp_4"] == round(alone, 2)


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("debug_cpu", [], torch.float32),
        ("openvla_7b_align", [], torch.bfloat16),
        ("openvla_7b_align", ["precision=fp32"], torch.float32),
    ],
)
def test_a_preview_reckons_with_the_dtype_in_which_the_base_is_kept(folder, recipe, settings, told):
    base = str(folder) if recipe.startswith("openvla") else None
    found = preview(recipe, base=base, settings=settings)
    assert found["assumptions"]["lora_frozen_in"] == name_dtype(told)
    config = override(find_recipe(recipe), settings)
    config = dataclasses.replace(config, base=base)
    described = find_base(config).model if base else fit_vocabulary(config, words=0)
    size = config.optim.batch_size // config.parallel.accumulate
    options = {"batch_size": size, "rank": config.adapter.rank, "divided": True, "frozen": told}
    wanted = estimate_layouts(described, checkpointing=config.memory.checkpointing, **options)
    assert found["memory_gb"] == {name: round(v["total"], 2) for name, v in wanted.items()}


def test_a_base_in_float32_takes_twice_the_bytes_of_what_is_frozen(folder):
    config = tiny_config()
    narrow, wide = (
        estimate_layouts(config, rank=4, frozen=dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    model = build_empty(config)
    apply_adapter(model, AdapterConfig(kind="lora", rank=4))
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    for kind in ("lora", "lora_fsdp_2"):
        ranks = 2 if kind.endswith("2") else 1
        difference = 1e9 * ranks * (wide[kind]["weights"] - narrow[kind]["weights"])
        assert difference == pytest.approx(2 * frozen)
    linears = sum(
        layer.in_features * layer.out_features
        for name, layer in adapted_layers(model)
        if name.startswith("llm.")
    )
    difference = 1e9 * (wide["qlora_nf4"]["weights"] - narrow["qlora_nf4"]["weights"])
    assert difference == pytest.approx(2 * (frozen - linears))  # the packed ones take the same


def test_layouts_are_ordered_as_their_purpose_says(full_size):
    memory = full_size["memory_gb"]
    assert memory["qlora_nf4"] < memory["lora_int8"] < memory["lora"] < memory["full_adamw8bit"]
    assert memory["full_adamw8bit"] < memory["full"]
    assert memory["full_fsdp_16"] < memory["full_fsdp_8"] < memory["full_fsdp_2"] < memory["full"]
    assert 15.0 < full_size["memory_parts_gb"]["lora"]["weights"] < 15.6
