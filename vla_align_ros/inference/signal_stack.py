"""Keeps a library from leaving a signal's stack behind that is freed before the signal comes.

OpenVINO gives the thread that compiles a graph an alternate signal stack (sigaltstack(2)) and frees
its memory later: the next signal, a Ctrl-C, say, then ends the process by a segmentation fault
before the arm was told to stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_DISABLED = 2  # SS_DISABLE of Linux


class _Stack(ctypes.Structure):
    """stack_t of Linux: where it lies, its flags, its size in bytes."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Give this thread back, at the end, the alternate signal stack that it had (or none)."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    before = _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if before.flags & _DISABLED:
            before = _Stack(None, _DISABLED, 0)
        libc.sigaltstack(ctypes.byref(before), None)


def signal_stack_size() -> int:
    """Return the bytes of this thread's alternate signal stack, 0 if it has none."""
    now = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return 0 if now.flags & _DISABLED else int(now.size)
