"""Instructions: the same words in any dress give the same tokens; anything odd is refused."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_policy import INSTRUCTIONS, LENGTH, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer, clean_instruction
from vla_align_ros.errors import ContractError


@pytest.mark.parametrize(
    "text",
    [
        "Put the carrot on the plate.",
        "  put\tthe  carrot\non the plate ...  ",
        "PUT THE CARROT ON THE PLATE",
        "put the carrot on the plate . .",
        "ｐｕｔ the carrot\u00a0on the plate",
        "put the carrot on the plate\n",
    ],
)
def test_case_blanks_width_and_trailing_dots_do_not_matter(text):
    assert clean_instruction(text) == "put the carrot on the plate"


@given(st.text(max_size=80))
def test_cleaning_twice_is_cleaning_once(text):
    try:
        cleaned = clean_instruction(text)
    except ContractError:
        assume(False)
    assert clean_instruction(cleaned) == cleaned
    assert cleaned == unicodedata.normalize("NFKC", cleaned)
    assert cleaned == " ".join(cleaned.split()) and not cleaned.endswith(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("...", "empty"),
        ("a" * 512, "too long: got 512"),
        ("\ufdfa" * 40, "too long"),
        ("put\0it", "control or invisible"),
        ("put\x1b[2Jit", "control or invisible"),
        ("put\u200bit", "control or invisible"),
        ("put\u202eit", "control or invisible"),
        ("put\ud800it", "control or invisible"),
        ("put\ufffdit", "bytes that are no text"),
        (None, "no text"),
    ],
)
def test_what_is_no_instruction_is_refused(text, message):
    with pytest.raises(ContractError, match=message):
        clean_instruction(text)


def test_511_characters_are_accepted():
    assert clean_instruction("a" * 511) == "a" * 511


def test_template_takes_the_words_as_they_are():
    template = PromptTemplate("do {instruction}, {instructed}")
    assert (
        template.render("Put {instruction} {0} away.")
        == "do put {instruction} {0} away, {instructed}"
    )
    expected = "In: What action should the robot take to go home?\nOut:"
    assert PromptTemplate().render("Go home") == expected


@pytest.mark.parametrize("text", ["no slot", "{instruction} {instruction}", None])
def test_a_template_without_one_slot_is_refused(text):
    with pytest.raises(ContractError, match="prompt template"):
        PromptTemplate(text)


def test_tokens_start_with_bos_and_are_padded_on_the_right():
    tokenizer = PromptTokenizer(make_tokenizer(), max_length=LENGTH)
    ids, mask = tokenizer.encode(INSTRUCTIONS[0])
    assert ids.dtype == mask.dtype == np.int64 and ids.shape == mask.shape == (LENGTH,)
    length = int(mask.sum())
    assert ids[0] == tokenizer.bos_id and tokenizer.bos_id not in ids[1:]
    assert (mask[:length] == 1).all() and (ids[length:] == tokenizer.pad_id).all()
    decoded = Tokenizer.from_buffer(make_tokenizer()).decode(ids[:length].tolist())
    assert decoded == (
        "In : What action should the robot take to put the carrot on the plate ? Out :"
    )


def test_different_instructions_have_different_tokens():
    tokenizer = PromptTokenizer(make_tokenizer(), max_length=LENGTH)
    assert (tokenizer.encode(INSTRUCTIONS[0])[0] != tokenizer.encode(INSTRUCTIONS[1])[0]).any()


def test_a_prompt_longer_than_the_model_takes_is_refused_and_not_cut():
    tokenizer = PromptTokenizer(make_tokenizer(), max_length=LENGTH)
    with pytest.raises(ContractError, match="prompt is too long"):
        tokenizer.encode("put " * 30)
    exact = PromptTokenizer(make_tokenizer(), max_length=int(tokenizer.encode("put")[1].sum()))
    assert exact.encode("put")[1].all()
    with pytest.raises(ContractError, match="prompt is too long"):
        exact.encode("put put")


@pytest.mark.parametrize("text", ["put <s> it", "<pad>", "put<PAD>it"])
def test_words_that_spell_a_special_token_are_refused(text):
    with pytest.raises(ContractError, match="spells a special token"):
        PromptTokenizer(make_tokenizer(), max_length=LENGTH).encode(text)


def test_padding_and_truncation_asked_for_in_the_file_are_overruled():
    inner = Tokenizer.from_buffer(make_tokenizer())
    inner.enable_truncation(3)
    inner.enable_padding(length=5)
    plain = PromptTokenizer(make_tokenizer(), max_length=LENGTH).encode(INSTRUCTIONS[0])
    found = PromptTokenizer(inner.to_str().encode(), max_length=LENGTH).encode(INSTRUCTIONS[0])
    np.testing.assert_array_equal(found, plain)


def test_byte_level_tokenizers_cover_every_instruction(tmp_path):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(INSTRUCTIONS, trainer)
    path = tmp_path / "tokenizer.json"
    inner.save(str(path))
    tokenizer = PromptTokenizer(
        path, max_length=200, bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    ids, mask = tokenizer.encode("schieb die Möhre 🥕 weg")
    text = inner.decode(ids[: mask.sum()].tolist())
    assert text == "In: What action should the robot take to schieb die möhre 🥕 weg?\nOut:"
    assert tokenizer.unknown_words("schieb die Möhre 🥕 weg") == ()


def break_tokenizer(**changes: object) -> bytes:
    return json.dumps({**json.loads(make_tokenizer()), **changes}).encode()


def make_plain(model) -> PromptTokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = PromptTemplate("zzz {instruction} zzz")
    return PromptTokenizer(tokenizer.to_str().encode(), template, bos_token="put", pad_token="the")


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (models.WordLevel({"put": 0, "the": 1, "?": 2}, unk_token="?"), ("zoo", "cup")),
        (models.WordPiece({"put": 0, "the": 1, "?": 2}, unk_token="?"), ("zoo", "cup")),
        (models.Unigram([("put", -1.0), ("the", -1.0), ("?", 0.0)], 2), ("zoo", "cup")),
        (models.BPE({"put": 0, "the": 1}, []), ()),
    ],
)
def test_what_becomes_the_unknown_token_is_named_but_not_what_the_template_says(model, found):
    assert make_plain(model).unknown_words("Put  the ZOO the cup the zoo.") == found


def test_a_file_that_makes_the_library_panic_is_refused_when_it_is_opened():
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(ContractError, match="no tokenizer"):
        PromptTokenizer(break_tokenizer(normalizer=charsmap))


def test_a_file_that_makes_the_library_panic_over_words_refuses_them():
    tokenizer = PromptTokenizer(
        break_tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}), max_length=LENGTH
    )
    with pytest.raises(ContractError, match="cannot be encoded"):
        tokenizer.encode(INSTRUCTIONS[0])


def test_tokenizer_comes_back_from_its_parts():
    tokenizer = PromptTokenizer(make_tokenizer(), PromptTemplate("do {instruction}"), 12)
    copy = PromptTokenizer.from_dict(tokenizer.to_dict(), tokenizer.content)
    np.testing.assert_array_equal(copy.encode("put it"), tokenizer.encode("put it"))
    assert (
        copy.to_dict() == tokenizer.to_dict() and copy.vocabulary_size == tokenizer.vocabulary_size
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": b"{}"}, "no tokenizer"),
        ({"tokenizer": b"\x80\x04pickle"}, "no tokenizer"),
        ({"tokenizer": "/nowhere/tokenizer.json"}, "cannot be read"),
        ({"max_length": 1}, "prompt length"),
        ({"max_length": 10**12}, "prompt length"),
        ({"max_length": 2.0}, "prompt length"),
        ({"bos_token": "<bos>"}, r"bos_token is not in the vocabulary: got '<bos>'; .*'<s>'"),
        ({"bos_token": "\ud800"}, "bos_token is not in the vocabulary"),
        ({"pad_token": None}, "pad_token is not in the vocabulary"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    with pytest.raises(ContractError, match=message):
        PromptTokenizer(**{"tokenizer": make_tokenizer(), **arguments})
