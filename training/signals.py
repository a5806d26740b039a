"""Turns SIGTERM, SIGUSR1 and a first Ctrl-C into a stop between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # preemption, the end of a job's time
# A Ctrl-C that comes sooner after another is the same one by another way: the terminal sends it
# to every process, and torchrun passes its own on.
SAME_S = 1.0
STDERR = 2


class StopSignals:
    """Remembers the first stop signal: `received` is its name, or None.

    Until `defer` is entered a signal ends the process at once with exit status 0, and Ctrl-C as it
    ever does: there is nothing to save before training, and what prepares it can be taken up again.
    Within `defer` it is only noted, so that the loop can finish its step, save, and leave. A second
    Ctrl-C waits for nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.interrupted_s: float | None = None
        """When the first Ctrl-C came, by the monotonic clock."""
        self._deferred = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if not self._deferred:
            raise SystemExit(0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self._deferred:
            raise KeyboardInterrupt
        if self.interrupted_s is None:
            self.interrupted_s = now_s
            self.received = self.received or "Ctrl-C"
            told = "Ctrl-C: what is under way is saved first; another one waits for nothing"
            os.write(STDERR, f"\n{told}\n".encode())  # print might be at work
        elif now_s - self.interrupted_s > SAME_S:
            raise KeyboardInterrupt

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
    """Install the handlers and put the earlier ones back; outside the main thread, do neither.

    A Ctrl-C that was noted is raised as KeyboardInterrupt at the end of the block: whatever called
    this is meant, too. Where Ctrl-C is ignored or means something else already, it is left alone.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    earlier = {number: signal.signal(number, signals._note) for number in SIGNALS}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        earlier[signal.SIGINT] = signal.signal(signal.SIGINT, signals._interrupt)
    try:
        yield signals
        if signals.interrupted_s is not None:
            raise KeyboardInterrupt
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
