"""How far a build is and how long it may still take, from TensorRT's nested phases."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vla_align_ros.inference.tensorrt.library import Library

TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """A moment of a build.

    Attributes:
        fraction: done, 0 to 1; it never falls. phase: what is under way, as TensorRT calls it.
        elapsed_s: since the build began. left_s: a guess, the pace staying as it was; None at
        the start.
    """

    fraction: float
    phase: str
    elapsed_s: float
    left_s: float | None


Report = Callable[[BuildProgress], None]


@dataclass(slots=True)
class _Phase:
    steps: int
    parent: str | None
    done: int = 0
    children: dict[str, _Phase] = field(default_factory=dict)

    def fraction(self) -> float:
        """Return how much is done; what runs within the current step counts as part of it."""
        inner = max((child.fraction() for child in self.children.values()), default=0.0)
        return min(1.0, (self.done + inner) / self.steps)


class PhaseTracker:
    """Follows the phases; its calls may come from several threads of TensorRT.

    Args:
        report: called with each change. clock: seconds.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report, self._clock = report, clock
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._start = clock()
        self._fraction = 0.0
        self.cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase begins."""
        with self._lock:
            phase = _Phase(max(1, steps), parent)
            self._phases[name] = phase
            if parent in self._phases:
                self._phases[str(parent)].children[name] = phase
            self._tell(name)

    def step(self, name: str, step: int) -> bool:
        """Note that a step is done; False tells TensorRT to stop."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = max(phase.done, step + 1)
                phase.children.clear()
                self._tell(name)
            return not self.cancelled

    def finish(self, name: str) -> None:
        """Note that a phase ends, all steps done or not."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = phase.steps
                self._tell(name)
                del self._phases[name]

    def _tell(self, name: str) -> None:
        roots = [p.fraction() for p in self._phases.values() if p.parent not in self._phases]
        self._fraction = max(self._fraction, min(roots, default=self._fraction))
        elapsed = self._clock() - self._start
        left = elapsed * (1.0 / self._fraction - 1.0) if self._fraction > 0.0 else None
        self._report(BuildProgress(self._fraction, name, elapsed, left))


def make_monitor(library: Library, tracker: PhaseTracker) -> Any:
    """Return an IProgressMonitor of the library that feeds a tracker.

    An exception may not pass through TensorRT's own frames: one of a report stops the build.
    """
    trt = library.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guard(tracker.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return bool(self._guard(tracker.step, phase_name, step))

        def phase_finish(self, phase_name: str) -> None:
            self._guard(tracker.finish, phase_name)

        def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
            try:
                return call(*args) and self.failure is None
            except BaseException as failure:
                self.failure = failure
                tracker.cancelled = True
                return False

    return Monitor()


class ProgressLine:
    """Prints a build's progress: one line that is rewritten on a terminal, else one now and then.

    Args:
        name: of what is built.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._told = clock()
        self._live = sys.stderr.isatty()

    def __call__(self, progress: BuildProgress) -> None:
        """Show a moment of the build, unless one was shown just before."""
        now = self._clock()
        if now - self._told < (0.2 if self._live else TELL_EVERY_S):
            return
        self._told = now
        left = "" if progress.left_s is None else f", about {_tell_time(progress.left_s)} left"
        text = f"{self._name}: {100 * progress.fraction:3.0f} %{left} ({progress.phase})"
        end = "" if self._live else "\n"
        print(f"\r{text:<100.100}" if self._live else text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line that was rewritten."""
        if self._live:
            print(f"\r{'':<100}\r", end="", file=sys.stderr, flush=True)


def _tell_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
