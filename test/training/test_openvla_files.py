"""OpenVLA checkpoints: what is loaded comes back byte for byte, and bad folders are named."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import openvla_layout as layout
from safetensors.torch import load_file, save_file

from training.adapters import AdapterConfig, apply_adapter
from training.model import PrismaticVLA
from training.model.openvla import (
    compare_tensors,
    find_carried,
    find_folder,
    load_openvla,
    open_shards,
    openvla_config,
    read_statistics,
    to_ours,
    to_published,
    write_statistics,
)
from training.publish import save_openvla
from vla_align_ros.contract.normalize import compute_statistics
from vla_align_ros.errors import ConfigurationError, TrainingError

ADAPTER = AdapterConfig(kind="lora", rank=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with np.load(Path(__file__).parent / "golden" / "openvla_tiny.npz") as stored:
        shapes = json.loads(str(stored["shapes"]))
    path = tmp_path_factory.mktemp("openvla") / "tiny"
    layout.write_folder(path, shapes)
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: value for shard in shards for name, value in shard.items()}


def some_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(1, 6, 224, 224, generator=generator),
        "input_ids": torch.tensor([[1, 400, 29900, 29871]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.int64),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loading_and_saving_gives_every_file_byte_for_byte(folder, tmp_path, dtype):
    opened = load_openvla(folder, dtype=dtype)
    save_openvla(opened.model, opened, tmp_path / "out")
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    same, differing, errors = filecmp.cmpfiles(folder, tmp_path / "out", names, shallow=False)
    assert (differing, errors) == ([], []) and len(same) == len(names) >= 12


def test_every_weight_is_loaded_in_the_dtype_asked_for_and_none_is_left_empty(folder):
    model = load_openvla(folder).model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not any(value.is_meta for value in tensors.values())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    stored = read_all(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[to_published(name)]), name
    carried = find_carried(stored)
    assert len(model.state_dict()) + len(carried) == len(stored)
    assert any("attn_pool" in name for name in carried)
    assert not any("projector" in name or "language_model" in name for name in carried)


@torch.no_grad()
def test_bfloat16_weights_run_and_stay_close_to_float32(folder):
    exact = load_openvla(folder, dtype=torch.float32).model(**some_inputs())
    for backend in ("sdpa", "eager"):
        rough = load_openvla(folder, attention_backend=backend).model(**some_inputs())
        assert rough.logits.dtype == torch.bfloat16
        similar = torch.nn.functional.cosine_similarity(
            rough.hidden_states[-1].float(), exact.hidden_states[-1], dim=-1
        )
        assert similar.min() > 0.99


def test_our_own_format_keeps_the_model_too(folder, tmp_path):
    model = load_openvla(folder, dtype=torch.float32).model
    model.save(tmp_path / "ours")
    again = PrismaticVLA.load(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(**some_inputs()).logits, model(**some_inputs()).logits)


def train_adapter(model: PrismaticVLA, *full: str, moves: bool = True) -> None:
    """Give the adapter's zero half values, as training would, and what trains in full others."""
    torch.manual_seed(3)
    apply_adapter(model, dataclasses.replace(ADAPTER, full=full))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif name.startswith(full) and moves:
            with torch.no_grad():
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_merged_lora_answers_as_the_wrapped_model_and_changes_only_its_layers(folder, tmp_path):
    pytest.importorskip("peft", reason="needs the extra [lora]")
    model = load_openvla(folder, dtype=torch.float32).model
    with torch.no_grad():
        before = model(**some_inputs()).logits
        train_adapter(model)
        wrapped = model(**some_inputs()).logits
        assert (wrapped - before).abs().max() > 0.1
        as_float(folder, tmp_path / "base")
        save_openvla(model, tmp_path / "base", tmp_path / "merged")
        merged = load_openvla(tmp_path / "merged", dtype=torch.float32).model(**some_inputs())
    torch.testing.assert_close(merged.logits, wrapped, atol=1e-4, rtol=1e-4)
    old, new = read_all(folder), read_all(tmp_path / "merged")
    changed = {name for name in old if not torch.equal(old[name].float(), new[name])}
    adapted = {f"{to_published(name)}.weight" for name in apply_names(model)}
    assert changed == adapted and len(changed) == 2 * (2 * 4) + 3 + 4 * 7


def apply_names(model: PrismaticVLA) -> list[str]:
    return [n.rsplit(".lora_A", 1)[0] for n, _ in model.named_parameters() if ".lora_A." in n]


def as_float(folder: Path, out: Path) -> None:
    """The same checkpoint stored in float32, so that merging rounds nothing."""
    shutil.copytree(folder, out)
    for path in out.glob("*.safetensors"):
        wide = {name: value.float() for name, value in load_file(path).items()}
        save_file(wide, path, {"format": "pt"})


@pytest.mark.parametrize("full", [(), ("projector",)])
def test_lora_apart_opens_with_peft_on_the_published_modules(folder, tmp_path, full):
    peft = pytest.importorskip("peft", reason="needs the extra [lora]")
    opened = load_openvla(folder, dtype=torch.float32)
    model = opened.model
    train_adapter(model, *full)
    save_openvla(model, opened, tmp_path / "apart", lora="apart", base="openvla/openvla-7b")
    save_openvla(model, opened, tmp_path / "merged")
    published = PublishedNames(load_openvla(folder, dtype=torch.float32).model)
    wrapped = peft.PeftModel.from_pretrained(published, tmp_path / "apart")
    assert wrapped.peft_config["default"].modules_to_save == (list(full) or None)
    seen = torch.randn(1, 3, model.projector.fc1.in_features)
    assert torch.equal(wrapped.base_model.model.projector(seen), model.projector(seen))
    assert wrapped.peft_config["default"].base_model_name_or_path == "openvla/openvla-7b"
    state = wrapped.merge_and_unload().state_dict()
    merged = read_all(tmp_path / "merged")
    assert set(state) == set(merged) - find_carried(merged)
    for name, value in state.items():
        assert torch.equal(value.to(torch.bfloat16), merged[name]), name


@pytest.mark.parametrize("part", ["vision", "llm"])
def test_another_part_that_trained_in_full_is_refused_beside_lora(folder, tmp_path, part):
    pytest.importorskip("peft", reason="needs the extra [lora]")
    opened = load_openvla(folder, dtype=torch.float32)
    train_adapter(opened.model, part)
    expected = rf"in full cannot be written beside LoRA: got {part} \(adapter.full\).*merge"
    with pytest.raises(TrainingError, match=expected):
        save_openvla(opened.model, opened, tmp_path / "apart", lora="apart")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_a_part_that_could_train_and_did_not_is_not_written_apart(folder, tmp_path, part):
    pytest.importorskip("peft", reason="needs the extra [lora]")
    opened = load_openvla(folder, dtype=torch.float32)
    train_adapter(opened.model, part, moves=False)
    save_openvla(opened.model, opened, tmp_path / "apart", lora="apart")
    assert all("lora_" in name for name in load_file(tmp_path / "apart/adapter_model.safetensors"))


class PublishedNames(torch.nn.Module):
    """Our modules under the names that the published class gives them."""

    def __init__(self, model: PrismaticVLA) -> None:
        super().__init__()
        self.config = {"model_type": "custom"}
        self.vision_backbone = torch.nn.Module()
        self.vision_backbone.featurizer = model.vision[0].backbone
        self.vision_backbone.fused_featurizer = model.vision[1].backbone
        self.projector, self.language_model = model.projector, model.llm
        for block in model.vision[0].backbone.blocks:
            for scale in (block.ls1, block.ls2):
                scale.scale_factor = scale.gamma
                del scale.gamma


def test_other_statistics_replace_those_of_the_base(folder, tmp_path):
    opened = load_openvla(folder)
    actions = np.random.default_rng(0).normal(size=(50, 7))
    mine = {"mine": write_statistics(compute_statistics(actions), transitions=50, trajectories=2)}
    save_openvla(opened.model, opened, tmp_path / "out", norm_stats=mine)
    again = load_openvla(tmp_path / "out")
    assert list(again.norm_stats) == ["mine"]
    statistics = again.processor.normalizers["action"].statistics
    np.testing.assert_array_equal(statistics.q99, compute_statistics(actions).q99)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**layout.config_json(), "norm_stats": mine}


def test_a_checkpoint_with_one_tower_and_vicunas_prompt_loads(folder, tmp_path):
    shapes = open_shards(folder).shapes
    old, new = "vision_backbone.fused_featurizer.", "vision_backbone.featurizer."
    single = {n.replace(old, new): s for n, s in shapes.items() if n.startswith(old)}
    single.update({n: s for n, s in shapes.items() if n.startswith("language_model.")})
    width, vision = layout.HIDDEN, layout.TOWERS[1]["embed_dim"]
    single.update({"projector.fc1.weight": (width, vision), "projector.fc1.bias": (width,)})
    single.update({"projector.fc2.weight": (width, width), "projector.fc2.bias": (width,)})
    layout.write_folder(tmp_path / "v01", single)
    changes = {
        "timm_model_ids": ["vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None],
        "image_sizes": [224],
        "llm_backbone_id": "vicuna-v15-7b",
        "use_fused_vision_backbone": False,
    }
    (tmp_path / "v01" / "config.json").write_text(json.dumps({**layout.config_json(), **changes}))
    opened = load_openvla(tmp_path / "v01", dtype=torch.float32, unnorm_key="still_tiny")
    assert opened.model.projector.fc3 is None
    assert opened.processor.tokenizer.template.text.endswith("ASSISTANT: ")
    inputs = {**some_inputs(), "pixel_values": some_inputs()["pixel_values"][:, 3:]}
    assert opened.model.generate_tokens(**inputs).shape == (1, 7)


def test_names_go_there_and_back(folder):
    shapes = open_shards(folder).shapes
    carried = find_carried(shapes)
    for name in set(shapes) - carried:
        assert to_published(to_ours(name)) == name
    assert to_published("llm._orig_mod.model.norm.weight") == "language_model.model.norm.weight"


def test_a_chunk_head_has_no_place_in_the_published_layout():
    with pytest.raises(TrainingError, match="action_queries"):
        to_published("action_queries")


def test_a_missing_a_strange_and_a_misshapen_tensor_are_named():
    prefix = "vision_backbone.featurizer."
    model = {f"{prefix}blocks.0.norm1.bias": (4,), "projector.fc1.bias": (8,)}
    checkpoint = {
        f"{prefix}blocks.0.norm1.bias": (5,),
        f"{prefix}blocks.1.norm1.bias": (4,),
        "language_model.surplus": (1,),
    }
    assert compare_tensors(model, checkpoint) == {
        "missing_keys": ["projector.fc1.bias"],
        "unexpected_keys": ["language_model.surplus"],
        "mismatched_shapes": [
            f"{prefix}blocks.0.norm1.bias: (5,) in the checkpoint, (4,) in the model"
        ],
    }


def rewrite_shard(folder: Path, change) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()
    merged = read_all(folder)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    save_file(merged, folder / "model.safetensors", {"format": "pt"})


def test_one_file_without_an_index_loads(copy):
    rewrite_shard(copy, lambda tensors: None)
    assert load_openvla(copy).model.llm_width == layout.HIDDEN


def test_a_checkpoint_without_its_vocabulary_output_is_refused(copy):
    rewrite_shard(copy, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    with pytest.raises(TrainingError, match=r"missing keys such as language_model\.lm_head"):
        load_openvla(copy)


def test_a_checkpoint_with_a_tensor_of_its_own_is_refused(copy):
    rewrite_shard(copy, lambda t: t.update({"value_head.weight": torch.zeros(1)}))
    with pytest.raises(TrainingError, match=r"unexpected keys such as value_head"):
        load_openvla(copy)


def test_a_truncated_shard_is_named(copy):
    shard = copy / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match="model-00002-of-00003"):
        load_openvla(copy)


def test_an_index_that_lies_is_refused(copy):
    path = copy / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["projector.fc1.bias"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="index of the checkpoint differs"):
        load_openvla(copy)


@pytest.mark.parametrize(
    "index",
    [
        *({}, {"weight_map": {}}, {"weight_map": ["model-00001-of-00003.safetensors"]}),
        *({"weight_map": {"a": 1}}, {"weight_map": {"a": "../a.safetensors"}}),
    ],
)
def test_an_index_that_names_no_files_beside_it_is_refused(copy, index):
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="names no files beside it"):
        load_openvla(copy)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"timm_model_ids": ["vit_huge", "vit_so400m_patch14_siglip_224"]}, "vit_huge"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "quick_gelu"),
        ({"text_config": {"model_type": "mistral", "vocab_size": 9}}, "mistral"),
        ({"text_config": {**layout.config_json()["text_config"], "rope_scaling": 2}}, "rope"),
    ],
)
def test_unsupported_configurations_name_what_they_ask_for(changes, named):
    with pytest.raises(ConfigurationError, match=named):
        openvla_config({**layout.config_json(), **changes})


def test_another_models_configuration_is_refused():
    with pytest.raises(ConfigurationError, match="timm_model_ids"):
        openvla_config({"model_type": "llama"})


def test_several_data_sets_need_a_name_before_there_is_a_processor(folder):
    assert load_openvla(folder).processor is None
    with pytest.raises(ConfigurationError, match="bridge_tiny, still_tiny"):
        read_statistics(layout.NORM_STATS, "bridge_orig")


def test_letterboxed_checkpoints_are_refused(copy):
    document = {**layout.preprocessor_json(), "image_resize_strategy": "letterbox"}
    (copy / "preprocessor_config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="letterbox"):
        load_openvla(copy, unnorm_key="bridge_tiny")


def test_an_existing_output_is_left_alone(folder, copy):
    opened = load_openvla(folder)
    with pytest.raises(ConfigurationError, match="exists already"):
        save_openvla(opened.model, opened, copy)
    assert sorted(p.name for p in copy.iterdir()) == sorted(p.name for p in folder.iterdir())


def test_a_model_that_diverged_is_not_written(folder, tmp_path):
    opened = load_openvla(folder)
    with torch.no_grad():
        opened.model.projector.fc1.bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"projector\.fc1\.bias is not finite"):
        save_openvla(opened.model, opened, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_apart_needs_an_adapter(folder, tmp_path):
    opened = load_openvla(folder)
    with pytest.raises(TrainingError, match="no LoRA"):
        save_openvla(opened.model, opened, tmp_path / "out", lora="apart")


def test_a_path_that_is_none_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ConfigurationError, match="not found"):
        find_folder(tmp_path / "absent")


def test_a_repository_that_cannot_be_reached_says_how_to_fetch_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="hf download nobody/nothing"):
        find_folder("nobody/nothing")
