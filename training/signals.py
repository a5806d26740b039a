"""Turns SIGTERM and SIGUSR1 (preemption, the end of a job's time) into a stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Remembers the first stop signal: `received` is its name, or None.

    Until `defer` is entered a signal ends the process at once with exit status 0: there is nothing
    to save before training, and what prepares it can be taken up again. Within `defer` it is only
    noted, so that the loop can finish its step, save, and leave.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._deferred = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if not self._deferred:
            raise SystemExit(0)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Only note signals from here on, to the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


@contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    """Install the handlers and put the earlier ones back; outside the main thread, do neither."""
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    earlier = {number: signal.signal(number, signals._note) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
