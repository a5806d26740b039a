"""The diagnosis looks at the right tokens, tells what was lost, and says it on one page."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_config
from tiny_sight import sight_processor, sight_scenes, write_pictures
from tokenizers import Tokenizer, models, pre_tokenizers

pytest.importorskip("sklearn", reason="needs the extra [diagnose]")

from training.alignment.teachers import TeacherConfig
from training.diagnose import DiagnoseRequest, diagnose
from training.diagnose.clusters import map_features, silhouette
from training.diagnose.command import _find_teachers, with_layer
from training.diagnose.page import draw_attention
from training.diagnose.tokens import choose_labels, count_known, pick_tokens, read_name_tokens
from training.run_folder import name_folders
from training.sight.attention import find_word
from training.sight.config import WatchConfig
from training.sight.draw import CAPTION_PX, GAP_PX, TILE_PX
from training.sight.features import show_pictures, stack_inputs
from training.sight.pictures import LabelledPictures, load_pictures
from vla_align_ros.cli import main
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.errors import ConfigurationError, TrainingError

CPU = torch.device("cpu")
PIECES = ("<unk>", "<s>", "<pad>", "the", "build", "cloth", "##ing")


def mixed(pictures: LabelledPictures) -> LabelledPictures:
    """The same pictures in another order, so that no label's stand together."""
    order = np.random.default_rng(3).permutation(len(pictures.images))
    return LabelledPictures(
        pictures.images[order], pictures.labels[order], pictures.names, pictures.things[order]
    )


@pytest.mark.parametrize("state", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("word", ["carrot", "plate"])
def test_the_token_of_a_word_is_the_words_own(word: str, state: bool) -> None:
    """The visual tokens push it back in the sequence; its input is the word's embedding."""
    model = build(tiny_config() if state else tiny_config(state=None)).eval()
    processor = sight_processor(state=state)
    scene = sight_scenes(processor, 1)[0]
    shown = show_pictures(
        np.stack([scene.images["front"]] * 2), "put the carrot on the plate", scene
    )
    index = find_word(processor.tokenizer, "put the carrot on the plate", word)
    assert index is not None
    inputs = stack_inputs(processor, shown, CPU)
    with torch.no_grad():
        states = pick_tokens(model, inputs, model(**inputs), index)
        own = model.llm.get_input_embeddings()(inputs["input_ids"][:, index])
    torch.testing.assert_close(states[0], own)
    assert len(states) == model.llm.config.num_hidden_layers + 1


def test_tokens_come_in_the_pictures_order_and_the_word_object_tells_nothing_at_first(
    tmp_path: Path,
) -> None:
    pictures = load_pictures(str(write_pictures(tmp_path, ("carrot", "plate"), each=3)), 3, 1)
    assert pictures is not None
    shuffled = mixed(pictures)
    model, processor = build(tiny_config()).eval(), sight_processor()
    like = sight_scenes(processor, 1)[0]

    def read(of: LabelledPictures, *, named: bool) -> torch.Tensor:
        with torch.no_grad():
            return read_name_tokens(model, processor, of, like, named=named, size=2, device=CPU)

    named, unnamed = read(shuffled, named=True), read(shuffled, named=False)
    by_thing = {int(t): named[-1, i] for i, t in enumerate(shuffled.things)}
    for number, thing in enumerate(pictures.things):
        straight = read(pictures, named=True)[-1, number]
        torch.testing.assert_close(by_thing[int(thing)], straight, atol=1e-5, rtol=1e-5)
    # Layer 0 is the word alone: two words, or the same one for all.
    assert len(torch.unique(named[0], dim=0)) == 2
    assert len(torch.unique(unnamed[0], dim=0)) == 1


def test_a_name_that_the_question_holds_too_is_read_where_it_names(tmp_path: Path) -> None:
    """In "pick up the the" the last word is the name; the one before it is there for all."""
    pictures = load_pictures(str(write_pictures(tmp_path, ("carrot", "the"), each=2)), 2, 1)
    assert pictures is not None
    model, processor = build(tiny_config()).eval(), sight_processor()
    like = sight_scenes(processor, 1)[0]
    place = find_word(processor.tokenizer, "pick up the carrot", "carrot")
    assert place is not None
    shown = show_pictures(pictures.only(["the"]).images, "pick up the the", like)
    inputs = stack_inputs(processor, shown, CPU)
    with torch.no_grad():
        named = read_name_tokens(model, processor, pictures, like, named=True, size=2, device=CPU)
        own = pick_tokens(model, inputs, model(**inputs), place)
    torch.testing.assert_close(named[:, pictures.find(["the"])], own)


def test_names_that_end_in_the_same_piece_are_told_apart() -> None:
    pieces = Tokenizer(models.WordPiece({w: i for i, w in enumerate(PIECES)}, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.add_special_tokens(["<s>", "<pad>"])
    tokenizer: Any = PromptTokenizer(pieces.to_str().encode())
    processor: Any = SimpleNamespace(tokenizer=tokenizer)
    assert count_known(processor, ["building", "clothing"]) == 2
    assert count_known(processor, ["mammal", "sea animal"]) == 1, "one unknown word, or two"
    assert count_known(processor, ["building", "mammal", "tool"]) == 2


def test_the_silhouette_tells_clusters_from_a_cloud() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    cloud = rng.normal(size=(60, 8))
    apart = cloud + 20.0 * np.eye(8)[labels]
    assert silhouette(apart, labels) > 0.8
    assert abs(silhouette(cloud, labels)) < 0.1
    assert silhouette(apart + 1e4, labels) == pytest.approx(silhouette(apart, labels), abs=1e-6)
    assert np.isnan(silhouette(np.ones((60, 8)), labels))


def test_the_plane_keeps_clusters_together_and_is_the_same_again() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = rng.normal(size=(40, 6)) + 30.0 * np.eye(6)[labels]
    plane = map_features(features)
    assert plane.shape == (40, 2)
    np.testing.assert_array_equal(plane, map_features(features))
    centres = np.stack([plane[labels == label].mean(0) for label in (0, 1)])
    spread = max(float(plane[labels == label].std()) for label in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


@pytest.mark.parametrize("labels", [("disc",), ("disc", "moon")], ids=["one", "unknown"])
def test_labels_that_cannot_be_compared_are_refused(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    pictures = load_pictures(str(write_pictures(tmp_path)), 6, 1)
    assert pictures is not None
    with pytest.raises(ConfigurationError, match="disc"):
        choose_labels(pictures, labels, 4)


@pytest.mark.parametrize(
    ("labels", "count", "things"),
    [((), 1, 6), ((), 0, 6), (("disc", "disc"), 4, 6), ((), 4, 1)],
    ids=["one label", "none", "the same twice", "one picture each"],
)
def test_what_has_no_silhouette_is_refused_before_any_network_runs(
    tmp_path: Path, labels: tuple[str, ...], count: int, things: int
) -> None:
    pictures = load_pictures(str(write_pictures(tmp_path)), things, 1)
    assert pictures is not None
    with pytest.raises(ConfigurationError, match="Labels cannot be compared"):
        choose_labels(pictures, labels, count)


def test_runs_are_named_as_shortly_as_they_differ(tmp_path: Path) -> None:
    folders = [tmp_path / "a/run", tmp_path / "b/run"]
    assert name_folders(folders[:1]) == ["run"]
    assert name_folders(folders) == ["a/run", "b/run"]
    with pytest.raises(ConfigurationError, match="twice"):
        name_folders([folders[0], folders[0]])


def test_each_networks_attention_lies_over_what_it_saw() -> None:
    """Runs with and without augmentation crop differently; a light rim only one of them sees."""
    whole, middle = sight_processor(), sight_processor()
    middle.image_transform = dataclasses.replace(middle.image_transform, crop=0.2)
    (scene,) = sight_scenes(whole, 1)
    picture = np.full_like(scene.images["front"], 255)
    height, width = (side // 4 for side in picture.shape[:2])
    picture[height:-height, width:-width] = 0
    scene = dataclasses.replace(scene, images={"front": picture})
    findings: Any = [
        SimpleNamespace(run=run, when="after", attention=np.ones((1, 16), np.float32))
        for run in ("whole", "middle")
    ]
    sheet = draw_attention({"whole": whole, "middle": middle}, [scene], findings)
    tiles = sheet[GAP_PX + CAPTION_PX :][:TILE_PX]
    first, over_whole, over_middle = (
        tiles[:, GAP_PX + n * (TILE_PX + GAP_PX) :][:, :TILE_PX].astype(int) for n in range(3)
    )
    assert np.ptp(first) > 250 and np.ptp(over_whole[..., 0]) > 90
    assert np.ptp(over_middle[..., 0]) == 0


@pytest.fixture(scope="module")
def result(short: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two runs: one as it was trained, one whose network no longer looks at its picture."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("diagnose")
    blind = root / "blind"
    shutil.copytree(short, blind, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    path = blind / "model.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for name, value in weights.items():
        if name.startswith("projector."):
            weights[name] = torch.zeros_like(value)
    save_file(weights, path, metadata=metadata)
    pictures = write_pictures(root / "pictures", ("disc", "box", "tree"), each=5)
    found = diagnose(
        DiagnoseRequest(
            [short, blind],
            root / "out",
            pictures=str(pictures),
            labels=("disc", "box"),
            scenes=4,
            drawn=2,
            progress=False,
        )
    )
    return {"found": found, "out": root / "out", "short": short, "pictures": pictures}


def test_a_blinded_network_shows_in_every_figure(result: dict[str, Any], short: Path) -> None:
    networks = {(n["run"], n["when"]): n for n in result["found"]["networks"]}
    names = [run["name"] for run in result["found"]["runs"]]
    assert set(networks) == {(name, when) for name in names for when in ("before", "after")}
    seeing, blind = networks[short.name, "after"], networks["blind", "after"]
    last = max(place for place in seeing["probe"] if place.startswith("layer_"))
    assert blind["probe"]["encoder"] == seeing["probe"]["encoder"], "the towers are the same"
    assert blind["probe"][last]["accuracy"] <= blind["probe"][last]["chance"] + 1e-9
    assert blind["silhouettes"]["the word object"][last] is None, "no picture reached the words"
    assert seeing["silhouettes"]["the word object"][last] is not None
    assert seeing["cka_before"][last]["scenes"] > 0.5
    assert blind["cka_before"][last]["scenes"] is None or blind["cka_before"][last]["scenes"] < 0.5
    assert networks[short.name, "before"]["cka_before"] == {}
    assert set(seeing["cka_teacher"]) == set(seeing["probe"])


def test_the_page_stands_alone_and_explains_itself(result: dict[str, Any]) -> None:
    page = (result["out"] / "diagnosis.html").read_text()
    assert not re.search(r'<script|(?:src|href)="(?!data:)', page)
    for words in ("Where the words look", "linear classifier", "the sight moved", "stay apart"):
        assert words in page
    assert page.count('<svg viewBox="0 0 300 300"') >= 5, "a plane a network"
    stored = json.loads((result["out"] / "diagnosis.json").read_text())
    assert stored == result["found"]
    assert (result["out"] / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_an_unfinished_run(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(result["short"], unfinished)
    (unfinished / "model.safetensors").unlink()
    words = [str(unfinished), "--out", str(tmp_path / "out"), "--scenes", "4", "--drawn", "1"]
    words += ["--after-only", "--pictures", str(result["pictures"]), "--json"]
    assert main(["diagnose", *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    finished = result["found"]["networks"][1]
    assert [n["when"] for n in told["networks"]] == ["after"]
    assert (
        told["networks"][0]["probe"]["encoder"]["correct"]
        == finished["probe"]["encoder"]["correct"]
    )


def test_what_is_no_run_is_refused(tmp_path: Path, result: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"no config\.json"):
        diagnose(DiagnoseRequest([tmp_path], tmp_path / "out"))
    bare = tmp_path / "bare"
    shutil.copytree(
        result["short"], bare, ignore=shutil.ignore_patterns("checkpoints", "model.safetensors")
    )
    with pytest.raises(TrainingError, match="no weights yet"):
        diagnose(
            DiagnoseRequest(
                [bare], tmp_path / "out", scenes=4, before=False, pictures=str(result["pictures"])
            )
        )


def test_too_few_pictures_are_refused_before_any_network_runs(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("a network was loaded")

    monkeypatch.setattr("training.diagnose.command.load_networks", load)
    pictures = str(write_pictures(tmp_path / "few", each=2))
    with pytest.raises(TrainingError, match="Too few pictures to probe"):
        diagnose(
            DiagnoseRequest([result["short"]], tmp_path / "out", pictures=pictures, progress=False)
        )


@pytest.mark.parametrize("depth", [1, 2, 7, 11, 24, 31, 32])
@pytest.mark.parametrize("own", [(), (0,)])
def test_the_mapped_layer_is_looked_at_whatever_the_depth(depth: int, own: tuple[int, ...]) -> None:
    layers = with_layer(WatchConfig(layers=own), depth, (depth // 2,)).layers
    assert depth // 2 in layers and set(own) <= set(layers)
    assert list(layers) == sorted(set(layers)) and layers[-1] <= depth


def test_each_run_is_held_against_its_own_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same teacher is opened once; who has none is held against the first."""
    opened: list[str] = []

    def open_teacher(config: Any) -> Any:
        opened.append(config.teacher.name)
        return config.teacher.name

    def run(name: str, weight: float) -> Any:
        teacher, alignment = TeacherConfig(name), SimpleNamespace(weight=weight)
        config = SimpleNamespace(teacher=teacher, alignment=alignment, precision="bf16")
        return SimpleNamespace(config=config)

    monkeypatch.setattr("training.diagnose.command.find_teacher", open_teacher)
    runs = {
        "default": run("embedded", 0.0),
        "align": run("embedded", 0.2),
        "again": run("embedded", 0.2),
        "lite": run("efficientnet_lite0", 0.2),
    }
    assert _find_teachers(runs) == {
        "default": "embedded",
        "align": "embedded",
        "again": "embedded",
        "lite": "efficientnet_lite0",
    }
    assert opened == ["embedded", "efficientnet_lite0"]
    assert _find_teachers({"default": run("embedded", 0.0)}) == {}
