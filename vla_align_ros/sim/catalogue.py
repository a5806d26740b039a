"""The things that can stand on the table, and which of them training may see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rgba = tuple[float, float, float, float]
Profile = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Part:
    """A surface of revolution: (position along the axis, radius) pairs in metres, and a colour."""

    profile: Profile
    rgba: Rgba


@dataclass(frozen=True)
class ObjectShape:
    """A graspable object lying on its side, its long axis along the body's x axis (metres)."""

    parts: tuple[Part, ...]
    half_length_m: float
    radius_m: float


@dataclass(frozen=True)
class ReceptacleShape:
    """A flat vessel with a vertical axis (metres); things are put inside `radius_m`."""

    profile: Profile
    rgba: Rgba
    radius_m: float


_LEAF: Rgba = (0.18, 0.52, 0.14, 1.0)

OBJECTS: dict[str, ObjectShape] = {
    "carrot": ObjectShape(
        (
            Part(
                ((-0.045, 0.004), (-0.02, 0.011), (0.015, 0.0165), (0.03, 0.0175), (0.036, 0.012)),
                (0.95, 0.42, 0.06, 1.0),
            ),
            Part(((0.034, 0.006), (0.045, 0.010), (0.056, 0.005)), _LEAF),
        ),
        0.040,
        0.0150,
    ),
    "eggplant": ObjectShape(
        (
            Part(
                ((-0.042, 0.008), (-0.03, 0.018), (-0.01, 0.0205), (0.015, 0.016), (0.035, 0.011)),
                (0.33, 0.09, 0.38, 1.0),
            ),
            Part(((0.033, 0.013), (0.040, 0.011), (0.052, 0.004)), _LEAF),
        ),
        0.037,
        0.0160,
    ),
    "cucumber": ObjectShape(
        (
            Part(
                ((-0.048, 0.006), (-0.042, 0.013), (0.0, 0.0150), (0.042, 0.013), (0.048, 0.006)),
                (0.13, 0.45, 0.11, 1.0),
            ),
        ),
        0.042,
        0.0140,
    ),
    "corn": ObjectShape(
        (
            Part(
                ((-0.046, 0.006), (-0.03, 0.0145), (0.01, 0.0170), (0.03, 0.016)),
                (0.97, 0.84, 0.20, 1.0),
            ),
            Part(((0.026, 0.017), (0.045, 0.011), (0.056, 0.004)), (0.42, 0.66, 0.26, 1.0)),
        ),
        0.041,
        0.0155,
    ),
    "sausage": ObjectShape(
        (
            Part(
                ((-0.042, 0.006), (-0.036, 0.013), (0.036, 0.013), (0.042, 0.006)),
                (0.62, 0.20, 0.14, 1.0),
            ),
        ),
        0.038,
        0.0130,
    ),
    "potato": ObjectShape(
        (
            Part(
                ((-0.032, 0.008), (-0.022, 0.018), (0.0, 0.0215), (0.022, 0.018), (0.032, 0.008)),
                (0.74, 0.58, 0.34, 1.0),
            ),
        ),
        0.028,
        0.0190,
    ),
    "radish": ObjectShape(
        (
            Part(
                ((-0.050, 0.002), (-0.03, 0.006), (-0.012, 0.017), (0.008, 0.0205), (0.022, 0.013)),
                (0.84, 0.10, 0.34, 1.0),
            ),
            Part(((0.020, 0.007), (0.035, 0.009), (0.052, 0.004)), _LEAF),
        ),
        0.030,
        0.0180,
    ),
}

RECEPTACLES: dict[str, ReceptacleShape] = {
    "plate": ReceptacleShape(
        (
            (0.0, 0.045),
            (0.004, 0.05),
            (0.010, 0.066),
            (0.012, 0.066),
            (0.007, 0.05),
            (0.005, 0.045),
        ),
        (0.93, 0.93, 0.88, 1.0),
        0.058,
    ),
    "tray": ReceptacleShape(
        ((0.0, 0.058), (0.008, 0.063), (0.010, 0.063), (0.005, 0.056)),
        (0.20, 0.36, 0.78, 1.0),
        0.056,
    ),
    "coaster": ReceptacleShape(((0.0, 0.054), (0.006, 0.054)), (0.80, 0.25, 0.25, 1.0), 0.050),
}

TRAIN_OBJECTS = ("carrot", "eggplant", "cucumber", "corn")
UNSEEN_OBJECTS = ("sausage", "potato", "radish")
TRAIN_RECEPTACLES = ("plate", "tray")
UNSEEN_RECEPTACLES = ("coaster",)

TRAIN_TABLES = tuple(range(8))
UNSEEN_TABLES = tuple(range(8, 12))

TRAIN_TEMPLATES = ("put the {object} on the {receptacle}",)
UNSEEN_TEMPLATES = (
    "place the {object} onto the {receptacle}",
    "move the {object} to the {receptacle}",
    "the {object} goes on the {receptacle}, please",
    "pick up the {object} and set it down on the {receptacle}",
)


def revolve(profile: Profile, segments: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Closed mesh of a profile turned around x: vertices (V, 3) in metres and triangles (F, 3)."""
    angle = np.linspace(0.0, 2.0 * np.pi, segments, endpoint=False)
    rings = [
        np.stack([np.full(segments, x), r * np.cos(angle), r * np.sin(angle)], axis=1)
        for x, r in profile
    ]
    caps = np.array([[profile[0][0], 0.0, 0.0], [profile[-1][0], 0.0, 0.0]])
    vertices = np.concatenate([*rings, caps]).astype(np.float32)
    k = np.arange(segments)
    nxt = (k + 1) % segments
    faces = []
    for ring in range(len(profile) - 1):
        a, b = ring * segments + k, ring * segments + nxt
        faces += [np.stack([a, b, a + segments], 1), np.stack([b, b + segments, a + segments], 1)]
    first, last = len(vertices) - 2, len(vertices) - 1
    top = (len(profile) - 1) * segments
    faces += [
        np.stack([np.full(segments, first), nxt, k], 1),
        np.stack([np.full(segments, last), top + k, top + nxt], 1),
    ]
    return vertices, np.concatenate(faces).astype(np.int32)


def table_texture(table: int, size: int = 256) -> NDArray[np.uint8]:
    """Procedural table top number `table`: wood, cloth or stone, (size, size, 3) uint8 RGB."""
    rng = np.random.default_rng(7_000 + table)
    y, x = np.mgrid[0:size, 0:size] / size
    base = np.array(_TABLE_COLOURS[table % len(_TABLE_COLOURS)], dtype=float)
    warp = np.zeros_like(x)
    for _ in range(4):
        fx, fy = rng.integers(1, 4), rng.integers(2, 8)
        warp += rng.uniform(0.2, 1.0) * np.sin(2 * np.pi * (fx * x + fy * y) + rng.uniform(0, 6.28))
    kind = table % 3
    if kind == 0:  # wood: warped rings
        shade = 0.5 + 0.5 * np.sin(10 * (y + 0.06 * warp))
    elif kind == 1:  # cloth: a weave
        shade = 0.5 + 0.25 * (np.sin(2 * np.pi * 12 * x) + np.sin(2 * np.pi * 12 * y))
    else:  # stone: soft blotches
        shade = 0.5 + 0.25 * np.clip(warp, -2, 2)
    picture = base * (0.80 + 0.20 * shade[..., None]) + rng.normal(0, 3, (size, size, 1))
    texture: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return texture


_TABLE_COLOURS = (
    (150, 105, 70),
    (176, 168, 150),
    (120, 122, 126),
    (196, 156, 110),
    (104, 130, 134),
    (158, 150, 144),
    (112, 80, 58),
    (190, 182, 196),
    (84, 92, 116),
    (206, 190, 140),
    (132, 160, 128),
    (186, 132, 120),
)
