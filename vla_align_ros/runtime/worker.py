"""Runs inference in its own thread on the newest frame only, so that no queue can grow old."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """One thread that works on the latest item put; an item replaced before its turn is dropped.

    `work` must not raise: what it cannot do it reports itself. If it does, that is told like what
    ends a thread, which goes on all the same. A thread is never restarted; make a new worker
    instead. By `nice` (0 to 19) the thread gives way to others of its process.
    """

    def __init__(
        self, work: Callable[[T], None], *, name: str = "inference", nice: int = 0
    ) -> None:
        self._work = work
        self._nice = nice
        self._ready = threading.Condition()
        self._item: T | None = None
        self._stopping = self._busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def busy(self) -> bool:
        """Whether it works on an item just now."""
        return self._busy

    @property
    def alive(self) -> bool:
        """Whether the thread still runs: true after `stop` only while `work` does not return."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: T) -> bool:
        """Offer an item; True if it replaced one that still waited."""
        with self._ready:
            replaced = self._item is not None
            self._item = item
            self._ready.notify()
            return replaced

    def drop(self) -> None:
        """Discard an item that still waits."""
        with self._ready:
            self._item = None

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end and wait for it; False if it is still busy after `timeout_s`."""
        with self._ready:
            self._stopping = True
            self._item = None
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        give_way(self._nice)
        while True:
            with self._ready:
                self._busy = False
                while self._item is None and not self._stopping:
                    self._ready.wait()
                if self._stopping:
                    return
                item, self._item = self._item, None
                self._busy = True
            if item is not None:
                self._work_on(item)

    def _work_on(self, item: T) -> None:
        try:
            self._work(item)
        except BaseException:
            told = threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
            threading.excepthook(told)


def give_way(nice: int) -> None:
    """Raise this thread's niceness by so much, where the system can tell threads apart (Linux)."""
    if sys.platform == "linux" and nice:
        thread = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, own + nice))
