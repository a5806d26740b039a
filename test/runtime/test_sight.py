"""Sight at run time: costs nothing unwanted, never hurries, and stops the arm only where asked."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rig import Panic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ros"))

import tiny_policy

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.observation import Observation
from vla_align_ros.errors import BundleError
from vla_align_ros.runtime.heatmap import overlay
from vla_align_ros.runtime.observing import Sight
from vla_align_ros.runtime.sight import SightGraph, SightLoop, SightReading, Wants, relate

PERIOD_S = 1.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(tiny_policy.write_tiny_bundle(tmp_path_factory.mktemp("s"), sight=True))


def picture(grey: int, bright_corner: int | None = None) -> np.ndarray:
    pixels = np.full((16, 16, 3), grey, np.uint8)
    if bright_corner is not None:
        pixels[:8, 8:] = bright_corner
    return pixels


def observe(pixels: np.ndarray, instruction: str = tiny_policy.CARROT) -> Observation:
    return Observation({"front": pixels}, None, instruction, 5.0)


def test_grey_is_familiar_and_light_is_not(bundle: Bundle) -> None:
    graph = SightGraph(bundle)
    familiar = graph.look(observe(picture(128)))
    assert familiar.distance == pytest.approx(0.0, abs=1e-3)
    assert not familiar.unfamiliar and familiar.maps is None
    strange = graph.look(observe(picture(200)))
    assert strange.distance == pytest.approx(np.sqrt(3) * (200 - 128) / 255 / 0.1, rel=1e-3)
    assert strange.unfamiliar
    graph.close()


def test_the_map_shows_where_the_words_look_more_than_the_neutral_ones(bundle: Bundle) -> None:
    graph = SightGraph(bundle)
    reading = graph.look(observe(picture(50, bright_corner=250)), attention=True)
    assert reading.maps is not None
    weights = reading.maps["front"]
    assert weights.shape == (2, 2)
    assert weights.argmax() == 1 and weights[0, 1] > 1.0 > weights[0, 0]
    graph.close()


def test_a_bundle_without_the_graph_says_what_adds_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plain = Bundle.open(tiny_policy.write_tiny_bundle(tmp_path_factory.mktemp("plain")))
    with pytest.raises(BundleError, match="vla-align sight fit"):
        SightGraph(plain)


def test_relative_attention_has_no_ratio_over_nothing() -> None:
    ratio = relate([0.0, 0.0, 0.3], [0.0, 0.1, 0.1])
    assert np.isfinite(ratio).all() and ratio.argmax() == 2
    np.testing.assert_allclose(relate([1, 2, 3], [2, 4, 6]), 1.0, rtol=1e-6)


def test_a_map_is_laid_over_a_picture_of_any_size() -> None:
    weights = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
    shown = overlay(picture(0), weights, 60, 40)
    assert shown.shape == (40, 60, 3)
    assert shown[5, 55].sum() > shown[35, 5].sum()


class FakeGraph:
    """Looks as long as it is told to, and counts."""

    def __init__(self) -> None:
        self.looks: list[bool] = []
        self.closed = False
        self.distance = 1.0
        self.error: BaseException | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.statistics = tiny_policy.make_sight_statistics()

    def look(self, observation: Observation, *, attention: bool = False) -> SightReading:
        self.go_on.wait(5.0)
        if self.error is not None:
            raise self.error
        self.looks.append(attention)
        return SightReading(observation, self.distance, 3.0)

    def close(self) -> None:
        self.closed = True


class Desk:
    """A loop around a fake graph, on a clock that the test turns."""

    def __init__(self, *, insist: bool = False) -> None:
        self.now_s = 100.0
        self.wants = Wants()
        self.graph = FakeGraph()
        self.opened = 0
        self.readings: list[SightReading] = []
        self.errors: list[BaseException] = []
        self.loop = SightLoop(
            self._open,
            lambda: self.wants,
            period_s=PERIOD_S,
            steady=lambda: self.now_s,
            insist=insist,
            on_reading=self.readings.append,
            on_error=self.errors.append,
        )

    def _open(self) -> Any:
        self.opened += 1
        return self.graph

    def offer(self, instruction: str | None = "go") -> None:
        self.loop.offer(Sight({"front": lambda: picture(9)}, 1.0, self.now_s, None), instruction)

    def wait(self, happened: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 5.0
        while not happened():
            assert time.monotonic() < end_s
            time.sleep(0.005)


def count_threads() -> int:
    return sum(thread.name == "sight" for thread in threading.enumerate())


def test_nothing_is_opened_and_no_thread_runs_while_nobody_wants_it() -> None:
    before, desk = count_threads(), Desk()
    for _ in range(50):
        desk.offer()
        desk.now_s += 0.5
    assert desk.opened == 0 and count_threads() == before
    desk.loop.close()


def test_it_looks_no_more_often_than_its_rate() -> None:
    desk = Desk()
    desk.wants = Wants(familiarity=True)
    for tick in range(100):
        desk.offer()
        desk.wait(lambda: desk.loop.readings >= 1 + tick // 10)  # noqa: B023
        desk.now_s += 0.1001
    assert desk.loop.readings == 10 and desk.opened == 1
    desk.loop.close()
    assert desk.graph.closed


def test_attention_is_computed_only_for_who_wants_it_and_only_with_words() -> None:
    desk = Desk()
    for wants, words in (
        (Wants(familiarity=True), "go"),
        (Wants(attention=True), "go"),
        (Wants(attention=True), None),
    ):
        desk.wants = wants
        looks = len(desk.graph.looks)
        desk.offer(words)
        desk.wait(lambda: len(desk.graph.looks) > looks)  # noqa: B023
        desk.now_s += 2 * PERIOD_S
    assert desk.graph.looks == [False, True, False]
    desk.loop.close()


@pytest.mark.parametrize("error", [RuntimeError("no"), Panic("no")])
def test_an_error_is_told_and_the_next_look_is_made(error: BaseException) -> None:
    desk = Desk()
    desk.wants = Wants(familiarity=True)
    desk.graph.error = error
    desk.offer()
    desk.wait(lambda: desk.loop.errors == 1)
    assert str(desk.errors[0]) == "no" and desk.loop.newest is None
    desk.graph.error, desk.now_s = None, desk.now_s + PERIOD_S
    desk.offer()
    desk.wait(lambda: desk.loop.newest is not None)
    desk.loop.close()


def test_a_scene_stops_the_arm_only_where_that_is_insisted_on() -> None:
    for insist in (False, True):
        desk = Desk(insist=insist)
        desk.wants, desk.graph.distance = Wants(familiarity=True), 9.0
        desk.offer()
        desk.wait(lambda: desk.loop.readings == 1)  # noqa: B023
        assert desk.loop.newest is not None and desk.loop.newest.unfamiliar
        why = desk.loop.explain_strange()
        assert (why is not None) == insist
        assert why is None or "9.00" in why
        desk.loop.close()


def test_who_insists_holds_before_the_first_look_and_when_looks_cease() -> None:
    desk = Desk(insist=True)
    desk.wants = Wants(familiarity=True)
    assert "not measured" in str(desk.loop.explain_strange())
    desk.offer()
    desk.wait(lambda: desk.loop.readings == 1)
    assert desk.loop.explain_strange() is None
    desk.graph.go_on.clear()  # the engine hangs
    desk.now_s += PERIOD_S
    desk.offer()
    assert desk.loop.explain_strange() is None, "one reading late is not yet too late"
    desk.now_s += 3.5 * PERIOD_S
    assert "not measured for 4.5 s" in str(desk.loop.explain_strange())
    desk.graph.go_on.set()
    desk.wait(lambda: desk.loop.readings == 2)
    assert "not measured" in str(desk.loop.explain_strange()), "it looked at an old picture"
    desk.loop.close()


def test_what_was_seen_before_a_new_start_does_not_count() -> None:
    desk = Desk(insist=True)
    desk.wants = Wants(familiarity=True)
    desk.graph.go_on.clear()
    desk.offer()
    desk.now_s += 0.5
    desk.loop.clear()
    desk.graph.go_on.set()
    desk.wait(lambda: desk.loop.readings == 1)
    assert "not measured" in str(desk.loop.explain_strange())
    desk.loop.close()
