"""Shifts change what their axis says, and training never draws what a shift holds out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim import catalogue
from vla_align_ros.sim.layout import (
    MOVE_LENGTH_M,
    OBJECT_GAP_M,
    RECEPTACLE_GAP_M,
    draw_layout,
)
from vla_align_ros.sim.shifts import SHIFTS, find_shift

seeds = st.integers(min_value=0, max_value=2**32)


@given(seeds)
def test_training_scenes_hold_only_training_things(seed: int) -> None:
    layout = draw_layout(seed, find_shift("none"))
    assert {thing.name for thing in layout.objects} <= set(catalogue.TRAIN_OBJECTS)
    assert {thing.name for thing in layout.receptacles} == set(catalogue.TRAIN_RECEPTACLES)
    assert layout.table in catalogue.TRAIN_TABLES
    assert layout.task.template in catalogue.TRAIN_TEMPLATES


@given(seeds)
def test_held_out_splits_share_nothing_with_training(seed: int) -> None:
    unseen = draw_layout(seed, find_shift("unseen_object"))
    assert not {thing.name for thing in unseen.objects} & set(catalogue.TRAIN_OBJECTS)
    table = draw_layout(seed, find_shift("unseen_table")).table
    assert table not in catalogue.TRAIN_TABLES
    words = draw_layout(seed, find_shift("unseen_words")).task.template
    assert words not in catalogue.TRAIN_TEMPLATES


@given(seeds)
def test_outer_positions_lie_outside_of_the_training_rectangle(seed: int) -> None:
    x_low, x_high, y_low, y_high = find_shift("none").objects_region_m
    for thing in draw_layout(seed, find_shift("outer_positions")).objects:
        assert not (x_low <= thing.x_m <= x_high and y_low <= thing.y_m <= y_high)


@given(seeds, st.sampled_from(sorted(SHIFTS)))
def test_a_layout_is_a_function_of_seed_and_shift(seed: int, shift: str) -> None:
    first, second = (draw_layout(seed, find_shift(shift)) for _ in range(2))
    assert first.objects == second.objects
    assert first.receptacles == second.receptacles
    assert first.task == second.task


def test_training_positions_span_15_by_15_cm() -> None:
    x_low, x_high, y_low, y_high = find_shift("none").objects_region_m
    assert x_high - x_low >= 0.15 and y_high - y_low >= 0.15


def test_the_catalogue_is_as_large_as_promised() -> None:
    assert len(catalogue.OBJECTS) >= 6 and len(catalogue.RECEPTACLES) >= 3
    assert len(catalogue.TRAIN_OBJECTS) >= 4 and len(catalogue.TRAIN_RECEPTACLES) >= 2


def test_every_shift_names_its_axis() -> None:
    axes = {shift.axis for name, shift in SHIFTS.items() if name != "none"}
    assert axes == {"semantic", "visual", "execution"}


def test_an_unknown_shift_lists_the_valid_ones() -> None:
    with pytest.raises(SimulationError, match="unseen_table"):
        find_shift("upside_down")


@given(seeds)
def test_a_moved_object_lands_where_nothing_lies(seed: int) -> None:
    layout = draw_layout(seed, find_shift("object_moved"))
    assert np.hypot(*layout.move_m) == pytest.approx(MOVE_LENGTH_M)
    (moved,) = (thing for thing in layout.objects if thing.name == layout.task.object)
    x, y = moved.x_m + layout.move_m[0], moved.y_m + layout.move_m[1]
    for thing in layout.objects:
        assert thing is moved or np.hypot(x - thing.x_m, y - thing.y_m) > OBJECT_GAP_M
    for thing in layout.receptacles:
        assert np.hypot(x - thing.x_m, y - thing.y_m) > RECEPTACLE_GAP_M
    # What else the seed decides is what it decides without the jump.
    still = draw_layout(seed, find_shift("none"))
    assert (layout.objects, layout.task, layout.light) == (still.objects, still.task, still.light)
