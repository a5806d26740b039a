"""Draws an episode's scene from a seed: what lies where, on which table, in which light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim import catalogue
from vla_align_ros.sim.shifts import Region, Shift

Array = NDArray[np.float64]

START_POSITION_M = np.array([0.22, 0.0, 0.16])
OBJECT_YAW_RAD = 0.6
RECEPTACLE_X_M = (0.26, 0.37)
RECEPTACLE_Y_M = (0.155, 0.185)
OBJECT_GAP_M = 0.075
RECEPTACLE_GAP_M = 0.100
MOVE_LENGTH_M = 0.06


@dataclass(frozen=True)
class Task:
    """One thing to do: put `object` on `receptacle`, said in the words of `template`."""

    object: str
    receptacle: str
    template: str = catalogue.TRAIN_TEMPLATES[0]

    @property
    def instruction(self) -> str:
        """The sentence given to the policy."""
        return self.template.format(object=self.object, receptacle=self.receptacle)


@dataclass(frozen=True)
class Placed:
    """A thing on the table: its catalogue name, position (m) and yaw (rad) in the base frame."""

    name: str
    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True)
class Layout:
    """All that a seed decides about an episode."""

    objects: tuple[Placed, ...]
    receptacles: tuple[Placed, ...]
    table: int
    light: float
    task: Task
    tasks: tuple[Task, ...]
    start_position_m: Array
    start_yaw_rad: float
    camera_offset_m: Array
    move_m: Array
    overlay_seed: int


def draw_layout(seed: int, shift: Shift) -> Layout:
    """The scene of `seed` under `shift`; the same arguments give the same scene everywhere."""
    rng = np.random.default_rng(seed)
    named = list(rng.choice(shift.objects, size=2, replace=False))
    extra = [name for name in shift.distractors if name not in named]
    distractors = list(rng.choice(extra, size=2, replace=False)) if extra else []
    vessels = list(rng.choice(shift.receptacles, size=2, replace=False))
    receptacles = _place_receptacles(vessels, rng)
    objects = _place_objects([*named, *distractors], receptacles, shift, rng)
    template = str(rng.choice(shift.templates))
    tasks = tuple(Task(str(thing), str(vessel), template) for thing in named for vessel in vessels)
    move_m = _turn_move(rng)
    table, light = int(rng.choice(shift.tables)), float(rng.uniform(*shift.light))
    task = tasks[int(rng.integers(len(tasks)))]
    if shift.move_at_s is not None:
        # Its own numbers: what else the seed decides stays.
        move_m = _keep_clear(move_m, task, objects, receptacles, np.random.default_rng((seed, 1)))
    return Layout(
        objects=objects,
        receptacles=receptacles,
        table=table,
        light=light,
        task=task,
        tasks=tasks,
        start_position_m=START_POSITION_M + rng.uniform(-1, 1, 3) * shift.start_jitter_m,
        start_yaw_rad=float(rng.uniform(-1, 1)) * shift.start_yaw_rad,
        camera_offset_m=rng.uniform(-1, 1, 3) * shift.camera_jitter_m,
        move_m=move_m,
        overlay_seed=int(rng.integers(2**31)),
    )


def _place_receptacles(names: list[str], rng: np.random.Generator) -> tuple[Placed, ...]:
    side = 1.0 if rng.random() < 0.5 else -1.0
    return tuple(
        Placed(
            str(name),
            float(rng.uniform(*RECEPTACLE_X_M)),
            float(sign * rng.uniform(*RECEPTACLE_Y_M)),
            0.0,
        )
        for name, sign in zip(names, (side, -side), strict=True)
    )


def _place_objects(
    names: list[str],
    receptacles: tuple[Placed, ...],
    shift: Shift,
    rng: np.random.Generator,
) -> tuple[Placed, ...]:
    for _ in range(200):
        placed: list[Placed] = []
        for name in names:
            spot = _find_spot(placed, receptacles, shift, rng)
            if spot is None:
                break
            yaw = float(rng.uniform(-OBJECT_YAW_RAD, OBJECT_YAW_RAD))
            placed.append(Placed(str(name), *spot, yaw))
        if len(placed) == len(names):
            return tuple(placed)
    raise SimulationError(
        "The objects do not fit on the table",
        got=f"{len(names)} objects in {shift.objects_region_m} m",
        expected="room to keep them apart",
        fix="use fewer distractors or a larger region",
    )


def _turn_move(rng: np.random.Generator) -> Array:
    angle = rng.uniform(-np.pi, np.pi)
    return MOVE_LENGTH_M * np.array([np.cos(angle), np.sin(angle)])


def _keep_clear(
    move_m: Array,
    task: Task,
    objects: tuple[Placed, ...],
    receptacles: tuple[Placed, ...],
    rng: np.random.Generator,
) -> Array:
    """`move_m`, or one in another direction if the task's object would land by another thing."""
    (moved,) = (thing for thing in objects if thing.name == task.object)
    others = [thing for thing in objects if thing is not moved]
    for _ in range(200):
        x, y = moved.x_m + move_m[0], moved.y_m + move_m[1]
        if _is_clear(x, y, others, receptacles):
            return move_m
        move_m = _turn_move(rng)
    raise SimulationError(
        "The object cannot be moved",
        got=f"{moved.name} at {moved.x_m:.3f}, {moved.y_m:.3f} m, {MOVE_LENGTH_M} m to go",
        expected="a direction in which nothing lies",
        fix="draw another scene",
    )


def _is_clear(x: float, y: float, objects: Sequence[Placed], receptacles: Sequence[Placed]) -> bool:
    clear = all(np.hypot(x - p.x_m, y - p.y_m) > OBJECT_GAP_M for p in objects)
    return clear and all(np.hypot(x - p.x_m, y - p.y_m) > RECEPTACLE_GAP_M for p in receptacles)


def _find_spot(
    placed: list[Placed],
    receptacles: tuple[Placed, ...],
    shift: Shift,
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    x_low, x_high, y_low, y_high = shift.objects_region_m
    for _ in range(100):
        x, y = float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high))
        hole = shift.holes_region_m
        if _is_clear(x, y, placed, receptacles) and not (hole is not None and _inside(x, y, hole)):
            return x, y
    return None


def _inside(x: float, y: float, region: Region) -> bool:
    return region[0] <= x <= region[1] and region[2] <= y <= region[3]
