"""Whether a bundle's sight tells the simulator's shifts from the scenes of the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.observation import Observation
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.heatmap import cut, overlay, stretch
from vla_align_ros.runtime.sight import SightGraph
from vla_align_ros.runtime.statistics import Z_95, wilson_interval
from vla_align_ros.sim.shifts import SHIFTS, find_shift
from vla_align_ros.sim.tabletop import CAMERA, TabletopEnv

FIRST_SEED = 3_000_000_000  # data sets draw from 2**31 to 2**32: that one is met again is 1 in 10^4
FAMILIAR = "none"
_PRECISION = 1e-9  # of an interval's ends
TILE_PX, CAPTION_PX = 224, 36

Distances = NDArray[np.float64]


def measure_familiarity(
    bundle: Path, episodes: int, shifts: Sequence[str] = tuple(SHIFTS), *, seed: int = FIRST_SEED
) -> dict[str, Any]:
    """Distances of the first picture of `episodes` scenes of each shift, and what follows.

    Rows by shift: median distance, `auroc` against as many scenes of the training distribution
    with its 95 % interval (Newcombe's), and the share beyond the bundle's threshold with
    Wilson's. Of the training distribution itself that share is the rate of false alarms.

    Raises ConfigurationError without a scene to measure, BundleError if the bundle has no sight.
    """
    if episodes < 2:
        raise ConfigurationError(
            "Nothing to measure", got=f"{episodes} scenes", expected="2 or more", fix="--episodes"
        )
    names = [FAMILIAR, *(find_shift(name).name for name in shifts if name != FAMILIAR)]
    opened = Bundle.open(bundle)
    graph = SightGraph(opened)
    env = TabletopEnv()
    try:
        distances = {
            name: np.array(
                [
                    graph.look(_see(graph, env, seed + number, name)).distance
                    for number in tqdm(range(episodes), desc=name, unit="scene")
                ]
            )
            for name in names
        }
    finally:
        env.close()
        graph.close()
    threshold = graph.statistics.threshold
    return {
        "bundle_id": opened.id,
        "place": graph.statistics.place,
        "threshold": threshold,
        "quantile": graph.statistics.quantile,
        "episodes": episodes,
        "seed": seed,
        "rows": [
            {"shift": name, "axis": SHIFTS[name].axis, **_judge(distances, name, threshold)}
            for name in names
        ],
    }


def tell_row(row: dict[str, Any], episodes: int) -> tuple[str, str]:
    """A row of `measure_familiarity` in words: AUROC with its interval, scenes beyond the limit."""
    told = "-"
    if row["auroc"] is not None:
        low, high = row["auroc_interval"]
        told = f"{row['auroc']:.2f} [{low:.2f}, {high:.2f}]"
    return told, f"{row['flagged']}/{episodes}"


def draw_scenes(
    bundle: Path, shifts: Sequence[str] = tuple(SHIFTS), *, seed: int = FIRST_SEED
) -> NDArray[np.uint8]:
    """The first scene of each shift: what the camera sees, where the words look, how strange it is.

    Where they look is laid over what the model sees of the picture: its crop may leave out a rim.
    Returns a picture (H, W, 3), two columns of scenes. Raises BundleError if the bundle has no
    sight.
    """
    from PIL import Image, ImageDraw

    names = [find_shift(name).name for name in shifts]
    opened = Bundle.open(bundle)
    graph = SightGraph(opened)
    env = TabletopEnv()
    width, height = 2 * TILE_PX, TILE_PX + CAPTION_PX
    sheet = Image.new("RGB", (2 * width, (len(names) + 1) // 2 * height), "white")
    draw = ImageDraw.Draw(sheet)
    try:
        for number, name in enumerate(names):
            seen = _see(graph, env, seed, name)
            reading = graph.look(seen, attention=True)
            assert reading.maps is not None
            left, top = number % 2 * width, number // 2 * height
            picture = seen.images[CAMERA]
            box = opened.processor.image_transform.crop_box(picture.shape[1], picture.shape[0])
            for column, tile in enumerate(
                (
                    stretch(picture, TILE_PX, TILE_PX),
                    overlay(cut(picture, box), reading.maps[CAMERA], TILE_PX, TILE_PX),
                )
            ):
                sheet.paste(Image.fromarray(tile), (left + column * TILE_PX, top + CAPTION_PX))
            told = "UNFAMILIAR" if reading.unfamiliar else "familiar"
            lines = (
                f"{name}: {told}, {reading.distance:.1f} (limit {reading.threshold:.1f})",
                f'"{seen.instruction}"',
            )
            for line, text in enumerate(lines):
                draw.text((left + 4, top + 3 + 15 * line), text, fill="black", font_size=13)
    finally:
        env.close()
        graph.close()
    return np.asarray(sheet)


def auroc(familiar: Distances, strange: Distances) -> float:
    """Chance that a strange scene is further off than a familiar one; ties count half."""
    return float(
        (strange[:, None] > familiar[None]).mean()
        + 0.5 * (strange[:, None] == familiar[None]).mean()
    )


def auroc_interval(value: float, familiar: int, strange: int) -> tuple[float, float]:
    """95 % interval of an AUROC `value` of so many scenes of each: Newcombe's score interval.

    It has width where every scene is told, too, and with two scenes: resampling them has none
    there, and holds the truth far too seldom. Source: Newcombe 2006, method 5 (Statistics in
    Medicine 25, 559), by the variance of Hanley and McNeil.
    """
    others = (familiar + strange) / 2 - 1

    def fits(truth: float) -> bool:
        spread = 1 + others * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        variance = truth * (1 - truth) * spread / (familiar * strange)
        return (value - truth) ** 2 <= Z_95**2 * variance

    ends = []
    for beyond in (0.0, 1.0):
        within = value
        while abs(beyond - within) > _PRECISION:
            middle = (within + beyond) / 2
            within, beyond = (middle, beyond) if fits(middle) else (within, middle)
        ends.append(beyond)
    return ends[0], ends[1]


def _see(graph: SightGraph, env: TabletopEnv, seed: int, shift: str) -> Observation:
    """The first picture of a scene, as the policy is given it."""
    env.begin(seed, shift=shift)
    seen = env.observe()
    assert seen.image is not None
    state = seen.state if graph.reads_state else None
    return Observation({CAMERA: seen.image}, state, env.task.instruction, 0.0)


def _judge(distances: dict[str, Distances], name: str, threshold: float) -> dict[str, Any]:
    own, familiar = distances[name], distances[FAMILIAR]
    flagged = int((own > threshold).sum())
    told = auroc(familiar, own) if name != FAMILIAR else None
    return {
        "distance_p50": float(np.median(own)),
        "flagged": flagged,
        "flagged_rate": flagged / len(own),
        "flagged_interval": list(wilson_interval(flagged, len(own))),
        "auroc": told,
        "auroc_interval": None
        if told is None
        else [*auroc_interval(told, len(familiar), len(own))],
    }
