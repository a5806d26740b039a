"""The watch as a whole: what it measures, what it leaves alone, what it keeps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_config, tiny_llm, tokens_config
from tiny_sight import sight_processor, sight_scenes, write_pictures
from torch.nn import functional

from training.alignment import Aligner, AlignmentConfig
from training.model import PrismaticVLA
from training.sight import SightWatch, WatchConfig, open_writer
from training.sight.features import stack_inputs
from training.sight.reading import list_readings
from training.sight.watch import choose_drawn
from vla_align_ros.errors import ConfigurationError, TrainingError

TEACHER_WIDTH = 12


def teach(images: np.ndarray) -> torch.Tensor:
    """Features (B, 9 a camera, 12) that depend on the picture alone."""
    flat = torch.from_numpy(images).float().flatten(1) / 255
    tokens = 9 * (images.shape[1] if images.ndim == 5 else 1)
    mixer = torch.randn(
        flat.shape[1], tokens * TEACHER_WIDTH, generator=torch.Generator().manual_seed(9)
    )
    return (flat @ mixer).unflatten(1, (tokens, TEACHER_WIDTH))


def make_aligner(model: PrismaticVLA, **settings: Any) -> Aligner:
    config = AlignmentConfig(layers=(1, 2), hidden=16, **settings)
    return Aligner(config, TEACHER_WIDTH, model.llm_width, 24, 3)


def make_watch(
    folder: Path,
    model: PrismaticVLA | None = None,
    *,
    cameras: tuple[str, ...] = ("front",),
    **settings: Any,
) -> SightWatch:
    values = {"layers": (0, 2, 3), "batch_size": 3, "probe_views": 1, "attention_scenes": 1}
    keywords = {
        key: settings.pop(key) for key in ("aligner", "teach", "episodes") if key in settings
    }
    config = WatchConfig(**{**values, "probe": False, **settings})
    if model is None:
        model = build(tiny_config())
    processor = sight_processor(cameras=cameras, state=model.state_encoder is not None)
    return SightWatch(
        config, model, processor, sight_scenes(processor, 5), folder / "sight", **keywords
    )


def disturb(model: PrismaticVLA, prefix: str, share: float = 0.5) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                parameter += share * parameter.std() * torch.randn_like(parameter)


def test_before_training_nothing_has_drifted(tmp_path: Path) -> None:
    reading = make_watch(tmp_path).measure(0)
    drift = {name: v for name, v in reading.scalars.items() if name.startswith("sight/cka_scenes")}
    places = ("encoder", "layer_0", "layer_2", "layer_3")
    assert set(drift) == {f"sight/cka_scenes_{place}" for place in places}
    assert list(drift.values()) == pytest.approx([1.0] * 4, abs=1e-9)


def test_drift_appears_where_weights_moved_and_not_before(tmp_path: Path) -> None:
    model = build(tiny_config())
    watch = make_watch(tmp_path, model)
    watch.measure(0)
    disturb(model, "llm.model.layers.1", 8.0)  # between hidden states 1 and 2
    moved = watch.measure(5).scalars
    assert moved["sight/cka_scenes_encoder"] == pytest.approx(1.0, abs=1e-9)
    assert moved["sight/cka_scenes_layer_0"] == pytest.approx(1.0, abs=1e-9)
    assert moved["sight/cka_scenes_layer_2"] < 0.98
    disturb(model, "vision", 2.0)
    assert watch.measure(6).scalars["sight/cka_scenes_encoder"] < 0.9


def test_a_continued_run_compares_with_the_same_features(tmp_path: Path) -> None:
    model = build(tiny_config())
    watch = make_watch(tmp_path, model)
    watch.measure(0)
    disturb(model, "vision")
    expected = watch.measure(5).scalars
    again = make_watch(tmp_path, model).measure(5).scalars
    assert again == expected
    restarted = make_watch(tmp_path, build(tiny_config())).measure(0).scalars
    assert restarted["sight/cka_scenes_encoder"] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("damage", ["missing", "other", "broken"])
def test_without_its_reference_a_run_goes_on_and_says_so(tmp_path: Path, damage: str) -> None:
    make_watch(tmp_path, layers=(1,)).measure(0)
    path = tmp_path / "sight" / "reference.safetensors"
    if damage == "missing":
        path.unlink()
    if damage == "broken":
        path.write_bytes(path.read_bytes()[:100])
    watch = make_watch(tmp_path, layers=(2,) if damage == "other" else (1,))
    with pytest.warns(UserWarning, match="no drift"):
        reading = watch.measure(5)
    assert not any("cka_scenes" in name for name in reading.scalars)
    assert any("no drift" in note for note in reading.notes)
    watch.measure(6)  # said once


def test_cosines_are_those_of_the_projected_tokens(tmp_path: Path) -> None:
    model = build(tiny_config())
    aligner = make_aligner(model)
    watch = make_watch(tmp_path, model, aligner=aligner, teach=teach)
    scalars = watch.measure(0).scalars
    inputs = stack_inputs(watch.processor, watch.scenes, torch.device("cpu"))
    resize = watch.processor.image_transform.resize
    target = teach(np.stack([resize(scene.images["front"]) for scene in watch.scenes]))
    with torch.no_grad():
        output = model(**inputs)
        for place, layer in enumerate((1, 2)):
            tokens = aligner.projectors[place](output.hidden_states[layer][:, output.visual])
            expected = functional.cosine_similarity(tokens, target, dim=-1).mean()
            found = scalars[f"sight/cosine_layer_{layer}"]
            assert found == pytest.approx(float(expected), abs=1e-6)
    assert {"sight/cka_teacher_encoder", "sight/cka_teacher_layer_2"} <= set(scalars)


def test_features_equal_to_the_teachers_have_likeness_one(tmp_path: Path) -> None:
    model = build(tiny_config())
    processor = sight_processor()
    scenes = sight_scenes(processor, 5)
    with torch.no_grad():
        output = model(**stack_inputs(processor, scenes, torch.device("cpu")))
    order = iter(output.vision_features.split([3, 2]))
    watch = make_watch(tmp_path, model, teach=lambda images: next(order))
    assert watch.measure(0).scalars["sight/cka_teacher_encoder"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("projector", ["mlp", "whitening"])
def test_a_reading_changes_nothing_of_the_run(tmp_path: Path, projector: str) -> None:
    model = build(tiny_config(attention_backend="sdpa"))
    aligner = make_aligner(model, projector=projector, trainable=projector == "whitening")
    model.train()
    aligner.train()
    model.vision.eval()
    model.vision.requires_grad_(False)
    model.action_queries.grad = torch.ones_like(model.action_queries)
    pictures = str(write_pictures(tmp_path / "pictures"))
    watch = make_watch(tmp_path, model, aligner=aligner, teach=teach, probe=True, pictures=pictures)

    def state() -> Any:
        both = torch.nn.ModuleList([model, aligner])
        return (
            copy.deepcopy(both.state_dict()),
            [module.training for module in both.modules()],
            [
                (p.requires_grad, None if p.grad is None else p.grad.clone())
                for p in both.parameters()
            ],
            torch.get_rng_state(),
            model.llm.config._attn_implementation,
            torch.is_grad_enabled(),
        )

    before = state()
    first = watch.measure(0)
    after = state()
    assert before[1] == after[1] and before[4:] == after[4:]
    assert torch.equal(before[3], after[3])
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    for (wanted, gradient), (wants, other) in zip(before[2], after[2], strict=True):
        assert wanted == wants and (gradient is None) == (other is None)
        assert gradient is None or torch.equal(gradient, other)
    second = watch.measure(0)
    assert first.scalars == second.scalars and first.probe == second.probe
    for name, picture in first.figures.items():
        assert np.array_equal(picture, second.figures[name])


def test_the_probe_reads_every_place(tmp_path: Path) -> None:
    pictures = str(write_pictures(tmp_path / "pictures"))
    reading = make_watch(tmp_path, probe=True, pictures=pictures, probe_views=2).measure(0)
    assert set(reading.probe) == {"encoder", "layer_0", "layer_2", "layer_3"}
    for place, result in reading.probe.items():
        assert result.total == 24 and result.chance == 0.5
        assert set(result.labels) == {"disc", "box"}
        assert reading.scalars[f"sight/probe_{place}"] == result.accuracy
    assert reading.scalars["sight/cka_pictures_encoder"] == pytest.approx(1.0, abs=1e-9)


def test_without_drawings_the_probe_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.sight.pictures.find_drawings", lambda: None)
    reading = make_watch(tmp_path, probe=True).measure(0)
    assert not reading.probe
    assert any("pip install '.[sight]'" in note for note in reading.notes)


@pytest.mark.parametrize("kind", ["two cameras", "tokens head", "bf16"])
def test_other_policies_are_watched_alike(tmp_path: Path, kind: str) -> None:
    model = build(tokens_config() if kind == "tokens head" else tiny_config())
    cameras = ("front", "wrist") if kind == "two cameras" else ("front",)
    watch = make_watch(tmp_path, model, cameras=cameras, aligner=make_aligner(model), teach=teach)
    if kind == "bf16":
        watch.autocast = torch.bfloat16
    scalars = watch.measure(0).scalars
    assert all(np.isfinite(value) for value in scalars.values())
    assert scalars["sight/cka_scenes_layer_3"] == pytest.approx(1.0, abs=1e-9)


def test_a_reading_is_kept_and_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = build(tiny_config())
    pictures = str(write_pictures(tmp_path / "pictures"))
    watch = make_watch(tmp_path, model, probe=True, pictures=pictures)
    writer = open_writer(tmp_path, wandb="off")
    reading = watch.measure(0)
    watch.publish(reading, writer)
    writer.close()
    (kept,) = list_readings(tmp_path / "sight")
    assert kept["step"] == 0 and kept["scalars"] == dict(reading.scalars)
    assert (tmp_path / "sight" / kept["figures"]["attention_0"]).read_bytes()[1:4] == b"PNG"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(reading.scalars)
    (image,) = events.Images("sight/attention_0")
    height, width, _ = reading.figures["attention_0"].shape
    assert (image.height, image.width) == (height, width)


def test_attention_is_drawn_of_different_episodes_while_there_are_some(tmp_path: Path) -> None:
    assert choose_drawn([0, 1, 2, 3], 3) == [0, 1, 2]
    assert choose_drawn([7, 7, 7, 8, 8, 9], 3) == [0, 3, 5]
    assert choose_drawn([7, 7, 7, 8, 8], 4) == [0, 1, 3, 4]
    assert choose_drawn([7, 7], 3) == [0, 1]
    watch = make_watch(tmp_path, attention_scenes=2, episodes=[4, 4, 4, 4, 6, 9, 9])
    assert watch.drawn == [0, 4] and set(watch.measure(0).figures) == {"attention_0", "attention_1"}
    assert make_watch(tmp_path, attention_scenes=2).drawn == [0, 1]


def test_a_value_that_is_no_number_is_kept_as_null(tmp_path: Path) -> None:
    model = build(tiny_config())
    with torch.no_grad():
        model.projector.requires_grad_(False)
        for parameter in model.projector.parameters():
            parameter.zero_()  # visual tokens that do not vary at all
    watch = make_watch(tmp_path, model, layers=(0,))
    watch.publish(watch.measure(0), None)
    (kept,) = list_readings(tmp_path / "sight")
    assert kept["scalars"]["sight/cka_scenes_layer_0"] is None
    json.dumps(kept, allow_nan=False)


def test_readings_are_due_at_intervals_and_at_both_ends(tmp_path: Path) -> None:
    watch = make_watch(tmp_path, every_steps=4)
    assert [step for step in range(11) if watch.due(step, 10)] == [0, 4, 8, 10]
    off = make_watch(tmp_path, every_steps=0)
    assert not any(off.due(step, 10) for step in range(11))


def test_layers_follow_the_depth(tmp_path: Path) -> None:
    from training.sight.config import choose_blocks, choose_layers

    config = WatchConfig()
    assert choose_layers(config, 32, (16, 18)) == [0, 8, 16, 18, 24, 32]
    assert choose_layers(config, 2) == [0, 1, 2]
    assert choose_blocks(config, 32) == [15, 16, 17, 18]
    assert choose_blocks(config, 4) == [2]
    assert choose_blocks(config, 1) == [1]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"every_steps": -1}, "every_steps.*got -1.*expected 0 or more"),
        ({"scenes": 1}, "scenes"),
        ({"probe_solver": "svm"}, "probe_solver.*'svm'.*logistic or sgd"),
        ({"wandb": "yes"}, "wandb"),
        ({"layers": (4,)}, r"watch.layers.*\(4,\).*0 to 3"),
        ({"attention_layers": (0,)}, "watch.attention_layers.*1 to 3"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make_watch(tmp_path, build(tiny_config(llm=tiny_llm(layers=3))), **settings)


def test_too_few_scenes_are_refused(tmp_path: Path) -> None:
    processor = sight_processor()
    scenes = sight_scenes(processor, 1)
    with pytest.raises(TrainingError, match=r"1 held-out.*watch.every_steps=0"):
        SightWatch(WatchConfig(), build(tiny_config()), processor, scenes, tmp_path)
