"""What a cache gives is what the network would have given; it is computed once a data set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import make_parts, needs_teacher

from training import setup_run
from training.alignment import compute_targets
from training.data.features import FeatureStore
from training.data.tokenizer import BOS, PAD, build_word_tokenizer
from training.recipes import find_recipe
from training.settings import override
from training.setup_run import RunParts, _name_look, set_up
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer

HALF = 2.0**-11  # float16's rounding, relative


@pytest.fixture(scope="module")
def fp32(tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunParts:
    return make_parts(tabletop_data, "precision=fp32", cache=tmp_path_factory.mktemp("fp32"))


@needs_teacher
def test_cached_features_are_the_networks_own(fp32: RunParts) -> None:
    rows = fp32.data.indices("train")[[3, 0, 17, 3]]
    batch, student = fp32.data.batch(rows), fp32.student_features
    assert student is not None and fp32.teacher_features is not None
    assert fp32.objective.aligner is not None
    model = fp32.objective.model
    with torch.no_grad():
        looked = model.encode_images(batch["pixel_values"])
    taught = compute_targets(fp32.teacher, fp32.data.images(rows), model.grid)
    for store, online in ((student, looked), (fp32.teacher_features, taught)):
        cached = store.rows(rows)
        assert cached.dtype == torch.float32 and cached.shape == online.shape
        torch.testing.assert_close(cached, online, rtol=2 * HALF, atol=2e-4)
        assert torch.equal(cached[0], cached[3]) and not torch.equal(cached[0], cached[1])


@needs_teacher
def test_caches_are_filled_where_the_rank_computes(
    tabletop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A "meta" device stands in for the GPU: what is computed there has no values to keep."""
    looked, teachers = list[torch.Tensor](), list[Any]()

    class Store(FeatureStore):
        def __init__(self, data: Any, key: str, compute: Any, *args: Any, **options: Any) -> None:
            looked.append(compute(np.arange(2)))

    monkeypatch.setattr(setup_run, "FeatureStore", Store)

    def keep(data: Any, teacher: Any, *_: Any, **options: Any) -> None:
        teachers.append(teacher)

    monkeypatch.setattr(setup_run, "open_teacher_store", keep)
    config = find_recipe("debug_cpu")
    parts = set_up(config, [tabletop_data], tmp_path, progress=False, device="meta")
    assert [features.device.type for features in looked] == ["meta"]
    assert [teacher._device.type for teacher in teachers] == ["meta"]
    assert {p.device.type for p in parts.objective.parameters()} == {"cpu"}


@needs_teacher
def test_a_step_on_cached_features_is_the_step_on_pictures(
    fp32: RunParts, tabletop_data: Path
) -> None:
    online = make_parts(tabletop_data, "precision=fp32", "data.cache=false")
    assert online.student_features is None and online.teacher_features is None
    rows = fp32.data.indices("train")[:6]
    stored = fp32.batch(rows, frozen_vision=True)
    computed = online.batch(rows, frozen_vision=True)
    assert "pixel_values" not in stored and "vision_features" not in computed
    losses = [parts.objective(batch) for parts, batch in ((fp32, stored), (online, computed))]
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-3)
    for name, value in losses[0][1].items():
        assert value.item() == pytest.approx(losses[1][1][name].item(), rel=2e-3, abs=1e-4), name


@needs_teacher
def test_bf16_features_are_near_and_kept_apart(fp32: RunParts, tabletop_data: Path) -> None:
    cache = Path(fp32.teacher_features._parts[0].filename).parent  # type: ignore[union-attr]
    before = set(cache.iterdir())
    half = make_parts(tabletop_data, cache=cache)
    assert len(set(cache.iterdir()) - before) == 2  # the frames are shared, the features are not
    rows = fp32.data.indices("val")
    for one, other in (
        (half.student_features, fp32.student_features),
        (half.teacher_features, fp32.teacher_features),
    ):
        assert one is not None and other is not None
        similar = torch.cosine_similarity(one.rows(rows), other.rows(rows), dim=-1)
        assert similar.min() > 0.99
        assert not torch.equal(one.rows(rows), other.rows(rows))


# -- words ------------------------------------------------------------------------------------
WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=5), min_size=1, max_size=6)


@given(WORDS, st.randoms(use_true_random=False))
def test_the_same_words_give_the_same_tokenizer(words: list[str], random: object) -> None:
    content = build_word_tokenizer([" ".join(words)])
    shuffled = sorted(words, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert build_word_tokenizer([*(w.upper() for w in shuffled), words[0]]) == content
    tokenizer = PromptTokenizer(
        content, PromptTemplate("{instruction}"), 16, bos_token=BOS, pad_token=PAD
    )
    ids, mask = tokenizer.encode(" ".join(words))
    count = len(words)
    assert tokenizer.vocabulary_size == 3 + len(set(words))
    assert list(mask) == [1] * (1 + count) + [0] * (15 - count)
    assert ids[0] == 1 and set(ids[1 + count :]) <= {0} and ids[1 : 1 + count].min() >= 3
    assert len(set(ids[1 : 1 + count])) == len(set(words))
    unknown, _ = tokenizer.encode("zebra")
    assert list(unknown[:3]) == [1, 2, 0]


def test_words_of_the_data_are_known_however_they_were_typed() -> None:
    texts = ("O\u0308ffne die Tu\u0308r", "take\uff0cthen put", "\u00bd turn.", "Hold it!.")
    content = build_word_tokenizer([*texts, "no\0text"])
    tokenizer = PromptTokenizer(
        content, PromptTemplate("{instruction}"), 16, bos_token=BOS, pad_token=PAD
    )
    assert [tokenizer.unknown_words(text) for text in texts] == [()] * 4
    assert tokenizer.unknown_words("\u00f6ffne das Fenster, sofort!") == (
        "das",
        "fenster",
        "sofort",
    )


def test_words_as_written_keep_the_numbers_that_runs_learnt_by() -> None:
    content = json.loads(build_word_tokenizer(["Put it down.", "lift it!.", "stop"]))
    written = ["!.", ".", "down", "it", "lift", "put", "stop"]
    assert list(content["model"]["vocab"]) == [PAD, BOS, "<unk>", *written, "!"]


# -- names ------------------------------------------------------------------------------------
def test_what_no_weight_of_the_tower_tells_names_other_features(tabletop_data: Path) -> None:
    recipe = find_recipe("debug_cpu")
    (tower,) = recipe.model.vision
    assert tower.backbone is not None

    def name(**backbone: object) -> str:
        changed = dataclasses.replace(tower, backbone={**(tower.backbone or {}), **backbone})
        model = dataclasses.replace(recipe.model, vision=(changed,))
        config = dataclasses.replace(recipe, model=model)
        config = override(config, ["data.cache=false", "alignment.weight=0"])
        return _name_look(set_up(config, [tabletop_data], None, progress=False))

    heads = int(tower.backbone["num_attention_heads"])
    names = [name(), name(num_attention_heads=2 * heads), name(layer_norm_eps=1e-3)]
    assert len({text.split("-")[0] for text in names}) == 1  # the very same weights
    assert len(set(names)) == 3 and name() == names[0]


@needs_teacher
def test_features_of_the_embedded_tower_keep_their_name(tabletop_data: Path) -> None:
    config = override(find_recipe("tabletop_align"), ["data.cache=false", "alignment.weight=0"])
    parts = set_up(config, [tabletop_data], None, progress=False)
    assert _name_look(parts).endswith("-6cc59376")  # what caches of earlier versions are called
