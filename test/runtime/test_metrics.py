"""Metrics say what was measured, under names that programs rely on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.runtime.metrics import STAGES, WINDOW, Metrics


def test_without_samples_nothing_is_claimed() -> None:
    metrics = Metrics()
    metrics.tick("command", 1.0)
    assert metrics.snapshot() == {}
    assert metrics.percentile_ms("infer", 50) is None
    assert metrics.counted("frames_received") == 0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_percentiles_are_those_of_the_samples(samples: list[float]) -> None:
    metrics = Metrics()
    for sample in samples:
        metrics.observe_ms("infer", sample)
    figures = metrics.snapshot()
    assert set(figures) == {"latency_infer_p50_ms", "latency_infer_p99_ms"}
    assert figures["latency_infer_p50_ms"] == pytest.approx(np.percentile(samples, 50))
    assert figures["latency_infer_p99_ms"] == pytest.approx(np.percentile(samples, 99))
    assert metrics.percentile_ms("infer", 99) == figures["latency_infer_p99_ms"]


def test_every_stage_of_the_path_has_a_name() -> None:
    metrics = Metrics()
    for stage in STAGES:
        metrics.observe_ms(stage, 1.0)
    assert set(metrics.snapshot()) == {
        f"latency_{stage}_{p}_ms"
        for stage in ("transport", "wait", "prepare", "infer", "decode", "total")
        for p in ("p50", "p99")
    } | {"total_latency_sum_ms", "total_latency_count"}


def test_the_mean_between_two_looks_is_known_whatever_the_window_holds() -> None:
    metrics = Metrics()
    for _ in range(WINDOW):
        metrics.observe_ms("total", 60.0)
    before = metrics.snapshot()
    for _ in range(10):
        metrics.observe_ms("total", 120.0)
    after = metrics.snapshot()
    assert after["latency_total_p50_ms"] == 60.0, "minutes of plans hide the last ten"
    plans = after["total_latency_count"] - before["total_latency_count"]
    assert plans == 10
    assert (after["total_latency_sum_ms"] - before["total_latency_sum_ms"]) / plans == 120.0


def test_old_samples_leave_the_window() -> None:
    metrics = Metrics()
    metrics.observe_ms("infer", 1e6)
    for _ in range(WINDOW):
        metrics.observe_ms("infer", 1.0)
    assert metrics.percentile_ms("infer", 100) == 1.0


def test_a_pause_is_no_interval() -> None:
    metrics = Metrics()
    for now_s in (0.0, 0.05, 0.10):
        metrics.tick("command", now_s)
    metrics.pause("command")
    for now_s in (60.0, 60.05, 60.12):
        metrics.tick("command", now_s)
    figures = metrics.snapshot()
    assert figures["command_rate_hz"] == pytest.approx(4 / 0.22)
    assert figures["command_jitter_p50_ms"] == pytest.approx(0.0, abs=1e-6)
    assert figures["command_jitter_p99_ms"] == pytest.approx(20.0, rel=0.05)


def test_two_threads_lose_no_count() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(2000):
            metrics.count("frames_received")
            metrics.observe_ms("wait", 1.0)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics.snapshot()
    assert metrics.counted("frames_received") == 4000
