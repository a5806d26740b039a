"""What is noted of an episode: outcome, times, a few pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as PillowImage

from training.benchmark.policies import Acting
from vla_align_ros.sim.robot import SimObservation

Picture = NDArray[np.uint8]

EXPERT = "expert"
FILM_HEIGHT_PX = 240


@dataclass(frozen=True)
class Record:
    """What came of one episode.

    `success` is at any step, `success_end` at the last one. `step_ms` is the median time of the
    physics and a picture of one step, `step_cpu_ms` what that took of the process's CPU time
    (other work on the machine does not count), `infer_ms` the time of one answer of the policy.
    """

    policy: str
    env: str
    seed: int
    instruction: str
    success: bool
    success_end: bool
    grasped: bool
    steps: int
    step_ms: float
    step_cpu_ms: float
    infer_ms: float | None
    pictures: list[Picture] = field(default_factory=list, compare=False, repr=False)

    def to_line(self) -> dict[str, Any]:
        """All but the pictures, for a line of JSON."""
        values = asdict(self)
        values.pop("pictures")
        return values


class Clock:
    """How long things take, in milliseconds by name."""

    def __init__(self) -> None:
        self._taken_ms: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Note how long the body takes."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        taken_ms = 1e3 * (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s)
        self._taken_ms.setdefault(name, []).append(taken_ms)

    def median_ms(self, *names: str) -> tuple[float, float]:
        """Sum over names of the median time and CPU time; 0 where nothing is noted."""
        medians = [np.median(self._taken_ms.get(name, [(0.0, 0.0)]), axis=0) for name in names]
        wall, cpu = np.sum(medians, axis=0)
        return float(wall), float(cpu)


@dataclass
class Notes:
    """What an episode leaves behind while it runs; with `keep` a film of it, too."""

    keep: bool = False
    clock: Clock = field(default_factory=Clock)
    pictures: list[Picture] = field(default_factory=list)

    def look(self, sim: Sim) -> SimObservation:
        """Observe, and note the time."""
        with self.clock.timing("look"):
            seen = sim.observe()
        assert seen.image is not None
        return seen

    def film(self, sim: Sim) -> None:
        """Keep a picture of now for people, off the clock and small."""
        if not self.keep:
            return
        image = sim.observe().image
        assert image is not None
        height, width = image.shape[:2]
        if height > FILM_HEIGHT_PX:
            size = (2 * round(width * FILM_HEIGHT_PX / height / 2), FILM_HEIGHT_PX)
            image = np.asarray(PillowImage.fromarray(image).resize(size))
        self.pictures.append(image)


class Sim(Protocol):
    """What both simulators offer."""

    def observe(self) -> SimObservation:
        """Picture and proprioception of now."""

    def advance(self, action: ArrayLike) -> None:
        """One step."""


def make_record(
    policy: Acting | None,
    env: str,
    seed: int,
    words: str,
    outcome: tuple[bool, bool, bool],
    steps: int,
    notes: Notes,
) -> Record:
    """The record of an episode; `outcome` is success at any step, at the last one, and grasped."""
    success, success_end, grasped = outcome
    wall_ms, cpu_ms = notes.clock.median_ms("advance", "look")
    return Record(
        policy=EXPERT if policy is None else policy.bundle_id,
        env=env,
        seed=seed,
        instruction=words,
        success=bool(success),
        success_end=bool(success_end),
        grasped=bool(grasped),
        steps=steps,
        step_ms=wall_ms,
        step_cpu_ms=cpu_ms,
        infer_ms=None if policy is None else notes.clock.median_ms("infer")[0],
        pictures=notes.pictures,
    )
