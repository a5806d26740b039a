"""Lists of models as long as the published ones, without the meshes; and the real ones, if any."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path

from vla_align_ros.sim.put_on_plate.assets import Assets, Model, Table, read_assets
from vla_align_ros.sim.put_on_plate.layout import COLORS, SHAPES

NO_ASSETS = "needs the benchmark's assets: set VLA_ALIGN_ASSETS (see `vla-align assets`)"
NO_SIMULATOR = "needs the extra [benchmark]"


@cache
def made_up_assets() -> Assets:
    """The published lists' lengths, order and words."""
    none = Path("/nowhere")

    def model(key: str, **words: str) -> Model:
        return Model(key, none, {"name": key, **words}, (0.1, 0.1, 0.006), 1000.0)

    def board(count: int, **words: str) -> tuple[Model, ...]:
        return tuple(
            model(f"board {i}", **{k: f"{v} {i}" for k, v in words.items()}) for i in range(count)
        )

    numbers = (8, 5, 4, 1, 7, 6, 3, 2)
    return Assets(
        none,
        tuple(model(f"object {i}") for i in range(25)),
        tuple(model(f"plate {i}") for i in range(17)),
        tuple(Table(none, none, float(i > 0)) for i in range(21)),
        {
            "more_shape": tuple(
                model(f"{color} {shape}", shape=shape, color=color)
                for shape in SHAPES
                for color in COLORS
            ),
            "more_traffic": board(24, sign="traffic"),
            "more_laundry": board(17, icon="laundry"),
            "more_weather": board(9, sign="weather"),
            "more_arrows": board(4, sign="arrow"),
            "more_public_info": board(14, sign="public"),
            "more_numbers": tuple(model(f"number {n}", number=str(n)) for n in numbers),
        },
    )


def real_assets() -> Assets | None:
    """The published ones, where VLA_ALIGN_ASSETS names them."""
    return read_assets() if os.environ.get("VLA_ALIGN_ASSETS") else None


def can_simulate() -> bool:
    """Whether ManiSkill is installed."""
    return importlib.util.find_spec("mani_skill") is not None
