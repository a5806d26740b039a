"""OpenVLA's published implementation, run in its own environment, and ours say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import openvla_layout as layout

from training.model.openvla import OpenVlaCheckpoint, build_openvla_processor, load_openvla
from training.model.timm_vit import TimmVit, TimmVitConfig, resample_positions
from vla_align_ros.contract.processor import Observation

SAMPLES = range(len(layout.SIZES))
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "openvla_tiny.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openvla") / "tiny"
    layout.write_folder(path, json.loads(str(golden["shapes"])))
    return path


@pytest.fixture(scope="module")
def opened(folder) -> OpenVlaCheckpoint:
    return load_openvla(folder, dtype=torch.float32, unnorm_key="bridge_tiny")


def observe(index: int) -> Observation:
    picture = layout.draw_picture(index)
    return Observation({"front": picture}, None, layout.INSTRUCTIONS[index], stamp_s=0.0)


def prepare(opened: OpenVlaCheckpoint, index: int) -> dict[str, torch.Tensor]:
    inputs = opened.processor.prepare(observe(index))
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def run_whole(opened: OpenVlaCheckpoint, index: int):
    """Hidden states of one sample, and logits of every real token."""
    inputs = prepare(opened, index)
    out = opened.model(**inputs)
    length = 256 + int(inputs["attention_mask"].sum())
    states = [state[0, :length] for state in out.hidden_states]
    return out, states, opened.model.llm.get_output_embeddings()(states[-1])


@pytest.mark.parametrize("index", SAMPLES)
def test_pictures_become_the_published_pixel_values(opened, golden, index):
    pixels = prepare(opened, index)["pixel_values"][0, :, ::7, ::5].numpy()
    np.testing.assert_allclose(pixels, golden[f"{index}/pixels"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", SAMPLES)
def test_prompts_become_the_published_tokens_and_the_empty_one(opened, golden, index):
    inputs = prepare(opened, index)
    ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    assert ids == [*golden[f"{index}/prompt"].tolist(), layout.EMPTY_TOKEN]


@pytest.mark.parametrize("index", SAMPLES)
@torch.no_grad()
def test_features_hidden_states_and_logits_agree(opened, golden, index):
    out, states, logits = run_whole(opened, index)
    found = {
        "features": out.vision_features[0, ::8],
        "hidden_2": states[2][::8],
        "hidden_last": states[-1][::8],
        "logits": logits[-layout.LOGIT_TOKENS :, layout.COLUMNS],
        "logsumexp": logits.logsumexp(-1),
    }
    for name, value in found.items():
        np.testing.assert_allclose(
            value.numpy(), golden[f"{index}/{name}"], **TOLERANCE, err_msg=name
        )
    assert torch.equal(logits.argmax(-1), torch.from_numpy(golden[f"{index}/best"]))


@pytest.mark.parametrize("index", SAMPLES)
def test_greedy_tokens_agree(opened, golden, index):
    tokens = opened.model.generate_tokens(**prepare(opened, index))
    assert tokens[0].tolist() == golden[f"{index}/tokens"].tolist()


def test_a_batch_of_prompts_decodes_as_each_alone(opened, golden):
    rows = [prepare(opened, index) for index in SAMPLES]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    expected = np.stack([golden[f"{index}/tokens"] for index in SAMPLES])
    assert opened.model.generate_tokens(**batch).tolist() == expected.tolist()


@torch.no_grad()
def test_a_right_padded_batch_agrees_with_the_published_one(opened, golden):
    ids, mask = torch.from_numpy(golden["batch/ids"]), torch.from_numpy(golden["batch/mask"])
    pixels = torch.cat([prepare(opened, index)["pixel_values"] for index in SAMPLES])
    out = opened.model(pixels, ids, mask)
    logits = opened.model.llm.get_output_embeddings()(out.hidden_states[-1])
    valid = torch.cat([mask[:, :1], mask.new_ones(len(ids), 256), mask[:, 1:]], dim=1).bool()
    expected = torch.from_numpy(golden["batch/logsumexp"])
    torch.testing.assert_close(logits.logsumexp(-1)[valid], expected[valid], **TOLERANCE)
    assert torch.equal(logits.argmax(-1)[valid], torch.from_numpy(golden["batch/best"])[valid])


@pytest.mark.parametrize("key", layout.NORM_STATS)
@pytest.mark.parametrize("index", SAMPLES)
def test_unnormalised_actions_agree(folder, opened, golden, index, key):
    processor = build_openvla_processor(folder, key)
    actions = opened.model.predict(**prepare(opened, index)).numpy()
    expected = golden[f"{index}/actions_{key}"]
    plain = processor.normalizers["action"].denormalize(actions[0, 0])
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    chunk = processor.decode({"actions": actions}, observe(index))
    expected = [*expected[:6], np.clip(expected[6], 0.0, 1.0)]  # a robot's gripper has these ends
    np.testing.assert_allclose(chunk.actions[0], expected, atol=1e-6)


def test_the_sample_outputs_tell_models_apart(golden):
    tokens = {tuple(golden[f"{index}/tokens"]) for index in SAMPLES}
    assert len(tokens) == len(SAMPLES)
    assert all(len(set(row)) > 3 for row in tokens)


@pytest.mark.parametrize("side", [3, 7])
def test_position_tables_are_resampled_as_timm_does(golden, side):
    config = TimmVitConfig(embed_dim=8, depth=1, num_heads=2, mlp_hidden=8, class_token=False)
    table = torch.from_numpy(layout.draw_tensor("positions", (1, 25, 8)))
    resampled = resample_positions(TimmVit(config, side, 1), table)
    np.testing.assert_allclose(resampled.numpy(), golden[f"positions/{side}"], atol=1e-6)
