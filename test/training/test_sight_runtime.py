"""From a run to a bundle that tells strange scenes: fitted, exported, the same as in training."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

from hypothesis import given
from hypothesis import strategies as st

from training.commands import sight as command
from training.export.bundle import export_run
from training.export.sight_graph import (
    STRAY,
    check_sight,
    choose_attention_blocks,
    measure_stray,
)
from training.model import PrismaticVLA
from training.sight import measure_attention, relative_maps
from training.sight.familiarity import fit_familiarity, fit_gaussian
from training.sight.features import pick_features, stack_inputs
from training.strange_scenes import (
    CAPTION_PX,
    TILE_PX,
    auroc,
    auroc_interval,
    draw_scenes,
    measure_familiarity,
)
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.sight import ATTENTION, TOKENS, SightStatistics, read_sight
from vla_align_ros.errors import BundleError, ConfigurationError, ExportError
from vla_align_ros.runtime.heatmap import overlay
from vla_align_ros.runtime.sight import SightGraph, relate


@pytest.fixture(scope="module")
def fitted(short: Path, tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the short run, with statistics of its scenes."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(short, run)
    fit_familiarity(run, [tabletop_data], quantile=0.9, progress=False)
    return run


@pytest.fixture(scope="module")
def bundle(fitted: Path) -> Bundle:
    export_run(fitted, fitted.parent / "bundle")
    return Bundle.open(fitted.parent / "bundle")


def test_a_run_that_was_not_looked_at_exports_no_sight(short: Path, tmp_path: Path) -> None:
    export_run(short, tmp_path / "bundle")
    plain = Bundle.open(tmp_path / "bundle")
    assert plain.sight() is None and set(plain.manifest["graphs"]) == {"policy"}
    with pytest.raises(BundleError, match="no sight graph"):
        measure_familiarity(plain.path, 2, ["none"])


def test_the_graph_sees_what_training_sees(fitted: Path, bundle: Bundle) -> None:
    """Distance and relative attention against training's own code, on the golden scenes."""
    model, statistics = PrismaticVLA.load(fitted), read_sight(fitted / "sight.npz")
    blocks, graph = choose_attention_blocks(model), SightGraph(bundle)
    for seen in list(iterate_observations(bundle.golden(), bundle.spec))[:3]:
        neutral = Observation(seen.images, seen.state, statistics.neutral, 0.0)
        inputs = stack_inputs(bundle.processor, [seen, neutral], torch.device("cpu"))
        maps = measure_attention(model, inputs, blocks).weights.mean(0)[:, 0]
        with torch.no_grad():
            tokens = pick_features(model(**inputs), [statistics.place])[statistics.place]
        reading = graph.look(seen, attention=True)
        assert reading.distance == pytest.approx(statistics.distance(tokens[1].numpy()), rel=1e-3)
        assert reading.maps is not None
        expected = relative_maps(maps[0], maps[1]).numpy()
        np.testing.assert_allclose(reading.maps["front"].ravel(), expected, rtol=1e-2)
    graph.close()


def test_in_a_smaller_bundle_the_distances_are_as_they_were(
    fitted: Path, bundle: Bundle, tmp_path: Path
) -> None:
    result = export_run(fitted, tmp_path / "int8", "int8")
    small = Bundle.open(tmp_path / "int8")
    facts = small.manifest["provenance"]["export"]["sight"]
    assert result["ok"] and facts["base"] == "float16"
    sizes = [found.manifest["files"]["model/sight.onnx"]["bytes"] for found in (small, bundle)]
    assert sizes[0] < 0.8 * sizes[1]  # of so small a network much is no weights
    statistics = small.sight()
    assert statistics is not None
    graphs = [SightGraph(found) for found in (small, bundle)]
    for seen in iterate_observations(small.golden(), small.spec):
        one, other = (graph.look(seen, attention=False).distance for graph in graphs)
        assert abs(one - other) <= STRAY * statistics.threshold
    for graph in graphs:
        graph.close()


def test_float16_that_moves_the_distances_is_not_taken(
    fitted: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.sight_graph.STRAY", 0.0)
    export_run(fitted, tmp_path / "int8", "int8")
    manifest = Bundle.open(tmp_path / "int8").manifest
    facts = manifest["provenance"]["export"]["sight"]
    assert facts["base"] == "float32" and facts["stray_of_float16"]["distance"] > 0
    name = "model/sight.onnx"
    assert manifest["files"][name] == bundle.manifest["files"][name]


def write_overflow(path: Path, bad: float) -> Path:
    """A sight graph that adds a number that is none to what it sees."""
    import onnx
    from onnx import TensorProto, helper

    shapes = {"x": [1, 4, 3], TOKENS: [1, 4, 3], ATTENTION: [1, 4]}
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    nodes = [
        helper.make_node("Add", ["x", "bad"], [TOKENS]),
        helper.make_node("ReduceSum", [TOKENS, "axis"], [ATTENTION], keepdims=0),
    ]
    constants = [
        helper.make_tensor("bad", TensorProto.FLOAT, [], [bad]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
    ]
    graph = helper.make_graph(nodes, "g", [infos.pop("x")], list(infos.values()), constants)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sight_graph_that_answers_no_number_passes_no_proof(tmp_path: Path, bad: float) -> None:
    exact = write_overflow(tmp_path / "exact.onnx", 0.0)
    other = write_overflow(tmp_path / "other.onnx", bad)
    statistics = SightStatistics(
        *(np.zeros(3), np.eye(3), 2.0, 0.99, "look", "encoder", 9, 9),
    )
    samples = [{"x": np.full((1, 4, 3), value, np.float32)} for value in (1.0, 2.0)]
    assert measure_stray(exact, exact, statistics, samples)["distance"] == 0.0
    assert measure_stray(exact, other, statistics, samples)["distance"] > STRAY

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.sum(2)

    assert check_sight(exact, model, samples) == 0.0
    with pytest.raises(ExportError, match="something else than the model"):
        check_sight(other, model, samples)


def test_statistics_of_other_weights_are_left_out_with_a_word(fitted: Path, tmp_path: Path) -> None:
    run = shutil.copytree(fitted, tmp_path / "run")
    model = PrismaticVLA.load(run)
    with torch.no_grad():
        next(model.vision.parameters()).add_(0.01)
    model.save(run)
    said: list[str] = []
    export_run(run, tmp_path / "bundle", say=said.append)
    assert Bundle.open(tmp_path / "bundle").sight() is None
    assert any("sight is left out" in line and "sight fit" in line for line in said)


@given(st.integers(2, 40), st.integers(0, 1000))
def test_relative_maps_of_robot_and_training_are_one(patches: int, seed: int) -> None:
    asked, neutral = np.random.default_rng(seed).random((2, patches)).astype(np.float32)
    other = relative_maps(torch.from_numpy(asked), torch.from_numpy(neutral)).numpy()
    np.testing.assert_allclose(relate(asked, neutral), other, rtol=1e-4)


def test_the_statistics_are_in_the_bundle_under_its_id(bundle: Bundle) -> None:
    assert "sight.npz" in bundle.manifest["files"]
    found = bundle.sight()
    assert found is not None
    assert found.place == "encoder"
    assert found.fitted >= 20 and found.calibrated >= 4


def test_strange_scenes_are_measured_in_the_simulator(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="needs the extra [sim]")
    result = measure_familiarity(bundle.path, 6, ["dim_light", "unseen_words"])
    rows = {row["shift"]: row for row in result["rows"]}
    assert set(rows) == {"none", "dim_light", "unseen_words"}
    assert rows["none"]["auroc"] is None
    # A network of twelve steps sees little: that there is a difference is all that can be asked.
    assert rows["dim_light"]["distance_p50"] != rows["none"]["distance_p50"]
    low, high = rows["dim_light"]["auroc_interval"]
    assert 0.0 <= low <= rows["dim_light"]["auroc"] <= high <= 1.0
    assert all(0.0 <= row["flagged_rate"] <= 1.0 for row in rows.values())


def test_scenes_are_shown_beside_where_the_words_look(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="needs the extra [sim]")
    names = ["none", "dim_light", "camera_moved"]
    sheet = draw_scenes(bundle.path, names)
    assert sheet.shape == (2 * (TILE_PX + CAPTION_PX), 4 * TILE_PX, 3)
    tiles = [sheet[CAPTION_PX : CAPTION_PX + TILE_PX, n * TILE_PX :][:, :TILE_PX] for n in range(4)]
    assert tiles[2].mean() < tiles[0].mean(), "the light is dim"
    for picture, heat in ((tiles[0], tiles[1]), (tiles[2], tiles[3])):
        assert not np.array_equal(picture, heat)
    assert (sheet[-TILE_PX:, 2 * TILE_PX :] == 255).all(), "nothing where there is no scene"


def test_where_the_words_look_is_laid_over_what_the_model_sees(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that was trained with augmentation crops the camera's picture."""
    pytest.importorskip("mujoco", reason="needs the extra [sim]")
    shapes: list[tuple[int, ...]] = []

    def lay(picture: np.ndarray, weights: np.ndarray, width: int, height: int) -> np.ndarray:
        shapes.append(picture.shape)
        return overlay(picture, weights, width, height)

    def crop_box(_: ImageTransform, width: int, height: int) -> tuple[float, float, float, float]:
        return width / 4, height / 4, 3 * width / 4, 3 * height / 4

    monkeypatch.setattr("training.strange_scenes.overlay", lay)
    draw_scenes(bundle.path, ["none"])
    monkeypatch.setattr(ImageTransform, "crop_box", crop_box)
    draw_scenes(bundle.path, ["none"])
    whole, seen = shapes
    assert seen == (whole[0] // 2, whole[1] // 2, 3)


def test_fit_asks_for_data_and_refuses_a_place_that_is_none(
    fitted: Path, tabletop_data: Path
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ConfigurationError, match="--data"):
        command.run(parser.parse_args(["fit", str(fitted)]))
    with pytest.raises(ConfigurationError, match="layer_0 to layer_"):
        fit_familiarity(fitted, [tabletop_data], place="layer_99", progress=False)


@pytest.mark.parametrize(
    "settings", [{"quantile": 1.5}, {"quantile": 0.0}, {"scenes": -5}, {"scenes": 3}]
)
def test_numbers_that_fit_nothing_are_refused_before_anything_is_read(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be fitted so.*--scenes or --quantile"):
        fit_familiarity(tmp_path / "nowhere", [], progress=False, **settings)


def test_a_result_s_folder_is_made_and_its_name_checked_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    figures = {"rows": [], "episodes": 2}
    monkeypatch.setattr("training.strange_scenes.measure_familiarity", lambda *_: figures)
    monkeypatch.setattr(
        "training.strange_scenes.draw_scenes", lambda *_: np.zeros((4, 4, 3), np.uint8)
    )
    for verb, name in (("measure", "sight.json"), ("show", "sight.png")):
        out = tmp_path / verb / "new" / name
        command.run(parser.parse_args([verb, "bundle", "--out", str(out)]))
        assert out.is_file()
        with pytest.raises(ConfigurationError, match=r"cannot be written there.*expected a file"):
            command.run(parser.parse_args([verb, "bundle", "--out", str(out.parent)]))
    with pytest.raises(ConfigurationError, match=r"sight\.xyz; expected a file of \.png or \.jpg"):
        command.run(parser.parse_args(["show", "bundle", "--out", str(tmp_path / "sight.xyz")]))


@given(st.integers(3, 60), st.integers(1, 12), st.integers(0, 100))
def test_a_covariance_is_positive_definite_with_few_samples_too(
    count: int, width: int, seed: int
) -> None:
    samples = np.random.default_rng(seed).normal(size=(count, width))
    mean, covariance = fit_gaussian(samples)
    np.testing.assert_allclose(mean, samples.mean(0))
    np.linalg.cholesky(covariance)


def test_shrinkage_is_that_of_ledoit_and_wolf() -> None:
    """Against many samples of a known law: closer to it than the plain covariance."""
    rng = np.random.default_rng(0)
    truth = np.diag(np.linspace(1.0, 4.0, 20))
    gains = []
    for _ in range(20):
        samples = rng.multivariate_normal(np.zeros(20), truth, size=30)
        plain = np.cov(samples.T, bias=True)
        gains.append(
            np.linalg.norm(plain - truth) - np.linalg.norm(fit_gaussian(samples)[1] - truth)
        )
    assert np.mean(gains) > 0 and min(gains) > 0
    many = rng.multivariate_normal(np.zeros(20), truth, size=50_000)
    np.testing.assert_allclose(fit_gaussian(many)[1], truth, atol=0.15)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    low, high = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert (auroc(low, high), auroc(high, low), auroc(low, low)) == (1.0, 0.0, 0.5)
    value = auroc(np.arange(30.0), np.arange(30.0) + 5)
    interval = auroc_interval(value, 30, 30)
    assert interval[0] < value < interval[1]


@pytest.mark.parametrize(
    ("value", "scenes", "low", "high"),  # as a scan of the score interval's inequality finds them
    [(1.0, 60, 0.967, 1.0), (0.8, 60, 0.707, 0.867), (1.0, 2, 0.386, 1.0), (0.5, 2, 0.112, 0.888)],
)
def test_an_auroc_has_an_interval_of_some_width_however_few_and_well_told_the_scenes(
    value: float, scenes: int, low: float, high: float
) -> None:
    assert auroc_interval(value, scenes, scenes) == pytest.approx((low, high), abs=1e-3)
    assert auroc_interval(1 - value, scenes, scenes) == pytest.approx((1 - high, 1 - low), abs=1e-3)


def test_an_auroc_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), []
    for truth, apart in ((0.5, 0.0), (0.95, 2.326)):  # two normals so many deviations apart
        for scenes in (2, 8):
            draws = (rng.normal(size=(2, scenes)) for _ in range(400))
            values = (auroc(one, other + apart) for one, other in draws)
            ends = (auroc_interval(value, scenes, scenes) for value in values)
            held.append(np.mean([low <= truth <= high for low, high in ends]))
    assert min(held) > 0.91
