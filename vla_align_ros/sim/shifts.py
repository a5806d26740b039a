"""Named distribution shifts: what each changes. Training sees none of the semantic and visual ones.

Of those of execution it sees no object in the outer ring. It does see other starts than the first
2 cm (its clips also start anywhere over the table), and an object that has jumped may lie where
one could have lain from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vla_align_ros.errors import SimulationError
from vla_align_ros.sim import catalogue

Axis = Literal["none", "semantic", "visual", "execution"]
Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shift:
    """Where an episode's scene is drawn from. The defaults are the training distribution.

    `objects_region_m` is (x low, x high, y low, y high) in the base frame; `holes_region_m`, when
    given, is a rectangle that the positions must avoid. `overlay` blends a noise picture over the
    camera image (0 none .. 1 only noise). `move_at_s` displaces the named object once.
    """

    name: str = "none"
    axis: Axis = "none"
    objects: tuple[str, ...] = catalogue.TRAIN_OBJECTS
    receptacles: tuple[str, ...] = catalogue.TRAIN_RECEPTACLES
    tables: tuple[int, ...] = catalogue.TRAIN_TABLES
    templates: tuple[str, ...] = catalogue.TRAIN_TEMPLATES
    distractors: tuple[str, ...] = ()
    light: tuple[float, float] = (0.8, 1.2)
    overlay: float = 0.0
    camera_jitter_m: float = 0.0
    objects_region_m: Region = (0.24, 0.40, -0.08, 0.08)
    holes_region_m: Region | None = None
    start_jitter_m: float = 0.02
    start_yaw_rad: float = 0.0
    move_at_s: float | None = None


_TRAIN = Shift()

SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        _TRAIN,
        replace(_TRAIN, name="unseen_object", axis="semantic", objects=catalogue.UNSEEN_OBJECTS),
        replace(
            _TRAIN,
            name="unseen_receptacle",
            axis="semantic",
            receptacles=catalogue.UNSEEN_RECEPTACLES + catalogue.TRAIN_RECEPTACLES[:1],
        ),
        replace(_TRAIN, name="unseen_words", axis="semantic", templates=catalogue.UNSEEN_TEMPLATES),
        replace(_TRAIN, name="distractors", axis="semantic", distractors=catalogue.UNSEEN_OBJECTS),
        replace(_TRAIN, name="unseen_table", axis="visual", tables=catalogue.UNSEEN_TABLES),
        replace(_TRAIN, name="dim_light", axis="visual", light=(0.35, 0.5)),
        replace(_TRAIN, name="overlay_03", axis="visual", overlay=0.3),
        replace(_TRAIN, name="overlay_05", axis="visual", overlay=0.5),
        replace(_TRAIN, name="camera_moved", axis="visual", camera_jitter_m=0.03),
        replace(
            _TRAIN,
            name="outer_positions",
            axis="execution",
            objects_region_m=(0.21, 0.43, -0.10, 0.10),
            holes_region_m=_TRAIN.objects_region_m,
        ),
        replace(
            _TRAIN,
            name="start_pose",
            axis="execution",
            start_jitter_m=0.08,
            start_yaw_rad=0.4,
        ),
        replace(_TRAIN, name="object_moved", axis="execution", move_at_s=1.0),
    )
}


def find_shift(name: str) -> Shift:
    """The shift called `name`; an unknown name raises SimulationError that lists the valid ones."""
    try:
        return SHIFTS[name]
    except KeyError:
        raise SimulationError(
            "No such shift",
            got=repr(name),
            expected="one of " + ", ".join(SHIFTS),
            fix="pass one of these names",
        ) from None
