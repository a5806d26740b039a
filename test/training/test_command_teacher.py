"""`vla-align teacher`: what it lists is valid, and what it caches is what a run looks for."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import openvla_layout
from tiny_data import write_dataset
from tiny_run import needs_teacher
from tiny_teachers import make_dinov2

from training.alignment.teachers.config import FAMILIES
from training.commands import teacher as command
from training.model.openvla import read_image_transform
from training.recipes import RADIO, find_recipe
from training.teacher_cache import student_grid
from vla_align_ros.errors import ConfigurationError


def call(*arguments: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_list_shows_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    rows = call("list")["teachers"]
    assert [row["family"] for row in rows] == list(FAMILIES)
    printed = capsys.readouterr().out
    assert all(row["form"] in printed and row["example"] in printed for row in rows)


def test_a_cache_is_filled_once_and_then_found(tmp_path: Path) -> None:
    data, cache, weights = tmp_path / "data", tmp_path / "cache", tmp_path / "teacher"
    write_dataset(data, 4)
    make_dinov2(weights)
    wanted = ["cache", "--data", data, "--cache", cache, "--teacher", f"dinov2:{weights}"]
    wanted += ["--image-size", 42, "--device", "cpu"]
    first = call(*wanted)
    assert first["computed"] == first["frames"] > 0 and first["grid"] == 3
    (path,) = map(Path, first["files"])
    assert path.parent == cache and np.load(path).shape == (first["frames"], 9, first["width"])
    assert call(*wanted)["computed"] == 0
    other = call(*wanted, "--layer", 1)
    assert other["computed"] == other["frames"] and other["fingerprint"] != first["fingerprint"]
    assert call(*wanted, "--precision", "fp32")["computed"] == first["frames"]
    assert call(*wanted, "--grid", 2)["computed"] == first["frames"]


@needs_teacher
def test_a_run_finds_what_was_cached_for_its_recipe(tabletop_data: Path, tmp_path: Path) -> None:
    from tiny_run import make_parts

    cache = tmp_path / "cache"
    result = call("cache", "--recipe", "debug_cpu", "--data", tabletop_data, "--cache", cache)
    assert result["computed"] == result["frames"] and result["precision"] == "bf16"
    before = set(cache.glob("features-teacher-*"))
    parts = make_parts(tabletop_data, cache=cache)
    assert parts.teacher_features is not None and parts.teacher_features.computed == 0
    assert set(cache.glob("features-teacher-*")) == before


def test_settings_change_the_recipe_and_options_change_both() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    wanted = ["cache", "--data", "d", "--recipe", "debug_cpu"]
    wanted += ["--set", "precision=fp32", "teacher.layer=9", "--layer", "8", "--camera", "wrist"]
    plan = command._plan(parser.parse_args(wanted))
    assert (plan.precision, plan.teacher.layer, plan.grid) == ("fp32", 8, 4)
    assert plan.data.image_size == 56 and plan.data.cameras == ("wrist",)


@pytest.mark.parametrize("named", [[], ["--teacher", "radio:other/C-RADIO"]])
def test_revision_and_remote_code_count_beside_a_recipe(named: list[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    recipe = ["cache", "--data", "d", "--recipe", "debug_cpu", "--set", f"teacher.name={RADIO}"]
    wanted = [*recipe, *named, "--revision", "abc123", "--remote-code"]
    teacher = command._plan(parser.parse_args(wanted)).teacher
    assert teacher.name == (named or ["", RADIO])[1]
    assert (teacher.revision, teacher.remote_code) == ("abc123", True)
    untouched = command._plan(parser.parse_args([*recipe, "teacher.revision=old"])).teacher
    assert (untouched.revision, untouched.remote_code) == ("old", False)


def test_beside_a_base_the_pictures_are_as_the_base_sees_them(tmp_path: Path) -> None:
    stored = np.load(Path(__file__).parent / "golden" / "openvla_tiny.npz")
    openvla_layout.write_folder(tmp_path, json.loads(str(stored["shapes"])))
    wanted = ["cache", "--data", "d", "--recipe", "debug_cpu", "--set", f"base={tmp_path}"]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ConfigurationError, match=r"got data.image_size 56 px; .* \[224\] px"):
        command._plan(parser.parse_args(wanted))
    plan = command._plan(parser.parse_args([*wanted, "--image-size", "224"]))
    assert (plan.data.image_size, plan.grid) == (224, 16)
    assert plan.transform == read_image_transform(tmp_path, crop=plan.data.crop)


def test_the_students_grid_is_read_from_the_recipe() -> None:
    assert student_grid(find_recipe("debug_cpu")) == 4
    assert student_grid(find_recipe("tabletop_align")) == 12


@pytest.mark.parametrize("extra", [[], ["--set", "seed=1", "--teacher", "embedded"]])
def test_without_a_teacher_or_a_recipe_the_command_says_what_to_give(extra: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="Nothing says which teacher"):
        call("cache", "--data", "nowhere", *extra)


def test_without_data_the_command_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no --data"):
        call("cache", "--teacher", "embedded")


def test_a_recipe_that_augments_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="augment"):
        call(
            *("cache", "--recipe", "debug_cpu", "--set", "data.augment.enabled=true"),
            *("--data", "nowhere"),
        )
