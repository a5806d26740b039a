"""Co-training on questions: the right loss, every sample once a pass, and words that are learnt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import IMAGE_PX, build, tiny_config, tiny_llm

from training.data.tokenizer import build_word_tokenizer
from training.model import StateConfig
from training.parallel import split_batch
from training.vqa import (
    IGNORED,
    VqaBatches,
    VqaConfig,
    fingerprint_samples,
    read_samples,
    vqa_loss,
    with_vocabulary_head,
)
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec
from vla_align_ros.errors import ConfigurationError, DataError

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "grey": (90, 90, 90)}


@pytest.fixture(scope="module")
def processor() -> Processor:
    texts = ["In: which colour is this ? Out: red green blue grey bright dark", "</s>"]
    words = build_word_tokenizer(texts)
    tokenizer = PromptTokenizer(words, PromptTemplate("{instruction}"), 8)
    rng = np.random.default_rng(0)
    spec = PolicySpec(
        cameras=(CameraSpec("front", 50, 60),), state=None, action=ActionSpec("base_link", 5.0, 4)
    )
    statistics = {"action": Normalizer("quantile", compute_statistics(rng.normal(size=(99, 7))))}
    return Processor(spec, ImageTransform(IMAGE_PX), statistics, tokenizer)


def write_samples(folder: Path, count: int = 4) -> Path:
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number in range(count):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (50, 40), COLOURS[name]).save(folder / "pictures" / f"{number}.png")
        line = {"image": f"pictures/{number}.png", "question": "Which colour is this ?"}
        lines.append(json.dumps({**line, "answer": name}))
    half = count // 2
    (folder / "a.jsonl").write_text("\n".join(lines[:half]) + "\n\n")
    (folder / "b.jsonl").write_text("\n".join(lines[half:]) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_samples(tmp_path_factory.mktemp("vqa"), 10)


def small(folder: Path, **overrides) -> VqaConfig:
    values = {"batch_size": 4, "question_tokens": 12, "answer_tokens": 4, "end_token": "<pad>"}
    return VqaConfig(str(folder), **{**values, **overrides})


def speaking_model(**overrides):
    return build(with_vocabulary_head(tiny_config(llm=tiny_llm(), **overrides)))


def test_a_batch_holds_picture_question_and_answer(processor, folder):
    batches = VqaBatches(small(folder), processor, seed=1)
    batch = batches.next()
    row = batches.samples[batches._index(0)]
    picture = processor.image_transform(np.array(Image.open(row.image).convert("RGB")))
    np.testing.assert_array_equal(batch["pixel_values"][0].numpy(), picture)
    from tokenizers import Tokenizer

    words = Tokenizer.from_buffer(processor.tokenizer.content)
    ids, mask = batch["input_ids"][0], batch["attention_mask"][0].bool()
    assert words.decode(ids[mask].tolist(), skip_special_tokens=False).startswith("<s> in")
    answer = batch["labels"][0][batch["labels"][0] != IGNORED].tolist()
    assert words.decode(answer, skip_special_tokens=False) == f"{row.answer} <pad>"
    assert torch.equal(batch["answer_tokens"][0][:2], batch["labels"][0][:2])


@torch.no_grad()
def test_the_loss_is_the_language_models_own_next_token_loss(processor, folder):
    model = speaking_model(state=StateConfig(7))  # answering needs no state
    batch = VqaBatches(small(folder), processor).next()
    losses = []
    for row in range(4):  # row by row, unpadded, through transformers' labels
        count = int(batch["attention_mask"][row].sum())
        labels = batch["labels"][row][batch["labels"][row] != IGNORED]
        words = torch.cat([batch["input_ids"][row, :count], labels])
        embeds = model.llm.get_input_embeddings()(words)[None]
        visual = model.projector(model.encode_images(batch["pixel_values"][row : row + 1]))
        embeds = torch.cat([embeds[:, :1], visual, embeds[:, 1:]], dim=1)
        target = torch.full(embeds.shape[:2], IGNORED)
        target[0, -len(labels) :] = labels
        losses.append(model.llm(inputs_embeds=embeds, labels=target).loss)
    torch.testing.assert_close(vqa_loss(model, batch), torch.stack(losses).mean())


@torch.no_grad()
def test_pieces_of_answers_of_any_length_add_up_to_the_batch(processor, folder):
    model = speaking_model()
    batch = VqaBatches(small(folder), processor).next()
    for row, length in enumerate((1, 4, 2, 3)):
        batch["labels"][row] = torch.where(torch.arange(4) < length, row + 3, IGNORED)
    for pieces in (2, 4):
        parts = [vqa_loss(model, piece) for piece in split_batch(batch, pieces)]
        torch.testing.assert_close(torch.stack(parts).mean(), vqa_loss(model, batch))


def test_training_on_questions_teaches_the_answers_and_no_action_head(processor, tmp_path):
    model = speaking_model(state=None).train()
    config = small(write_samples(tmp_path / "four"))
    batches = VqaBatches(config, processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = vqa_loss(model, batches.next()).item()
    for _ in range(120):
        loss = vqa_loss(model, batches.next())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 4.0 and loss.item() < 0.1
    assert all(p.grad is None for p in model.action_head.parameters())
    assert model.action_queries.grad is None


@given(st.sampled_from([1, 2, 4]), st.integers(0, 5), st.integers(0, 3))
def test_ranks_share_the_same_order_and_resuming_repeats_nothing(
    processor, folder, world, before, seed
):
    config = small(folder)
    alone = VqaBatches(config, processor, seed=seed)
    expected = [alone._index(i) for i in range(40)]
    assert sorted(expected[:10]) == list(range(10)) == sorted(expected[10:20])
    ranks = [VqaBatches(config, processor, seed=seed, rank=r, world=world) for r in range(world)]
    drawn: list[int] = []
    for step in range(8):
        if step == before:  # stopped, and resumed on another number of processes
            state = ranks[0].state_dict()
            assert state == {"samples": 4 * step}
            world = 1 if world > 1 else 2
            ranks = [
                VqaBatches(config, processor, seed=seed, rank=r, world=world) for r in range(world)
            ]
            for rank in ranks:
                rank.load_state_dict(json.loads(json.dumps(state)))
        for rank in ranks:
            rank._encode = drawn.append  # type: ignore[method-assign]
            with pytest.raises(TypeError):  # nothing to stack: only the order is asked for
                rank.next()
    assert drawn == expected[:32]


def test_long_answers_are_cut_and_long_questions_left_out_and_counted(processor, tmp_path):
    folder = write_samples(tmp_path / "vqa")
    lines = [json.loads(line) for line in (folder / "a.jsonl").read_text().split("\n") if line]
    lines[0]["question"] = "Which colour is this ? " * 9
    lines[1]["answer"] = "red green blue grey red green"
    (folder / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    batches = VqaBatches(small(folder, batch_size=3), processor)
    assert (batches.left_out, len(batches.samples)) == (1, 3)
    assert sorted((row != IGNORED).sum().item() for row in batches.next()["labels"]) == [2, 2, 4]


def test_a_text_may_hold_any_end_of_line_but_that_of_the_file(tmp_path):
    question = "one\u2028two\x85three\u2029"
    for number, end in enumerate(("\n", "\r\n")):
        samples = write_samples(tmp_path / str(number))
        line = {"image": "pictures/0.png", "question": question, "answer": "red"}
        (samples / "c.jsonl").write_bytes((json.dumps(line, ensure_ascii=False) + end).encode() * 2)
        found = [s for s in read_samples(samples) if s.where.startswith("c.jsonl")]
        assert [sample.question for sample in found] == [question] * 2


def test_the_fingerprint_is_of_words_and_pictures_and_of_no_place(tmp_path):
    one, other = (write_samples(tmp_path / name) for name in ("one", "other"))

    def fingerprint(folder):
        return fingerprint_samples(read_samples(folder), folder)

    assert fingerprint(one) == fingerprint(other)
    picture = next((other / "pictures").iterdir())
    picture.write_bytes(picture.read_bytes() + b"more")
    assert fingerprint(one) != fingerprint(other)
    one_line = (one / "a.jsonl").read_text()
    before = fingerprint(one)
    (one / "a.jsonl").write_text(one_line.replace('"answer": "', '"answer": "not ', 1))
    assert fingerprint(one) != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "a.jsonl line 1"),
        ('{"image": "x.png", "question": "?"}', "a.jsonl line 1"),
        ('{"image": "x.png", "question": " ", "answer": "red"}', "a.jsonl line 1"),
        ('{"image": "x.png", "question": "q", "answer": "red"}', "Pictures are missing"),
        ("", "without a line"),
    ],
)
def test_wrong_data_is_named_by_file_and_line(processor, tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        VqaBatches(small(tmp_path), processor)


def test_a_broken_picture_is_named(processor, tmp_path):
    folder = write_samples(tmp_path / "vqa")
    for picture in (folder / "pictures").iterdir():
        picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(DataError, match=r"pictures/\d\.png \([ab]\.jsonl line"):
        VqaBatches(small(folder), processor).next()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"vqa\.batch_size"),
        ({"weight": float("nan")}, r"vqa\.weight"),
        ({"weight": 0.0}, r"vqa\.weight"),
        ({"template": "no slot"}, r"vqa\.template"),
        ({"answer_tokens": 1}, r"vqa\.answer_tokens"),
    ],
)
def test_impossible_settings_are_refused(folder, change, message):
    with pytest.raises(ConfigurationError, match=message):
        small(folder, **change)


def test_settings_that_do_not_fit_the_run_are_refused(processor, folder):
    with pytest.raises(ConfigurationError, match=r"got 4; expected a multiple of 3 process"):
        VqaBatches(small(folder), processor, world=3)
    with pytest.raises(ConfigurationError, match=r"2 process\(es\) times 4 piece"):
        VqaBatches(small(folder), processor, world=2, pieces=4)
    with pytest.raises(ConfigurationError, match="end_token"):
        VqaBatches(small(folder, end_token="<stop>"), processor)
    with pytest.raises(DataError, match="No question fits"):
        VqaBatches(small(folder, question_tokens=3), processor)


def test_a_model_that_cannot_speak_says_how_to_let_it(processor, folder):
    batch = VqaBatches(small(folder), processor).next()
    with pytest.raises(ConfigurationError, match="keep_lm_head"):
        vqa_loss(build(tiny_config(state=None)), batch)
    config = with_vocabulary_head(tiny_config())
    assert config.llm.keep_lm_head and dataclasses.replace(config, llm=tiny_llm()) == tiny_config()
