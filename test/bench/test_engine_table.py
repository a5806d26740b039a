"""Figures of engines measured side by side: ratios by round, the best that is proved, the table."""

from __future__ import annotations

import numpy as np
import pytest

from vla_align_ros.bench.engine_table import find_best, summarise_rows, write_table


def make_row(label, times_ms, *, ok=True, backend="onnx"):
    """times_ms: a list of rounds, each a list of latencies; the processor takes half of each."""
    rounds = [[(ms / 1e3, ms / 2e3) for ms in turn] for turn in times_ms]
    return {
        **{"label": label, "backend": backend, "precision": "fp32", "rounds": rounds},
        **{"first": (rounds[0][0][0] * 1.2, rounds[0][0][1] * 1.2), "load_s": 1.0},
        **{"warm_up_s": 0.5, "memory_mb": 100.0, "size_mb": 3.0, "proof": {"ok": ok}},
    }


def test_a_busy_round_counts_once_and_for_both():
    quiet = [[10.0, 10.0, 10.0]] * 4
    slow = make_row("torch", [*quiet, [1000.0] * 3], backend="torch")
    fast = make_row("fast", [[ms / 4 for ms in turn] for turn in [*quiet, [1000.0] * 3]])
    first, second = summarise_rows([slow, fast])
    assert first["speedup"] == 1.0
    assert second["speedup"] == pytest.approx(4.0) == second["cpu_speedup"]
    assert second["speedup_quartiles"] == pytest.approx([4.0, 4.0])


def test_quantiles_are_those_of_all_inferences():
    times = np.arange(1.0, 101.0)
    (row,) = summarise_rows([make_row("torch", times.reshape(10, 10).tolist())])
    assert row["inferences"] == 100
    assert (row["p50_ms"], row["p90_ms"]) == pytest.approx((50.5, 90.1))
    assert row["p99_ms"] == pytest.approx(99.01)
    assert row["cpu_ms"] == pytest.approx(25.25)


def test_the_best_is_proved_and_not_torch():
    rows = summarise_rows(
        [
            make_row("torch", [[8.0]], backend="torch"),
            make_row("torch_bf16", [[1.0]], backend="torch_bf16"),
            make_row("wrong", [[2.0]], ok=False),
            make_row("right", [[4.0]]),
        ]
    )
    best = find_best(rows)
    assert best is not None and best["label"] == "right" and best["speedup"] == pytest.approx(2.0)
    assert find_best(rows[:3]) is None


def test_the_table_says_what_failed():
    rows = summarise_rows([make_row("torch", [[8.0]]), make_row("wrong", [[2.0]], ok=False)])
    lines = write_table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "passed" in lines[2] and "FAILED" in lines[3]
