"""Attention maps: the right token, the right numbers, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import TASKS
from tiny_models import build, tiny_config, tiny_inputs, tiny_llm, tokens_config
from tiny_sight import sight_processor, sight_scenes
from tokenizers import Tokenizer

from training.model import HeadConfig, PrismaticVLA
from training.sight import measure_attention, relative_maps
from training.sight.attention import LAST, find_word, sequence_positions
from training.sight.attention_figures import look_at_attention
from training.sight.features import stack_inputs
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.errors import ConfigurationError

QWEN = {"model_type": "qwen3", "head_dim": 8}
GEMMA = {"model_type": "gemma", "head_dim": 8}


def attention_of_transformers(
    model: PrismaticVLA, inputs: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], Any]:
    """What transformers itself reports on the very sequence that the network builds."""
    visual = model.project(model.encode_images(inputs["pixel_values"]))
    seq = model.lay_out(visual, inputs["input_ids"], inputs["attention_mask"], inputs.get("state"))
    with torch.no_grad():
        out = model.llm.base_model(
            inputs_embeds=seq.embeds,
            attention_mask=seq.attend,
            position_ids=seq.positions,
            use_cache=False,
            output_attentions=True,
        )
    return out.attentions, seq


def count_hooks(model: PrismaticVLA) -> int:
    return sum(len(layer.self_attn._forward_hooks) for layer in model.llm.base_model.layers)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(attention="bidirectional"),
        tiny_config(llm=tiny_llm(**QWEN)),
        tiny_config(llm=tiny_llm(**GEMMA)),
        tokens_config(),
        tiny_config(head=HeadConfig(horizon=4, insulate=True)),
        tiny_config(state=None),
    ],
    ids=["llama", "bidirectional", "qwen3", "gemma", "tokens head", "insulated", "no state"],
)
def test_weights_are_those_of_the_last_prompt_token(config: Any) -> None:
    model = build(config)
    inputs = tiny_inputs()
    if config.state is None:
        inputs.pop("state")
    attentions, seq = attention_of_transformers(model, inputs)
    maps = measure_attention(model, inputs, [1, 3])
    for level, block in enumerate((1, 3)):
        for row in range(2):
            query = int(seq.last_prompt[row])  # what the network itself uses
            expected = attentions[block - 1][row, :, query, seq.visual].mean(0)
            assert torch.allclose(maps.weights[level, row, 0], expected, atol=1e-6)
    assert (maps.share > 0).all() and (maps.share < 1).all()


def test_the_asked_word_is_the_word_and_no_visual_token() -> None:
    """Changing the embedding of one word moves its own map; that of a word before it stays."""
    model = build(tiny_config())
    inputs = tiny_inputs(batch=1)
    queries = torch.tensor([[3, 4]])
    before = measure_attention(model, inputs, [1], queries).weights[0, 0]
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, 4] = 1 + int(inputs["input_ids"][0, 4]) % 300
    after = measure_attention(model, changed, [1], queries).weights[0, 0]
    assert torch.allclose(before[0], after[0], atol=1e-7)
    assert not torch.allclose(before[1], after[1], atol=1e-5)


@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=4), inserted=st.integers(1, 300))
def test_text_tokens_stand_behind_what_is_inserted(lengths: list[int], inserted: int) -> None:
    mask = torch.zeros(len(lengths), 20, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    queries = torch.tensor([[0, 1, LAST]] * len(lengths))
    positions = sequence_positions(queries, mask, inserted).tolist()
    assert positions == [[0, 1 + inserted, length - 1 + inserted] for length in lengths]


@pytest.mark.parametrize("index", [8, 9, -2])
def test_an_index_beyond_the_prompt_is_refused(index: int) -> None:
    mask = torch.tensor([[1] * 8 + [0]])
    with pytest.raises(ConfigurationError, match=r"No such token.*got.*expected.*fix"):
        sequence_positions(torch.tensor([[index]]), mask, 9)


def test_other_attention_is_switched_for_the_call_alone() -> None:
    eager, fast = build(tiny_config()), build(tiny_config(attention_backend="sdpa"))
    fast.load_state_dict(eager.state_dict())
    inputs = tiny_inputs()
    with torch.no_grad():
        before = fast(**inputs).actions
        hooks = count_hooks(fast)  # transformers has some of its own
        maps = measure_attention(fast, inputs, [2])
        after = fast(**inputs).actions
    assert fast.llm.config._attn_implementation == "sdpa"
    assert torch.equal(before, after)
    assert torch.allclose(maps.weights, measure_attention(eager, inputs, [2]).weights, atol=1e-6)
    assert count_hooks(fast) == hooks


def test_a_failing_call_leaves_no_hook() -> None:
    model = build(tiny_config(attention_backend="sdpa"))
    measure_attention(model, tiny_inputs(), [1])
    hooks = count_hooks(model)
    with pytest.raises(ConfigurationError):
        measure_attention(model, {**tiny_inputs(), "state": None}, [1])
    assert model.llm.config._attn_implementation == "sdpa"
    assert count_hooks(model) == hooks


def test_relative_maps_compare_where_and_not_how_much() -> None:
    base = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(relative_maps(5.0 * base, base), torch.ones(3, 16))
    asked = base.clone()
    asked[:, 7] *= 4
    relative = relative_maps(asked, base)
    assert (relative.argmax(-1) == 7).all() and (relative[:, 7] > 1).all()
    nobody = torch.zeros(1, 16)
    assert torch.isfinite(relative_maps(asked[:1], nobody)).all()


def test_words_are_found_where_the_prompt_has_them() -> None:
    tokenizer = sight_processor().tokenizer
    for instruction in TASKS:
        ids, mask = tokenizer.encode(instruction)
        for word in ("carrot", "corn", "plate", "tray", "put the"):
            index = find_word(tokenizer, instruction.upper() + ".", word)
            if word not in instruction:
                assert index is None
                continue
            assert index is not None and mask[index] == 1
            assert ids[index] == tokenizer._tokenizer.token_to_id(word.split()[-1])


def test_a_word_that_stands_twice_is_found_where_it_is_asked_for() -> None:
    tokenizer = sight_processor().tokenizer
    first, last = (
        find_word(tokenizer, "put the carrot on the plate", "the", last=last)
        for last in (False, True)
    )
    assert first is not None and last == first + 3


@pytest.mark.parametrize("setting", ["padding", "truncation"])
def test_words_are_found_whatever_else_the_tokenizers_file_sets(setting: str) -> None:
    """The prompt is encoded without either; published files often hold one."""
    plain = sight_processor().tokenizer
    settings = Tokenizer.from_str(plain.content.decode())
    if setting == "padding":
        settings.enable_padding(direction="left", length=20)
    else:
        settings.enable_truncation(4)
    other = PromptTokenizer(settings.to_str().encode(), max_length=24)
    words = "put the carrot on the plate", "plate"
    assert find_word(other, *words) == find_word(plain, *words)


def test_a_part_of_a_word_or_of_the_template_is_not_found() -> None:
    tokenizer = sight_processor().tokenizer
    assert find_word(tokenizer, "put the carrot on the plate", "car") is None
    assert find_word(tokenizer, "put the carrot on the plate", "robot") is None


@pytest.mark.parametrize("cameras", [("front",), ("front", "wrist")])
def test_figures_have_a_row_a_query_and_camera(cameras: tuple[str, ...]) -> None:
    processor = sight_processor(cameras=cameras)
    scenes = sight_scenes(processor, 2)  # the first names a carrot, the second none
    model = build(tiny_config())
    device = torch.device("cpu")
    figures, shares = look_at_attention(model, processor, scenes, [1, 2], ["carrot"], device)
    heights = {name: picture.shape[0] for name, picture in figures.items()}
    rows = {name: round(height / 214) for name, height in heights.items()}
    assert rows == {"attention_0": 2 * len(cameras), "attention_1": len(cameras)}
    assert set(shares) == {f"sight/attention_visual_share_block_{b}" for b in (1, 2)}
    inputs = stack_inputs(processor, scenes, device)
    expected = measure_attention(model, inputs, [1, 2]).share[:, :, 0].mean(1)
    assert list(shares.values()) == pytest.approx(expected.tolist(), abs=1e-6)
