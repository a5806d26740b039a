"""Samples of one instant find each other by their stamps, whatever comes when."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.sync import KEPT_SAMPLES, Sample, Synchroniser

TOLERANCE_S = 0.03


def make(*names: str, tolerance_s: float = TOLERANCE_S) -> Synchroniser[str]:
    return Synchroniser(names or ("a", "b"), tolerance_s)


def put(sync: Synchroniser[str], name: str, stamp_s: float) -> dict[str, float] | None:
    found = sync.put(name, Sample(f"{name}{stamp_s}", stamp_s, 0.0))
    return None if found is None else {name: seen.stamp_s for name, seen in found.items()}


def test_every_sample_of_a_single_source_is_a_set() -> None:
    sync = make("a")
    assert [put(sync, "a", s) for s in (1.0, 1.1, 1.1)] == [{"a": 1.0}, {"a": 1.1}, {"a": 1.1}]


def test_two_of_one_instant_are_a_set_as_soon_as_the_second_is_there() -> None:
    sync = make()
    assert put(sync, "a", 1.0) is None
    assert put(sync, "b", 1.0) == {"a": 1.0, "b": 1.0}
    assert put(sync, "a", 1.1) is None
    assert put(sync, "b", 1.1) == {"a": 1.1, "b": 1.1}


def test_the_nearest_neighbour_is_taken_not_the_first_within_the_tolerance() -> None:
    sync = make(tolerance_s=0.1)
    put(sync, "b", 0.967)
    put(sync, "a", 1.0)  # the same instant as b 1.0, which is still under way
    assert put(sync, "b", 1.0) == {"a": 1.0, "b": 1.0}


def test_the_nearest_is_taken_on_either_side() -> None:
    for before, after, nearest in ((0.9805, 1.02, 0.9805), (0.98, 1.0195, 1.0195)):
        sync = make()
        put(sync, "a", before)
        put(sync, "a", after)
        assert put(sync, "b", 1.0) == {"a": nearest, "b": 1.0}


def test_a_stamp_that_is_repeated_does_not_push_out_what_came_before_it() -> None:
    sync = make()
    for stamp_s in (0.9, 1.0, 1.0):
        put(sync, "a", stamp_s)
    assert put(sync, "b", 0.9) == {"a": 0.9, "b": 0.9}


def test_what_is_known_is_no_set_again() -> None:
    sync = make()
    put(sync, "a", 1.0)
    assert put(sync, "b", 1.0)
    assert put(sync, "a", 1.1) is None, "b has nothing newer yet"


def test_the_tolerance_itself_is_within_it() -> None:
    sync = make(tolerance_s=0.5)
    put(sync, "a", 1.0)
    assert put(sync, "b", 1.5) == {"a": 1.0, "b": 1.5}


def test_the_slowest_source_sets_the_pace() -> None:
    sync = make()
    sets = []
    for k in range(31):
        sets.append(put(sync, "a", k / 30))
        if k % 3 == 0:
            sets.append(put(sync, "b", k / 30))
    found = [s for s in sets if s is not None]
    assert [s["b"] for s in found] == pytest.approx([k / 10 for k in range(11)])
    assert all(s["a"] == s["b"] for s in found)


def test_what_lies_further_apart_is_no_set_and_the_distance_is_told() -> None:
    sync = make()
    put(sync, "a", 1.0)
    assert put(sync, "b", 1.04) is None
    assert sync.spread_s == pytest.approx(0.04)


def test_a_source_whose_clock_goes_back_starts_anew() -> None:
    sync = make()
    put(sync, "a", 100.0)
    assert put(sync, "b", 100.0)
    assert put(sync, "a", 5.0) is None
    assert put(sync, "b", 5.0) == {"a": 5.0, "b": 5.0}


def test_nothing_is_put_together_with_what_was_before_clear() -> None:
    sync = make()
    put(sync, "a", 1.0)
    sync.clear()
    assert put(sync, "b", 1.0) is None and sync.spread_s is None
    assert put(sync, "a", 1.0) == {"a": 1.0, "b": 1.0}
    sync.clear()
    assert sync.spread_s is None


def test_a_silent_source_does_not_let_the_others_pile_up() -> None:
    sync = make()
    for k in range(1000):
        put(sync, "a", k / 30)
    assert len(sync._recent["a"]) == KEPT_SAMPLES
    for k in range(1000):
        put(sync, "a", 40 + k / 30)
        put(sync, "b", 40 + k / 30)
    assert len(sync._recent["a"]) + len(sync._recent["b"]) <= 4


@pytest.mark.parametrize("tolerance_s", [0.0, -1.0, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance_s: float) -> None:
    with pytest.raises(ConfigurationError, match="sync_tolerance_s"):
        make(tolerance_s=tolerance_s)


@given(
    periods=st.tuples(*[st.floats(0.01, 0.2)] * 3),
    phases=st.tuples(*[st.floats(0.0, 0.2)] * 3),
    delays=st.tuples(*[st.floats(0.0, 0.1)] * 3),
    lost=st.sets(st.integers(0, 200)),
)
def test_sets_are_close_whole_fresh_and_never_go_back(
    periods: tuple[float, ...],
    phases: tuple[float, ...],
    delays: tuple[float, ...],
    lost: set[int],
) -> None:
    names = ("a", "b", "c")
    sync = make(*names)
    sent = [
        (phases[i] + k * periods[i] + delays[i], name, phases[i] + k * periods[i])
        for i, name in enumerate(names)
        for k in range(int(2.0 / periods[i]))
    ]
    arrived: dict[str, list[float]] = {name: [] for name in names}
    oldest_s = -math.inf
    for number, (_, name, stamp_s) in enumerate(sorted(sent)):
        if number in lost:
            continue
        arrived[name].append(stamp_s)
        found = put(sync, name, stamp_s)
        if found is None:
            continue
        assert tuple(found) == names
        assert max(found.values()) - min(found.values()) <= TOLERANCE_S
        assert all(found[name] in arrived[name] for name in names)
        assert min(found.values()) >= oldest_s
        oldest_s = min(found.values())


@given(phase=st.floats(0.0, 1 / 30), delay=st.floats(0.0, 0.05))
def test_two_cameras_of_one_rate_give_a_set_for_every_picture(phase: float, delay: float) -> None:
    sync = make(tolerance_s=1 / 60 + 1e-3)
    sent = [(k / 30, "a", k / 30) for k in range(60)]
    sent += [(k / 30 + phase + delay, "b", k / 30 + phase) for k in range(60)]
    sets = [put(sync, name, stamp_s) for _, name, stamp_s in sorted(sent)]
    found = [s for s in sets if s is not None]
    assert len(found) >= 57
    steps = np.diff([s["a"] for s in found])
    assert (steps >= 0).all() and steps.max() < 1.5 / 30
    assert len(set(itertools.chain(s["b"] for s in found))) >= 57
