"""What the network sees, what it must not see, and that it comes back from disk unchanged."""

from __future__ import annotations

import json
import resource
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from tiny_models import (
    GRID,
    IMAGE_PX,
    build,
    tiny_config,
    tiny_inputs,
    tiny_llm,
    tiny_vision,
    tokens_config,
)

from training.model import GroundingConfig, PrismaticVLA, ProjectorConfig, VlaConfig, chunk_l1_loss
from vla_align_ros.errors import ConfigurationError, TrainingError


def test_output_shapes_and_hidden_states_are_those_promised():
    model = build(tiny_config(grounding=GroundingConfig(layer=2)))
    out = model(**tiny_inputs())
    assert out.actions.shape == (2, 4, 7)
    assert len(out.hidden_states) == 4
    assert out.visual == slice(1, 1 + GRID**2)
    assert out.hidden_states[0].shape == (2, 1 + GRID**2 + 1 + 8 + 4, 32)
    assert out.grounding.shape == (2, 2, GRID**2)
    assert out.vision_features.shape == (2, GRID**2, 24)


def test_visual_tokens_follow_bos_and_hold_the_projected_features():
    model = build(tiny_config())
    out = model(**tiny_inputs())
    expected = model.projector(out.vision_features)
    torch.testing.assert_close(out.hidden_states[0][:, out.visual], expected)
    bos = model.llm.get_input_embeddings()(tiny_inputs()["input_ids"][:, 0])
    torch.testing.assert_close(out.hidden_states[0][:, 0], bos)


@pytest.mark.parametrize("attention", ["causal_prefix", "bidirectional"])
def test_right_padding_changes_no_action(attention):
    model = build(tiny_config(attention=attention))
    inputs = tiny_inputs()
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=7)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 5))
    torch.testing.assert_close(
        model(**inputs).actions, model(**padded).actions, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("attention", "sees_words"), [("causal_prefix", False), ("bidirectional", True)]
)
def test_visual_tokens_see_the_instruction_only_under_bidirectional_attention(
    attention, sees_words
):
    model = build(tiny_config(attention=attention))
    inputs = tiny_inputs()
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, 3] = 5
    a, b = model(**inputs), model(**other)
    moved = (a.hidden_states[-1][:, a.visual] - b.hidden_states[-1][:, b.visual]).abs().max()
    assert bool(moved > 1e-6) is sees_words
    assert (a.actions - b.actions).abs().max() > 1e-6


@pytest.mark.parametrize("changed", ["pixel_values", "state"])
def test_actions_depend_on_picture_and_state(changed):
    model = build(tiny_config())
    inputs = tiny_inputs()
    a = model(**inputs).actions
    b = model(
        **{**inputs, changed: inputs[changed] + 1.0 * torch.randn_like(inputs[changed])}
    ).actions
    assert (a - b).abs().amin(dim=(1, 2)).shape == (2,) and (a - b).abs().max() > 1e-5


def test_action_queries_see_later_queries_and_the_prefix_does_not():
    model = build(tiny_config())
    inputs = tiny_inputs()
    before = model(**inputs)
    with torch.no_grad():
        model.action_queries[:, -1] += 1.0
    after = model(**inputs)
    assert (before.actions[:, 0] - after.actions[:, 0]).abs().max() > 1e-6
    torch.testing.assert_close(before.hidden_states[-1][:, :-4], after.hidden_states[-1][:, :-4])


def test_eager_and_sdpa_agree():
    eager = build(tiny_config())
    sdpa = PrismaticVLA(tiny_config(attention_backend="sdpa")).eval()
    sdpa.load_state_dict(eager.state_dict())
    inputs = tiny_inputs(batch=4)
    torch.testing.assert_close(
        eager(**inputs).actions, sdpa(**inputs).actions, atol=1e-5, rtol=1e-4
    )


def test_cached_features_give_the_same_actions_as_pixels():
    model = build(tiny_config())
    inputs = tiny_inputs()
    features = model.encode_images(inputs.pop("pixel_values"))
    direct = model(**tiny_inputs()).actions
    assert torch.equal(model.forward_from_features(features, **inputs).actions, direct)


def test_two_towers_split_six_channels_and_concatenate_features():
    model = build(tiny_config(vision=(tiny_vision(24), tiny_vision(16))))
    inputs = tiny_inputs(channels=6)
    out = model(**inputs)
    assert out.vision_features.shape == (2, GRID**2, 40)
    torch.testing.assert_close(
        out.vision_features[..., 24:], model.vision[1](inputs["pixel_values"][:, 3:])
    )
    assert model.projector.fc1.out_features == 4 * 40 and model.projector.fc3 is not None


def test_two_cameras_give_their_tokens_one_after_the_other():
    model = build(tiny_config(projector=ProjectorConfig(position_embedding=True)))
    inputs = tiny_inputs()
    first = inputs["pixel_values"]
    inputs["pixel_values"] = torch.stack([first, first.flip(-1)], dim=1)
    out = model(**inputs)
    assert out.visual == slice(1, 1 + 2 * GRID**2)
    torch.testing.assert_close(
        out.vision_features[:, GRID**2 :], model.encode_images(first.flip(-1))
    )


def test_selected_layers_count_as_hugging_face_counts_them():
    model = build(tiny_config(vision=(tiny_vision(select_layers=(1, -2, -1)),)))
    tower = model.vision[0]
    pixels = tiny_inputs()["pixel_values"]
    backbone = build(tiny_config(vision=(tiny_vision(final_norm=True),))).vision[0].backbone
    backbone.load_state_dict(tower.backbone.state_dict(), strict=False)
    states = backbone(pixels, output_hidden_states=True).hidden_states
    expected = torch.cat([states[1][:, 1:], states[1][:, 1:], states[2][:, 1:]], dim=-1)
    torch.testing.assert_close(tower(pixels), expected)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(grounding=GroundingConfig(layer=1), attention="bidirectional"),
        tokens_config(llm=tiny_llm(tie_word_embeddings=True)),
        tiny_config(vision=(tiny_vision(24, layers=1), tiny_vision(16))),
    ],
    ids=["chunk", "tokens-tied", "two-towers"],
)
def test_a_saved_model_comes_back_bit_for_bit(config, tmp_path):
    model = build(config)
    model.save(tmp_path)
    state = torch.random.get_rng_state()
    loaded = PrismaticVLA.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    inputs = tiny_inputs(channels=3 * len(config.vision))
    if config.state is None:
        del inputs["state"]
    assert torch.equal(model.predict(**inputs), loaded.predict(**inputs))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_loading_refuses_weights_that_do_not_fit(tmp_path):
    build(tiny_config()).save(tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    described["head"]["horizon"] = 5
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(TrainingError, match="do not fit"):
        PrismaticVLA.load(tmp_path)


def test_weights_that_find_no_room_are_an_error_of_the_system_with_their_path(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, limits[1]))  # as a full disk, to a file
    try:
        with pytest.raises(OSError, match=r"File too large: .*model\.safetensors"):
            build(tiny_config()).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in tmp_path.iterdir() if "safetensors" in path.name]


def test_loading_refuses_an_absent_run(tmp_path):
    with pytest.raises(TrainingError, match=r"model\.json"):
        PrismaticVLA.load(tmp_path)


def test_config_survives_json_and_refuses_unknown_keys():
    config = tiny_config(grounding=GroundingConfig(layer=1))
    data = json.loads(json.dumps(config.to_dict()))
    assert VlaConfig.from_dict(data) == config
    with pytest.raises(ConfigurationError):
        VlaConfig.from_dict({**data, "surprise": 1})


def test_every_trainable_parameter_gets_a_gradient():
    model = build(
        tiny_config(
            grounding=GroundingConfig(layer=3), projector=ProjectorConfig(position_embedding=True)
        )
    )
    out = model.train()(**tiny_inputs())
    (
        chunk_l1_loss(out.actions, torch.ones_like(out.actions)) + out.grounding.square().mean()
    ).backward()
    missing = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    # A key's bias shifts a row's logits alike, which softmax ignores: no gradient but rounding.
    assert [name for name in missing if not name.endswith(("k_proj.bias", "key.bias"))] == []


def test_freezing_a_group_stops_exactly_its_gradients():
    model = build(tiny_config())
    model.freeze(["vision", "llm"])
    model(**tiny_inputs()).actions.sum().backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {
        "projector",
        "state_encoder",
        "action_head",
        "action_queries",
    }
    model.freeze([])
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigurationError, match="visoin"):
        model.freeze(["visoin"])


def test_bf16_autocast_keeps_float32_weights_and_trains():
    model = build(tiny_config()).train()
    inputs = tiny_inputs()
    exact = model(**inputs).actions
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs)
        loss = chunk_l1_loss(out.actions, torch.zeros_like(out.actions))
    loss.backward()
    assert torch.isfinite(loss)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(out.actions.float(), exact, atol=0.05, rtol=0.05)


def test_l1_loss_leaves_padded_steps_out_and_weights_dimensions():
    actions, target = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    target[:, :, 1] = 3.0
    pad = torch.tensor([[False, False, True], [False, True, True]])
    target[pad] = 1e6
    assert chunk_l1_loss(actions, target, pad).item() == pytest.approx(2.0)
    assert chunk_l1_loss(actions, target, pad, torch.tensor([1.0, 0.0])).item() == pytest.approx(
        1.0
    )
    assert chunk_l1_loss(actions, target, torch.ones(2, 3, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": (tiny_vision(), tiny_vision(), tiny_vision())}, "one or two"),
        ({"attention": "sideways"}, "sideways"),
        ({"attention_backend": "flash"}, "flash"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        tiny_config(**change)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (replace(tiny_vision(), image_size=40), "multiple of the patch"),
        (tiny_vision(select_layers=(3,)), "hidden state 3"),
    ],
)
def test_impossible_towers_are_refused(vision, message):
    with pytest.raises(ConfigurationError, match=message):
        build(tiny_config(vision=(vision,)))


def test_wrong_channels_and_missing_state_are_refused():
    model = build(tiny_config())
    with pytest.raises(ConfigurationError, match="6 channels"):
        model(**tiny_inputs(channels=6))
    inputs = tiny_inputs()
    del inputs["state"]
    with pytest.raises(ConfigurationError, match="state absent"):
        model(**inputs)


@pytest.mark.parametrize("model_type", ["qwen3", "gpt_neox"])
def test_other_language_models_fit(model_type):
    values = {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 320,
        "max_position_embeddings": 128,
    }
    if model_type == "qwen3":
        values |= {"num_key_value_heads": 2, "head_dim": 8}
    model = build(tiny_config(llm=replace(tiny_llm(), config=values)))
    assert torch.isfinite(model(**tiny_inputs()).actions).all()


def test_a_siglip_tower_fits_beside_dinov2():
    siglip = replace(
        tiny_vision(),
        backbone={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 14,
            "image_size": IMAGE_PX,
        },
        select_layers=(-2,),
    )
    model = build(tiny_config(vision=(tiny_vision(), siglip)))
    assert model(**tiny_inputs(channels=6)).vision_features.shape == (2, GRID**2, 40)
