"""Lateness is held against a timer's own schedule; plots are whole SVG; the soak judges growth."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.bench.figures import find_lateness, percentiles
from vla_align_ros.bench.plots import draw_course, draw_distribution
from vla_align_ros.errors import SimulationError
from vla_align_ros.runtime.metrics import Metrics

soak = pytest.importorskip("vla_align_ros.bench.soak", reason="ROS 2 is not installed")
realtime = pytest.importorskip("vla_align_ros.bench.realtime", reason="ROS 2 is not installed")
PERIOD_S = 0.02


def tick_all(times: list[float]) -> list[tuple[str, float]]:
    return [("tick", time_s) for time_s in times]


def test_a_punctual_timer_is_not_late() -> None:
    found = find_lateness(tick_all([k * PERIOD_S for k in range(50)]), PERIOD_S, 0.0, 10.0)
    assert found.missed == 0
    assert max(found.late_ms) < 1e-6


@given(st.lists(st.floats(0.0, 0.015), min_size=2, max_size=50))
def test_each_delay_is_found_up_to_the_smallest(delays: list[float]) -> None:
    times = [1.0 + k * PERIOD_S + delay for k, delay in enumerate(delays)]
    found = find_lateness(tick_all(times), PERIOD_S, 0.0, 100.0)
    np.testing.assert_allclose(found.late_ms, 1e3 * (np.array(delays) - min(delays)), atol=1e-6)
    assert found.missed == 0


def test_a_blocked_timer_is_late_once_and_misses_the_rest() -> None:
    # Due at 0.04, called at 0.13: the calls of 0.06 .. 0.12 never come, the next is that of 0.14.
    found = find_lateness(tick_all([0.0, 0.02, 0.13, 0.14, 0.16]), PERIOD_S, 0.0, 1.0)
    np.testing.assert_allclose(found.late_ms, [0, 0, 90, 0, 0], atol=1e-6)
    assert found.missed == 4


def test_a_reset_starts_a_schedule_anew() -> None:
    ticks = [("tick", 0.0), ("tick", 0.02), ("reset", 0.031), ("tick", 0.053)]
    found = find_lateness(ticks, PERIOD_S, 0.0, 1.0)
    np.testing.assert_allclose(found.late_ms, [0, 0, 2], atol=1e-6)


def test_only_the_asked_time_counts() -> None:
    ticks = tick_all([0.0, 0.02, 0.09, 0.10, 0.12])
    assert len(find_lateness(ticks, PERIOD_S, 0.095, 1.0).late_ms) == 2
    assert find_lateness(ticks, PERIOD_S, 5.0, 6.0).late_ms == ()


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles([])["p99"] is None
    assert percentiles([1.0, 2.0, 3.0])["p50"] == 2.0


def test_plots_are_svg_and_escape_their_words() -> None:
    for svg in (
        draw_distribution("a < b", {"ours & mine": [0.1, 2.0, 30.0], "none": []}),
        draw_course("a < b", "MiB", [0.0, 1.0], [10.0, 11.0]),
    ):
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert len(root.findall("{*}polyline")) == 1


def sample(time_s: float, rss_mib: float) -> dict[str, Any]:
    return {
        "time_s": time_s,
        "rss_mib": rss_mib,
        "total_ms_sum": 600.0 * time_s,
        "plans": 10 * time_s,
    }


def soaked(latency_ms: Callable[[float], float], seconds: float = 600.0) -> list[dict[str, Any]]:
    """Samples as a node gives them that plans ten times a second for so long."""
    metrics, samples = Metrics(), []
    for plan in range(1, int(10 * seconds) + 1):
        metrics.observe_ms("total", latency_ms(plan / 10.0))
        if plan % 50 == 0:
            figures = metrics.snapshot()
            sums = {"total_ms_sum": figures["total_latency_sum_ms"]}
            plans = {"plans": figures["total_latency_count"]}
            samples.append({"time_s": plan / 10.0, "rss_mib": 200.0, **sums, **plans})
    return samples


def test_the_soak_tells_a_slowing_that_the_nodes_own_percentiles_hide() -> None:
    assert soak._judge(soaked(lambda time_s: 60.0))["latency_ratio"] == 1.0
    doubled = soaked(lambda time_s: 60.0 if time_s <= 420.0 else 120.0)
    verdict = soak._judge(doubled)
    assert verdict["ok"] is False and verdict["latency_ratio"] == pytest.approx(2.0)
    assert soak._judge(soaked(lambda time_s: 60.0 + 0.1 * time_s))["ok"] is False


def test_the_soak_commands_with_the_priority_of_the_other_measurements() -> None:
    assert soak.SETUP.parameters["thread_priority"] == realtime.PRIORITY > 0


def test_the_soak_tells_a_leak_and_a_slowing_from_a_steady_run() -> None:
    times = [5.0 * k for k in range(1, 121)]
    steady = [sample(time_s, 200.0 + 0.3 * (k % 2)) for k, time_s in enumerate(times)]
    assert soak._judge(steady)["ok"] is True
    leak = [sample(time_s, 200.0 + 0.02 * time_s) for time_s in times]
    verdict = soak._judge(leak)
    assert verdict["ok"] is False
    assert verdict["rss_slope_mib_per_hour"] == pytest.approx(72.0)
    with pytest.raises(SimulationError, match="too short"):
        soak._judge(steady[:2])
