"""What an episode's number means: which things lie where, on which table, under which words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.sim.put_on_plate import places
from vla_align_ros.sim.put_on_plate.assets import Assets, Model
from vla_align_ros.sim.put_on_plate.environments import (
    TEMPLATES,
    TEST_TEXTURES,
    TRAINING,
    Environment,
)

Array = NDArray[np.float64]

SHAPES = (
    *("trapezoid", "triangle", "right_triangle", "rectangle", "square", "parallelogram"),
    *("pentagon", "hexagon", "heptagon", "circle", "heart", "star", "arrow", "cross"),
)
_OBJECT, _TABLE = 0, 5  # digits of a plate's scene number, as `_sizes` has them
COLORS = ("black", "red", "green", "blue", "orange", "purple", "yellow", "brown")


@dataclass(frozen=True)
class Thing:
    """A mesh with its start: position (m, world) and heading (rad about the vertical)."""

    model: Model
    position_m: tuple[float, float, float]
    heading_rad: float = 0.0


@dataclass(frozen=True)
class Scene:
    """All that an episode's number decides.

    `source` is to be put on `target`; `others` lie beside them. `table`, `texture` are positions
    in the list of tables. `moved_to_m` is where the source jumps to, if it does.
    """

    environment: Environment
    number: int
    instruction: str
    source: Thing
    target: Thing
    others: tuple[Thing, ...]
    table: int
    texture: int | None
    start_joints: tuple[float, ...]
    moved_to_m: tuple[float, float, float] | None

    @property
    def things(self) -> tuple[Thing, ...]:
        """Everything on the table, the source first and the target second."""
        return (self.source, self.target, *self.others)


def count_scenes(environment: Environment, assets: Assets) -> int:
    """How many different scenes an environment has."""
    return math.prod(_sizes(environment, assets))


def draw_number(environment: Environment, assets: Assets, seed: int) -> int:
    """The scene number of a seed: uniform over all scenes, the same everywhere."""
    return int(np.random.default_rng(seed).integers(count_scenes(environment, assets)))


def build_scene(environment: Environment, assets: Assets, number: int) -> Scene:
    """The scene of a number, which is the authors' `episode_id`; it counts modulo all scenes."""
    number = number % count_scenes(environment, assets)
    if environment.boards is not None:
        return _board_scene(environment, assets, number)
    return _plate_scene(environment, assets, number)


def draw_pair(assets: Assets, number: int, rng: np.random.Generator) -> int:
    """A number of the training scenes with the `number`-th pair of object and table, else drawn.

    Any (objects x tables) numbers in a row have each pair once, any few of them other objects on
    other tables.
    """
    sizes = _sizes(TRAINING, assets)
    digits = [int(rng.integers(size)) for size in sizes]
    turn, thing = divmod(number, sizes[_OBJECT])
    digits[_OBJECT], digits[_TABLE] = thing, (turn + thing) % sizes[_TABLE]
    return int(np.ravel_multi_index(digits, sizes))


def split_number(number: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Digits of a number in mixed radix, the most significant first."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return tuple(reversed(digits))


def _sizes(env: Environment, assets: Assets) -> tuple[int, ...]:
    if env.boards is not None:
        return (*_board_sizes(env, assets.boards[env.boards]), len(env.tables))
    return (
        len(env.objects),
        max(env.extra_objects, 1),
        _extra_count(env),
        len(env.plates),
        max(env.extra_plates, 1),
        len(env.tables),
        len(places.positions_m(env.places)),
        len(places.headings_rad(env.places)),
    )


def _extra_count(env: Environment) -> int:
    """Choices of what is neither thing nor place: words, texture or starting joints."""
    if env.blend != "none":
        return len(TEST_TEXTURES)
    return len(places.joint_offsets_rad()) if env.joint_offsets else len(env.templates)


def _plate_scene(env: Environment, assets: Assets, number: int) -> Scene:
    first, second, extra, plate, other, table, place, heading = split_number(
        number, _sizes(env, assets)
    )
    spots = places.positions_m(env.places)[place]
    turn = float(places.headings_rad(env.places)[heading])
    source = assets.objects[env.objects[first]]
    target = assets.plates[env.plates[plate]]
    source_spot, others = spots[0], []
    if env.extra_objects:
        # The public code adds the named object's own number here, offset included; one scene in
        # eight therefore has the object itself as its distractor, at the distractor's place.
        second_id = (env.objects[first] + second + 1) % len(env.objects) + env.objects[0]
        if assets.objects[second_id] is source:
            source_spot = spots[2]
        else:
            others.append(Thing(assets.objects[second_id], _spot(spots[2]), turn))
    if env.extra_plates:
        other_id = (plate + other + 1) % len(env.plates) + env.plates[0]
        others.append(Thing(assets.plates[other_id], _spot(spots[2])))
    template = TEMPLATES[env.templates[extra if len(env.templates) > 1 else 0]]
    words = template.format(object=source.words["name"], plate=target.words["name"])
    joints = places.START_JOINTS
    if env.joint_offsets:
        joints = tuple(np.add(joints, places.joint_offsets_rad()[extra]).tolist())
    return Scene(
        env,
        number,
        words,
        Thing(source, _spot(source_spot), turn),
        Thing(target, _spot(spots[1])),
        tuple(others),
        env.tables[table],
        TEST_TEXTURES[extra] if env.blend != "none" else None,
        joints,
        _spot(spots[2]) if env.moves else None,
    )


def _spot(position: Array) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in position)
    return x, y, z


# -- boards ------------------------------------------------------------------------------------
def _board_sizes(env: Environment, boards: tuple[Model, ...]) -> tuple[int, ...]:
    if env.name == "Shape":
        shape, color = len(SHAPES), len(COLORS)
        return (shape, color, shape - 1, color, shape - 2, color, 3)
    if env.name == "Color":
        shape, color = len(SHAPES), len(COLORS)
        return (color, color - 1, color - 2, shape, shape, shape, 3)
    if env.name == "Parity":
        odd, even = _odd_and_even(boards)
        return (len(odd), 2, len(even))
    return (len(boards), len(boards) - 1, len(boards) - 2, 3)


def _board_scene(env: Environment, assets: Assets, number: int) -> Scene:
    boards = assets.boards[str(env.boards)]
    *digits, table = split_number(number, _sizes(env, assets))
    spots = places.positions_m("boards")[0]
    if env.name == "Parity":
        chosen, at, parity = _numbers(boards, digits, number)
        standing = [spots[1], spots[3]]
    else:
        chosen, at, parity = _three_boards(env, boards, digits), digits[-1], ""
        standing = list(spots[1:])
    things = [Thing(board, _spot(spot)) for board, spot in zip(chosen, standing, strict=True)]
    target = things.pop(at)
    return Scene(
        env,
        number,
        env.sentence.format(**target.model.words, parity=parity),
        Thing(assets.objects[0], _spot(spots[0])),
        target,
        tuple(things),
        env.tables[table],
        None,
        places.START_JOINTS,
        None,
    )


def _three_boards(env: Environment, boards: tuple[Model, ...], digits: list[int]) -> list[Model]:
    if env.name == "Shape":
        shapes = pick_distinct((digits[0], digits[2], digits[4]), len(SHAPES))
        colors = (digits[1], digits[3], digits[5])
    elif env.name == "Color":
        colors = pick_distinct((digits[0], digits[1], digits[2]), len(COLORS))
        shapes = (digits[3], digits[4], digits[5])
    else:
        return [boards[i] for i in pick_distinct((digits[0], digits[1], digits[2]), len(boards))]
    by_words = {(board.words["shape"], board.words["color"]): board for board in boards}
    return [by_words[SHAPES[s], COLORS[c]] for s, c in zip(shapes, colors, strict=True)]


def _numbers(
    boards: tuple[Model, ...], digits: list[int], number: int
) -> tuple[list[Model], int, str]:
    """Two boards, left and right; which of them is asked for; "even" or "odd"."""
    odds, evens = _odd_and_even(boards)
    odd, even = odds[digits[0]], evens[digits[2]]
    wanted, other, parity = (even, odd, "even") if number % 2 == 0 else (odd, even, "odd")
    return ([wanted, other], 0, parity) if digits[1] else ([other, wanted], 1, parity)


def _odd_and_even(boards: tuple[Model, ...]) -> tuple[list[Model], list[Model]]:
    odd = [board for board in boards if int(board.words["number"]) % 2]
    return odd, [board for board in boards if int(board.words["number"]) % 2 == 0]


def pick_distinct(choices: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    """Three different numbers below `count`: each choice counts among those still left."""
    left = list(range(count))
    first, second, third = (left.pop(choice) for choice in choices)
    return first, second, third
