"""The loader delivers the sampler's batches in order, whatever the workers do and when it stops."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.loader import BatchLoader
from training.data.sampler import Draws, SampleSampler
from vla_align_ros.errors import DataError


def make(draws: Draws) -> dict[str, list[int]]:
    return {"rows": draws.indices.tolist()}


def plain(batches: int, skip: int = 0) -> list[list[int]]:
    sampler = SampleSampler(np.arange(23), 5, seed=3)
    return [sampler.next_indices().tolist() for _ in range(skip + batches)][skip:]


@settings(max_examples=30)
@given(
    workers=st.integers(0, 3),
    other=st.integers(0, 3),
    stop=st.integers(0, 9),
    ahead=st.integers(1, 4),
)
def test_a_stopped_loader_continues_with_what_was_not_delivered(
    workers: int, other: int, stop: int, ahead: int
) -> None:
    sampler = SampleSampler(np.arange(23), 5, seed=3)
    with BatchLoader(make, sampler, workers=workers, ahead=ahead) as loader:
        seen = [loader.next()["rows"] for _ in range(stop)]
        state = loader.state_dict()
    assert seen == plain(stop) and state["drawn"] == 5 * stop
    assert sampler.samples_drawn == 5 * stop  # what was prefetched is drawn again
    with BatchLoader(make, SampleSampler(np.arange(23), 5, seed=3), workers=other) as loader:
        loader.next()
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert [loader.next()["rows"] for _ in range(6)] == plain(6, stop)


def test_batches_come_in_order_though_workers_finish_out_of_order() -> None:
    def slow_first(draws: Draws) -> dict[str, int]:
        time.sleep(0.05 if draws.start == 0 else 0.0)
        return {"start": draws.start}

    with BatchLoader(slow_first, SampleSampler(np.arange(40), 4, seed=0), workers=2) as loader:
        assert [loader.next()["start"] for _ in range(6)] == [0, 4, 8, 12, 16, 20]


def test_workers_prepare_while_the_step_runs() -> None:
    made: list[int] = []
    ready = threading.Event()

    def note(draws: Draws) -> dict[str, int]:
        made.append(draws.start)
        if len(made) == 3:  # the batch asked for, and two behind it
            ready.set()
        return {"start": draws.start}

    with BatchLoader(note, SampleSampler(np.arange(40), 4, seed=0), workers=1) as loader:
        loader.next()
        assert ready.wait(10.0)
        assert sorted(made) == [0, 4, 8]  # and no more than that


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_where_its_batch_is_due(workers: int) -> None:
    def fail_at_third(draws: Draws) -> dict[str, int]:
        if draws.start == 8:
            raise DataError("The picture is damaged")
        return {"start": draws.start}

    sampler = SampleSampler(np.arange(40), 4, seed=0)
    with BatchLoader(fail_at_third, sampler, workers=workers) as loader:
        assert [loader.next()["start"] for _ in range(2)] == [0, 4]
        with pytest.raises(DataError, match="The picture is damaged"):
            loader.next()
        assert loader.state_dict()["drawn"] == 8
