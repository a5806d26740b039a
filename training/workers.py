"""What every process that simulates for another one begins with."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def follow_parent() -> None:
    """End with the process that started this one, however it ends, and leave Ctrl-C to it.

    A parent that SIGTERM or SIGKILL ends takes its pool down with nothing: its workers would
    wait for their next task for ever, with a simulator in memory each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
