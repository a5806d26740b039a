"""A pretrained language model's own tokenizer, read by the robot as the model itself reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.model import LlmConfig
from training.model.tokenizers import build_student_tokenizer
from vla_align_ros.contract.prompt import OPENVLA_PROMPT, PromptTemplate, PromptTokenizer
from vla_align_ros.errors import ConfigurationError

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["In: What action should the robot take to put the carrot on the plate?\nOut:"] * 4


def save_model(path: Path, *, vocab_size: int = 400, bos_id: int | None = None, **tokens) -> None:
    """Save a byte-level BPE tokenizer and the configuration of a model, as Qwen and Llama do."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **tokens).save_pretrained(path)
    transformers.Qwen3Config(vocab_size=vocab_size, bos_token_id=bos_id).save_pretrained(path)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """No BOS of the tokenizer's own: the model's configuration names one, as Qwen3's does."""
    path = tmp_path_factory.mktemp("qwen")
    save_model(path, bos_id=0, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return path


def build(path: Path, **options) -> PromptTokenizer:
    return build_student_tokenizer(LlmConfig(pretrained=str(path)), **options)


@given(st.text(alphabet="abcdefghij éß漢", min_size=1, max_size=20).filter(str.strip))
def test_words_become_the_ids_that_the_model_was_trained_with(qwen, words):
    own = transformers.AutoTokenizer.from_pretrained(qwen)
    ids, mask = build(qwen, max_length=256).encode(words)
    prompt = OPENVLA_PROMPT.replace("{instruction}", " ".join(words.split()))
    expected = own(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: mask.sum()].tolist() == [0, *expected]
    assert set(ids[mask.sum() :].tolist()) <= {own.pad_token_id}


def test_bos_is_the_tokenizers_own_where_it_has_one(tmp_path):
    save_model(tmp_path, bos_id=0, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer = build(tmp_path)
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.pad_token == "<|im_end|>"


def test_the_end_token_opens_where_nothing_else_does(tmp_path):
    save_model(tmp_path, eos_token="<|im_end|>")
    assert build(tmp_path).bos_token == "<|im_end|>"


def test_template_and_length_are_the_callers(qwen):
    tokenizer = build(qwen, template=PromptTemplate("Do: {instruction}"), max_length=31)
    ids, _ = tokenizer.encode("wave")
    assert len(ids) == 31 and tokenizer.template.text == "Do: {instruction}"


def test_it_survives_the_robots_own_format(qwen):
    tokenizer = build(qwen)
    back = PromptTokenizer.from_dict(tokenizer.to_dict(), tokenizer.content)
    assert back.encode("put the carrot on the plate")[0].tolist() == (
        tokenizer.encode("put the carrot on the plate")[0].tolist()
    )


def test_more_words_than_embeddings_are_refused(tmp_path):
    save_model(tmp_path, vocab_size=100, eos_token="<|im_end|>")
    with pytest.raises(ConfigurationError, match="for 100 embeddings"):
        build(tmp_path)


def test_a_model_from_scratch_has_no_tokenizer():
    with pytest.raises(ConfigurationError, match="from scratch"):
        build_student_tokenizer(LlmConfig(config={"model_type": "llama"}))


def test_an_absent_folder_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"LlmConfig\.pretrained"):
        build(tmp_path / "nothing")
