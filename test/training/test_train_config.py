"""Recipes are whole configurations; `--set` changes what it names; files bring them back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import needs_teacher

from training.alignment import AlignmentConfig
from training.alignment.teachers import TeacherConfig
from training.config import LossConfig, RunConfig
from training.data.config import DataConfig
from training.data.sources import open_sources
from training.model import (
    GroundingConfig,
    HeadConfig,
    LlmConfig,
    ProjectorConfig,
    StateConfig,
    VisionConfig,
    VlaConfig,
)
from training.optimizers import OptimConfig
from training.recipes import RECIPES, debug_cpu, find_recipe
from training.settings import override
from training.setup_processor import build_processor
from training.setup_run import set_up
from training.vqa import VqaConfig
from vla_align_ros.errors import ConfigurationError


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat.update(inner if inner is not None else {prefix + key: value})
    return flat


def changed(one: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    left, right = flatten(one.to_dict()), flatten(other.to_dict())
    assert left.keys() == right.keys()
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


# -- recipes ----------------------------------------------------------------------------------
@needs_teacher
@pytest.mark.parametrize("name", sorted(name for name in RECIPES if name.startswith(("t", "d"))))
def test_a_recipe_builds_and_steps(name: str, tabletop_data: Path, one_thread: None) -> None:
    config = override(find_recipe(name), ["data.cache=false", "data.validation=0.2"])
    parts = set_up(config, [tabletop_data], None, progress=False)
    assert (parts.objective.aligner is None) == (config.alignment.weight == 0)
    batch = parts.batch(parts.data.indices("train")[:2], frozen_vision=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        loss, scalars = parts.objective(batch)
    loss.backward()
    assert math.isfinite(loss.item()) and scalars["loss/action"] > 0
    for group, members in parts.objective.model.parameter_groups().items():
        assert any(p.grad is not None and p.grad.any() for _, p in members), group


def test_the_tabletop_recipes_differ_where_their_names_say() -> None:
    align, default, freeze = (
        find_recipe(f"tabletop_{name}") for name in ("align", "default", "freeze")
    )
    assert changed(align, default) == {
        "recipe": ("tabletop_align", "tabletop_default"),
        "alignment.weight": (0.2, 0.0),
    }
    difference = changed(default, freeze)
    assert set(difference) == {"recipe", "optim.vision_lr"}
    assert difference["optim.vision_lr"][1] is None and default.optim.vision_lr is not None
    assert align.optim.vision_from_step < align.optim.steps


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_loss_of_a_recipe_reaches_something(name: str) -> None:
    find_recipe(name).check()


def test_a_recipe_is_found_by_its_name_alone() -> None:
    for name in RECIPES:
        assert find_recipe(name).recipe == name
    with pytest.raises(
        ConfigurationError, match=r"got 'tabletop'; expected one of tabletop_align, .*debug_cpu"
    ):
        find_recipe("tabletop")


# -- settings ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed=7", 7),
        ("precision=fp32", "fp32"),
        ('precision="fp32"', "fp32"),
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=1", 1.0),
        ("optim.vision_lr=null", None),
        ("optim.vision_lr=0.5", 0.5),
        ("data.cache=false", False),
        ("data.image_size=98", 98),
        ("data.frame=fr3_link0", "fr3_link0"),
        ("alignment.layers=[1, 2]", (1, 2)),
        ("alignment.layers=[]", ()),
        ("alignment.weight=0", 0.0),
        ("teacher.layer=8", 8),
        ("loss.grounding=0.1", 0.1),
        ("model.attention=bidirectional", "bidirectional"),
        ("model.head.hidden=48", 48),
        ("model.grounding=null", None),
        ('model.llm.config={"model_type": "gpt2"}', {"model_type": "gpt2"}),
    ],
)
def test_a_setting_changes_its_field_to_its_type_and_no_other(setting: str, value: Any) -> None:
    before, path = debug_cpu(), setting.partition("=")[0]
    after = override(before, [setting])
    node: Any = after
    for key in path.split("."):
        node = getattr(node, key)
    assert node == value and type(node) is type(value)
    if not isinstance(value, dict):
        left, right = (flatten(dataclasses.asdict(config)) for config in (before, after))
        others = [key for key in left if key != path and not key.startswith(f"{path}.")]
        assert {key: right[key] for key in others} == {key: left[key] for key in others}
    assert before == debug_cpu()


def test_settings_apply_one_after_another() -> None:
    assert override(debug_cpu(), ["seed=1", "seed=2"]).seed == 2
    tokens = override(debug_cpu(), ["model.head.horizon=1", "model.head.kind=tokens"])
    assert tokens.model.head == HeadConfig(kind="tokens", horizon=1)
    assert override(debug_cpu(), []) == debug_cpu()


@given(st.permutations(["adapter.quantize=nf4", "adapter.kind=lora", "adapter.rank=4"]))
def test_settings_that_need_each_other_come_in_any_order(settings: list[str]) -> None:
    adapter = override(debug_cpu(), settings).adapter
    assert (adapter.kind, adapter.quantize, adapter.rank) == ("lora", "nf4", 4)
    with pytest.raises(ConfigurationError, match=r"adapter\.quantize"):
        override(debug_cpu(), [one for one in settings if "kind" not in one])


def test_a_part_that_is_none_is_made_of_the_settings_below_it() -> None:
    asked = override(debug_cpu(), ["vqa.weight=0.5", "vqa.path=/data/q"])
    assert asked.vqa == VqaConfig(path="/data/q", weight=0.5)
    assert override(asked, ["vqa=null"]) == debug_cpu()
    again = override(debug_cpu(), ["model.grounding=null", "model.grounding.layer=2"])
    assert again.model.grounding == GroundingConfig(layer=2)
    told = r"vqa lacks a setting: got vqa\.weight; expected vqa\.path too; fix: --set vqa\.path="
    with pytest.raises(ConfigurationError, match=told):
        override(debug_cpu(), ["vqa.weight=0.5"])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("vqa.batch_size=0", "vqa lacks a setting"),
        ("vqa.colour=1", "got vqa.colour; expected one of path, weight"),
        ("optim.vision_lr.peak=1", "expected a value that has no parts"),
        ("sed=1", "got sed; expected one of recipe, model, data, optim, alignment, teacher, loss"),
        ("optim.rate=1", "got optim.rate; expected one of name, steps, batch_size, lr"),
        ("model.head.width=1", "expected one of kind, horizon, action_dim"),
        ("seed.x=1", "got seed.x; expected a value that has no parts"),
        ("model.vision.image_size=1", "expected a value that has no parts"),
        ("seed", "Not a setting: got 'seed'; expected key=value"),
        ("seed=1.5", "Wrong value for seed: got 1.5; expected a whole number; fix"),
        ("seed=true", "Wrong value for seed"),
        ("seed=null", "Wrong value for seed"),
        ("seed=", "Wrong value for seed"),
        ("data.cache=1", "Wrong value for data.cache: got 1; expected true or false; fix"),
        ("data.cache=yes", "Wrong value for data.cache"),
        ("optim.lr=fast", "Wrong value for optim.lr: got fast; expected a finite number; fix"),
        ("optim.lr=NaN", "Wrong value for optim.lr"),
        ("optim.lr=1e999", "Wrong value for optim.lr"),
        ("optim.lr=[1]", "Wrong value for optim.lr"),
        ("optim.vision_lr=none", "got none; expected a finite number or null; fix"),
        ("precision=fp16", 'Wrong value for precision: got fp16; expected "bf16" or "fp32"; fix'),
        (
            "alignment.layers=1",
            r"got 1; expected a list \[\.\.\.\], each of it a whole number; fix",
        ),
        ('alignment.layers=["1"]', "Wrong value for alignment.layers"),
        ("recipe=5", "Wrong value for recipe: got 5; expected a word or text; fix"),
        ("optim=5", r"got 5; expected its parts one by one, as KEY\.PART=VALUE: name, steps, "),
        ("model.llm.config=llama", r"got llama; expected an object \{\.\.\.\}"),
        ("alignment.weight=-1", "got alignment weight -1"),
        ("optim.steps=0", "Wrong value for optim.steps: got 0; expected 1 or more"),
        ("optim.batch_size=0", "Wrong value for optim.batch_size"),
        ("evaluate_every=0", "Wrong value for evaluate_every"),
        ("checkpoint_every=-5", "Wrong value for checkpoint_every"),
        ("loss.grounding=-1", "Wrong value for loss.grounding: got -1.0; expected 0 or more"),
        ("loss.tokens=-1", "Wrong value for loss.tokens"),
        ("loss.gripper=-6", "Wrong value for loss.gripper"),
        ("loss.grounding_sigma=0", "Wrong value for loss.grounding_sigma"),
        ("threads=-1", "Wrong value for threads: got -1; expected 0 or more"),
        ("seed=-1", "Wrong value for seed: got -1; expected 0 or more"),
        ("data.validation=0", "Wrong value for data.validation"),
        ("data.validation=1", "Wrong value for data.validation"),
        ("data.frame=", "Wrong value for data.frame: got ''; expected a frame's name"),
        ('data.frame=" "', "Wrong value for data.frame"),
        ("data.frame=1", "Wrong value for data.frame"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(setting: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        override(debug_cpu(), ["seed=3", setting])


BOUNDED = ("validation", "lr", "final_fraction", "beta2", "clip")  # not every float will do
SCALARS = {int: st.integers(1, 10**6), bool: st.booleans(), float: st.floats(0, 1e6)}
FIELDS = [
    (section, field.name, kind)
    for section, part in [("", RunConfig), ("data.", DataConfig), ("optim.", OptimConfig)]
    for field in dataclasses.fields(part)
    for kind in [{"int": int, "bool": bool, "float": float}.get(str(field.type))]
    if kind is not None and field.name not in BOUNDED
]


@given(st.data())
def test_any_value_of_the_right_type_is_taken_exactly(data: st.DataObject) -> None:
    section, name, kind = data.draw(st.sampled_from(FIELDS))
    value = data.draw(SCALARS[kind])
    after = override(debug_cpu(), [f"{section}{name}={json.dumps(value)}"])
    node = getattr(after, section.rstrip(".")) if section else after
    assert getattr(node, name) == value and type(getattr(node, name)) is kind
    wrong = data.draw(SCALARS[float].filter(lambda x: not float(x).is_integer()) | st.text("xyz"))
    if kind is not float or isinstance(wrong, str):
        with pytest.raises(ConfigurationError, match=f"Wrong value for {section}{name}"):
            override(debug_cpu(), [f"{section}{name}={wrong}"])


@pytest.mark.parametrize("frame", ["base_link", "wx250s/base_link"])
def test_the_bundle_s_frame_is_that_of_the_setting(frame: str, tabletop_data: Path) -> None:
    config = override(debug_cpu(), [f"data.frame={frame}"])
    processor = build_processor(config, open_sources([tabletop_data], config.data))
    assert processor.spec.action.frame == frame


# -- files ------------------------------------------------------------------------------------
COUNTS, FRACTIONS, NAMES = st.integers(1, 4096), st.floats(1e-6, 1.0), st.text(max_size=8)
JSONS = st.dictionaries(NAMES, st.integers() | NAMES | st.none() | st.lists(st.integers()))
VISION = st.builds(
    VisionConfig,
    source=st.just("embedded") | NAMES.map("timm:{}".format),
    image_size=COUNTS,
    layers=st.none() | COUNTS,
    select_layers=st.lists(st.integers(-12, 12), min_size=1, max_size=3).map(tuple),
    final_norm=st.booleans(),
    backbone=st.none() | JSONS,
    pretrained=st.none() | NAMES,
)
MODELS = st.builds(
    VlaConfig,
    vision=st.lists(VISION, min_size=1, max_size=2).map(tuple),
    llm=st.builds(LlmConfig, config=JSONS.map(lambda d: {**d, "model_type": "llama"})),
    projector=st.builds(ProjectorConfig, st.sampled_from(["auto", "fused_gelu"]), st.booleans()),
    head=st.builds(HeadConfig, horizon=COUNTS, hidden=st.none() | COUNTS, blocks=COUNTS),
    state=st.none() | st.builds(StateConfig, COUNTS),
    grounding=st.none() | st.builds(GroundingConfig, layer=COUNTS, to_actions=st.booleans()),
    attention=st.sampled_from(["causal_prefix", "bidirectional"]),
)
CONFIGS = st.builds(
    RunConfig,
    recipe=NAMES,
    model=MODELS,
    data=st.builds(
        DataConfig,
        COUNTS,
        st.floats(0.01, 0.99),
        st.booleans(),
        frame=st.sampled_from(["base_link", "wx250s/base_link"]),
    ),
    optim=st.builds(
        OptimConfig, steps=COUNTS, lr=FRACTIONS, vision_lr=st.none() | FRACTIONS, clip=FRACTIONS
    ),
    alignment=st.builds(
        AlignmentConfig, weight=FRACTIONS, layers=st.lists(COUNTS, max_size=3).map(tuple)
    ),
    teacher=st.builds(TeacherConfig, layer=COUNTS),
    loss=st.builds(LossConfig, FRACTIONS, FRACTIONS, FRACTIONS),
    seed=st.integers(0, 2**40),
    precision=st.sampled_from(["bf16", "fp32"]),
    evaluate_every=COUNTS,
)


@given(CONFIGS)
def test_a_configuration_comes_back_from_json(config: RunConfig) -> None:
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again.alignment.layers) == hash(config.alignment.layers)  # tuples, not lists


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_comes_back_from_json(name: str) -> None:
    config = find_recipe(name)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_run_stored_before_data_frame_came_is_the_one_with_its_default() -> None:
    stored = json.loads(json.dumps(debug_cpu().to_dict()))
    assert "frame" not in stored["data"]
    assert RunConfig.from_dict(stored).data.frame == "base_link"
    assert override(debug_cpu(), ["data.frame=fr3_link0"]).to_dict()["data"]["frame"] == "fr3_link0"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.pop("optim"),
        lambda values: values.update(speed=3),
        lambda values: values["loss"].update(speed=3),
        lambda values: values["model"].pop("vision"),
        lambda values: values["model"]["head"].update(speed=3),
        lambda values: values.update(alignment=None),
        lambda values: values["optim"].update(steps=None),
    ],
)
def test_a_configuration_of_another_version_is_refused(spoil: Any) -> None:
    values = json.loads(json.dumps(debug_cpu().to_dict()))
    spoil(values)
    with pytest.raises(ConfigurationError, match=r"that (RunConfig|VlaConfig)\.to_dict writes"):
        RunConfig.from_dict(values)
