"""The figures of a training run are the ones that their names promise, computed a second way."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from tiny_run import make_parts, needs_teacher

from training import evaluate
from training.data.schema import CHUNK_KEY, ENVIRONMENT_KEY, STATE_KEY
from training.evaluate import OfflineEvaluator
from training.model import PrismaticVLA
from training.setup_run import RunParts

pytestmark = [needs_teacher]


@pytest.fixture(scope="module")
def parts(tabletop_data: Path) -> RunParts:
    return make_parts(tabletop_data, "precision=fp32")


@pytest.fixture(scope="module")
def table(parts: RunParts) -> dict[str, np.ndarray]:
    """The data set as it lies on disk, and which of its frames are held out."""
    reader = parts.data.readers[0]
    columns = reader.columns([CHUNK_KEY, STATE_KEY, ENVIRONMENT_KEY, "frame_index"])
    held_out = np.zeros(len(reader), bool)
    held_out[parts.data.indices("val")] = True
    assert 3 <= held_out.sum() < 12
    return {**columns, "held_out": held_out}


@torch.no_grad()
def predict_metric(parts: RunParts, rows: np.ndarray) -> np.ndarray:
    """Actions (n, H, 7) of the model in metres, one frame at a time, from its picture."""
    chunks = []
    for row in rows:
        batch = parts.data.batch(np.array([row]))
        inputs = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
        chunks.append(parts.objective.model.eval().predict(*inputs, batch["state"]).numpy()[0])
    return parts.processor.normalizers["action"].denormalize(np.stack(chunks))


def end_of(chunk: np.ndarray) -> list[float]:
    return [sum(float(action[axis]) for action in chunk) for axis in range(3)]


def test_errors_are_distances_between_the_ends_of_chunks(
    parts: RunParts, table: dict[str, np.ndarray]
) -> None:
    rows = np.flatnonzero(table["held_out"])
    predicted, truth = predict_metric(parts, rows), table[CHUNK_KEY][rows]
    errors = [math.dist(end_of(p), end_of(t)) for p, t in zip(predicted, truth, strict=True)]
    first = [e for e, row in zip(errors, rows, strict=True) if table["frame_index"][row] == 0]
    assert 0 < len(first) < len(errors)
    metrics = OfflineEvaluator(parts).measure(frozen_vision=False)
    assert metrics["val/displacement_m"] == pytest.approx(statistics.mean(errors), rel=1e-4)
    assert metrics["val/displacement_median_m"] == pytest.approx(
        statistics.median(errors), rel=1e-4
    )
    assert metrics["val/first_frame_displacement_m"] == pytest.approx(
        statistics.mean(first), rel=1e-4
    )
    target = parts.processor.encode_actions(truth)
    normalised = parts.processor.encode_actions(predicted)
    inside = np.abs(normalised) < 1  # encoding clips what the model may say beyond the quantiles
    assert inside.mean() > 0.8
    right = (predicted[..., 6] > 0.5) == (truth[..., 6] > 0.5)
    assert metrics["val/gripper_accuracy"] == pytest.approx(right.mean())
    assert metrics["val/l1"] >= np.abs(normalised - target).mean() - 1e-5


def test_the_blind_baseline_is_the_best_affine_guess_from_the_state(
    parts: RunParts, table: dict[str, np.ndarray]
) -> None:
    ends = np.array([end_of(chunk) for chunk in table[CHUNK_KEY]])
    inputs = np.column_stack([np.ones(len(ends)), table[STATE_KEY].astype(float)])
    known = ~table["held_out"]
    guess = inputs @ (np.linalg.pinv(inputs[known]) @ ends[known])
    first = table["held_out"] & (table["frame_index"] == 0)
    blind = np.linalg.norm(guess - ends, axis=1)[first].mean()
    metrics = OfflineEvaluator(parts).measure(frozen_vision=False)
    assert metrics["val/first_frame_blind_m"] == pytest.approx(blind, rel=1e-4)
    residual = guess[known] - ends[known]  # nothing that the state tells is left
    np.testing.assert_allclose(inputs[known].T @ residual, 0.0, atol=1e-6)


def test_a_policy_that_says_what_the_expert_did_is_right_about_everything(
    parts: RunParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def know(self: OfflineEvaluator, actions: Any, batch: dict[str, Any]) -> Any:
        return batch["actions"].numpy()

    monkeypatch.setattr(OfflineEvaluator, "_read_actions", know)
    metrics = OfflineEvaluator(parts).measure(frozen_vision=True)
    assert metrics["val/l1"] == 0.0 and metrics["val/gripper_accuracy"] == 1.0
    # Normalising clips the outermost hundredths, so not 0 to the last digit.
    assert metrics["val/displacement_median_m"] < 2e-3
    assert metrics["val/first_frame_blind_m"] > 0.02


def test_grounding_is_measured_in_patches(
    parts: RunParts, table: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(parts.data.environment_names)
    rows = np.flatnonzero(table["held_out"])
    grid = parts.objective.model.grid
    model = parts.objective.model
    misses: dict[str, list[float]] = {"object": [], "receptacle": []}
    for row in rows:
        with torch.no_grad():
            maps = parts.objective.predict(parts.data.batch(np.array([row]))).grounding
        assert maps is not None
        for k, thing in enumerate(misses):
            weights = np.exp(maps[0, k].double().numpy())
            weights = weights.reshape(grid, grid) / weights.sum()
            x = sum(weights[j, i] * (i + 0.5) for j in range(grid) for i in range(grid))
            y = sum(weights[j, i] * (j + 0.5) for j in range(grid) for i in range(grid))
            label = table[ENVIRONMENT_KEY][row]
            u, v = (float(label[names.index(f"{thing}_{axis}")]) * grid for axis in "uv")
            misses[thing].append(math.hypot(x - u, y - v))
    assert model.grounding is not None
    metrics = OfflineEvaluator(parts).measure(frozen_vision=False)
    for thing, values in misses.items():
        lower = sorted(values)[(len(values) - 1) // 2]
        assert metrics[f"val/grounding_{thing}_patches"] == pytest.approx(lower, rel=1e-4)


def test_things_are_looked_for_where_a_cropped_picture_shows_them(
    tabletop_data: Path, parts: RunParts
) -> None:
    settings = ("precision=fp32", "data.augment.enabled=true", "data.augment.crop_area=0.25")
    cropped = make_parts(tabletop_data, *settings)
    assert parts.grounding is not None
    rows, passes = np.repeat(np.arange(len(parts.data)), 4), np.tile(np.arange(4), len(parts.data))
    windows = cropped.data.windows(rows, passes)
    points = parts.grounding[rows].numpy().astype(float)
    mapped = (points - windows[:, None, :2]) / 0.5  # half of each side is left
    inside = ((mapped >= 0) & (mapped <= 1)).all(-1)
    assert 0.1 < inside.mean() < 0.9
    found = cropped.load(rows, frozen_vision=False, passes=passes)["grounding"].numpy()
    np.testing.assert_array_equal(found.any(-1), inside)
    grid = cropped.objective.model.grid
    peak = found.argmax(-1)[inside]
    place = np.stack([peak % grid + 0.5, peak // grid + 0.5], axis=-1)
    assert np.abs(place - mapped[inside] * grid).max() < 0.51  # the patch that holds the thing

    whole = parts.grounding_points(parts.data.indices("val"))
    assert torch.equal(whole, parts.grounding[parts.data.indices("val")])
    centred = cropped.grounding_points(parts.data.indices("val"))
    torch.testing.assert_close(centred, 2 * whole - 0.5)
    maps = torch.zeros(len(whole), 2, grid**2)
    centre = torch.tensor([0.5, 0.5])
    told = OfflineEvaluator(cropped)._grounding_metrics(maps + 1 / grid**2)
    far = (centred - centre).norm(dim=-1).median(0).values * grid
    assert told["val/grounding_object_patches"] == pytest.approx(float(far[0]), rel=1e-4)
    assert told["val/grounding_receptacle_patches"] == pytest.approx(float(far[1]), rel=1e-4)


def test_frozen_features_measure_the_same(parts: RunParts) -> None:
    evaluator = OfflineEvaluator(parts)
    cached = evaluator.measure(frozen_vision=True)
    assert cached == pytest.approx(evaluator.measure(frozen_vision=False), rel=2e-3, abs=1e-4)
    assert cached == evaluator.measure(frozen_vision=True)


@pytest.mark.parametrize(("pieces", "most"), [(1, 8), (4, 2)])
def test_no_more_is_predicted_at_once_than_a_step_holds(
    tabletop_data: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, most: int
) -> None:
    parts = make_parts(tabletop_data, "data.cache=false", f"parallel.accumulate={pieces}")
    load, sizes = RunParts.load, list[int]()

    def count(self: RunParts, indices: Any, **options: Any) -> Any:
        sizes.append(len(indices))
        return load(self, indices, **options)

    monkeypatch.setattr(RunParts, "load", count)
    assert parts.config.optim.batch_size == 8
    OfflineEvaluator(parts).measure(frozen_vision=False)
    assert max(sizes) == min(most, len(parts.data.indices("val")))
    assert sum(sizes) == len(parts.data.indices("val"))


def test_a_tokens_head_without_maps_looks_at_a_picture_once(
    tabletop_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ("model.head.horizon=1", "model.head.kind=tokens", "loss.grounding=0")
    parts = make_parts(tabletop_data, *tokens, "alignment.weight=0", "data.cache=false")
    encode, seen = PrismaticVLA.encode_images, list[int]()

    def count(self: PrismaticVLA, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(PrismaticVLA, "encode_images", count)
    OfflineEvaluator(parts).measure(frozen_vision=False)
    assert sum(seen) == len(parts.data.indices("val"))


def test_a_large_split_is_sampled_the_same_way_every_time(
    parts: RunParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MAX_FRAMES", 4)
    monkeypatch.setattr(evaluate, "BATCH", 3)
    one, other = OfflineEvaluator(parts), OfflineEvaluator(parts)
    held_out = parts.data.indices("val")
    drawn = np.random.default_rng(0).permutation(held_out)[:4]
    assert set(one.indices[one.drawn]) == set(drawn) and set(drawn) < set(held_out)
    firsts = held_out[parts.data.frame_index[held_out] == 0]  # of three episodes
    assert set(one.indices[one.first]) == set(firsts) and one.first.sum() == 3
    np.testing.assert_array_equal(one.indices, other.indices)
    assert one.measure(frozen_vision=True) == other.measure(frozen_vision=True)


def test_the_first_frame_is_the_first_that_is_used(
    parts: RunParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes that begin without motion lose frames, if data.drop_near_zero says so."""
    data, whole = parts.data, parts.data.indices
    begins_still = data.episode[whole("val")].min()

    def drop(split: str) -> np.ndarray:
        indices = whole(split)
        still = (data.episode[indices] == begins_still) & (data.frame_index[indices] == 0)
        return indices[~still]

    monkeypatch.setattr(data, "indices", drop)
    evaluator = OfflineEvaluator(parts)
    first = evaluator.indices[evaluator.first]
    starts = dict(zip(data.episode[first].tolist(), data.frame_index[first].tolist(), strict=True))
    assert len(starts) == len(first) == 3
    assert starts == {episode: int(episode == begins_still) for episode in starts}


def test_first_frames_are_looked_at_beside_the_draw_and_count_in_their_own_scalars_alone(
    parts: RunParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = parts.data.indices("val")
    later = np.flatnonzero(parts.data.frame_index[held_out] > 0)
    monkeypatch.setattr(evaluate, "MAX_FRAMES", 2)
    monkeypatch.setattr(evaluate, "FIRST_FRAMES", 2)
    # The draw meets no first frame, as in large data.
    draw = _Draw(held_out, held_out[later[:2]])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: draw)
    evaluator = OfflineEvaluator(parts)
    assert evaluator.drawn.sum() == 2 and evaluator.first.sum() == 2
    assert not (evaluator.drawn & evaluator.first).any()

    def know_the_draw(actions: Any, batch: dict[str, Any]) -> Any:
        wrong = ~evaluator.drawn
        values = batch["actions"].numpy().copy()
        values[wrong, :, :3] += 0.5
        values[wrong, :, 6] = 1.0 - values[wrong, :, 6]
        return values

    monkeypatch.setattr(evaluator, "_read_actions", know_the_draw)
    metrics = evaluator.measure(frozen_vision=True)
    assert metrics["val/l1"] == 0.0 and metrics["val/gripper_accuracy"] == 1.0
    assert metrics["val/displacement_m"] < 0.01 < metrics["val/first_frame_displacement_m"]


class _Draw:
    """A generator that puts chosen frames of the held-out ones first."""

    def __init__(self, held_out: np.ndarray, ahead: np.ndarray) -> None:
        self.held_out, self.ahead = held_out, ahead

    def permutation(self, values: np.ndarray) -> np.ndarray:
        if not np.array_equal(values, self.held_out):
            return values
        return np.concatenate([self.ahead, np.setdiff1d(values, self.ahead)])
