"""One thread on the newest item: what is replaced, who knows it works, whom it gives way to."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from rig import Panic

from vla_align_ros.runtime.worker import LatestWorker

WAIT_S = 5.0


def test_only_the_newest_of_what_waits_is_worked_on() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        begun.set()
        assert go.wait(WAIT_S)
        if item == 3:
            done.set()

    worker = LatestWorker(work)
    assert not worker.busy
    worker.start()
    assert not worker.put(1)
    assert begun.wait(WAIT_S)
    assert worker.busy
    assert [worker.put(2), worker.put(3)] == [False, True]
    go.set()
    assert done.wait(WAIT_S)
    assert worker.stop(WAIT_S)
    assert seen == [1, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="niceness belongs to threads on Linux alone")
def test_only_its_own_thread_gives_way() -> None:
    found: list[int] = []
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    done = threading.Event()

    def work(_: int) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        done.set()

    worker = LatestWorker(work, nice=5)
    worker.start()
    worker.put(0)
    assert done.wait(WAIT_S)
    assert worker.stop(WAIT_S)
    assert found == [min(19, own + 5)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_work_that_raises_all_the_same_is_told_and_the_next_item_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    done = [threading.Event(), threading.Event()]

    def work(item: int) -> None:
        done[item].set()
        if item == 0:
            raise Panic("no")

    worker = LatestWorker(work)
    worker.start()
    for item in range(2):
        worker.put(item)
        assert done[item].wait(WAIT_S)
    assert worker.stop(WAIT_S)
    assert not worker.busy
    assert [found.exc_type for found in told] == [Panic]
