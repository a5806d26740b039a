"""A reading of the sight at one step, as it lies in the run folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.files import replace_atomically
from training.sight.probe import ProbeResult

SIGHT_FOLDER = "sight"
_NAME = re.compile(r"step_(\d{8})\.json")


@dataclass(frozen=True, slots=True)
class SightReading:
    """What was seen at `step`.

    scalars by name (see docs/sight.md); probe results by place; figures by name, (H, W, 3)
    uint8; notes: what was left out, and why.
    """

    step: int
    scalars: Mapping[str, float]
    probe: Mapping[str, ProbeResult] = field(default_factory=dict)
    figures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def save_reading(reading: SightReading, folder: Path) -> Path:
    """Write step_<step>.json and a PNG file a figure; a repeated step replaces its files."""
    from PIL import Image

    stem = f"step_{reading.step:08d}"
    figures = {}
    for name, picture in reading.figures.items():
        figures[name] = f"{stem}_{name}.png"
        with replace_atomically(folder / figures[name]) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
    values = {
        "step": reading.step,
        "scalars": {k: v if math.isfinite(v) else None for k, v in reading.scalars.items()},
        "probe": {
            place: {**asdict(result), "accuracy": result.accuracy}
            for place, result in reading.probe.items()
        },
        "figures": figures,
        "notes": list(reading.notes),
    }
    path = folder / f"{stem}.json"
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
    return path


def list_readings(folder: Path) -> list[dict[str, Any]]:
    """The readings in `folder` as JSON objects, oldest step first."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    return [json.loads(path.read_text()) for path in paths]
