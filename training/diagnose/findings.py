"""From what networks see to figures: probes, likeness, silhouettes, maps in a plane."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.diagnose.clusters import map_features, silhouette
from training.diagnose.looking import Look, Things
from training.sight.cka import linear_cka
from training.sight.probe import cross_validate
from vla_align_ros.runtime.statistics import wilson_interval

MEAN, NAMED, UNNAMED = "mean visual token", "name token", "the word object"


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What is found of one network; `planes` are t-SNE maps (n, 2) by what was mapped."""

    run: str
    when: str
    layer: int
    blocks: tuple[int, ...]
    probe: dict[str, dict[str, Any]]
    cka_before: dict[str, dict[str, float]]
    cka_teacher: dict[str, float]
    silhouettes: dict[str, dict[str, float]]
    attention_share: float
    attention: NDArray[np.float32] = field(repr=False)
    planes: dict[str, NDArray[np.float64]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON; what could not be computed is null."""
        return _plain(
            {
                "run": self.run,
                "when": self.when,
                "layer": self.layer,
                "blocks": list(self.blocks),
                "probe": self.probe,
                "cka_before": self.cka_before,
                "cka_teacher": self.cka_teacher,
                "silhouettes": self.silhouettes,
                "attention_share": self.attention_share,
            }
        )


def evaluate(
    run: str,
    when: str,
    look: Look,
    things: Things,
    *,
    before: Look | None,
    taught: Tensor | None,
    layer: int,
    solver: str,
) -> Finding:
    """Turn a look into figures.

    before: the same network's before training. taught: teacher features (rows, width) of the
    scenes' visual tokens, None without a teacher. layer: whose
    tokens are laid out in a plane.
    """
    likeness = {
        place: {
            what: linear_cka(now[place], then[place])
            for what, now, then in (
                ("scenes", look.scenes, before.scenes),
                ("pictures", look.pictures, before.pictures),
            )
            if place in now and place in then
        }
        for place in (look.places if before is not None else ())
        if before is not None
    }
    teacher = (
        {}
        if taught is None
        else {place: linear_cka(rows, taught) for place, rows in look.scenes.items()}
    )
    silhouettes, planes = _cluster(look, things, layer)
    return Finding(
        run,
        when,
        layer,
        look.blocks,
        _probe(look, things, solver),
        likeness,
        teacher,
        silhouettes,
        look.share,
        look.attention,
        planes,
    )


def _probe(look: Look, things: Things, solver: str) -> dict[str, dict[str, Any]]:
    known = things.pictures
    if known is None:
        return {}
    results = {}
    for place, value in look.pictures.items():
        found = cross_validate(value, known.labels, known.names, known.things, solver=solver)
        results[place] = {
            "accuracy": found.accuracy,
            "interval": list(wilson_interval(found.correct, found.total)),
            "correct": found.correct,
            "total": found.total,
            "chance": found.chance,
        }
    return results


def _cluster(
    look: Look, things: Things, layer: int
) -> tuple[dict[str, dict[str, float]], dict[str, NDArray[np.float64]]]:
    if things.few is None or look.named is None or look.unnamed is None:
        return {}, {}
    labels = things.few.labels
    layers = [int(p.removeprefix("layer_")) for p in look.places if p.startswith("layer_")]
    features: dict[str, dict[str, Tensor]] = {
        MEAN: look.few,
        NAMED: {f"layer_{number}": look.named[number] for number in layers},
        UNNAMED: {f"layer_{number}": look.unnamed[number] for number in layers},
    }
    scores = {
        what: {place: silhouette(_numbers(value), labels) for place, value in values.items()}
        for what, values in features.items()
    }
    planes = {
        what: map_features(_numbers(values[f"layer_{layer}"]))
        for what, values in features.items()
        if math.isfinite(scores[what][f"layer_{layer}"])
    }
    return scores, planes


def _numbers(value: Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = value.double().numpy()
    return numbers


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
