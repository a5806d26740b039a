"""Reads the scalars of a run back from its TensorBoard files."""

from __future__ import annotations

import math
from pathlib import Path

from training.sight.writers import TENSORBOARD_FOLDER
from vla_align_ros.errors import TrainingError

Series = list[tuple[int, float]]


def read_history(run: Path) -> dict[str, Series]:
    """{name: [(step, value), ...]} with rising steps and finite values.

    Where a run was killed and continued, a step has the value that was written last.

    Raises:
        TrainingError: if the folder has no event files.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = run / TENSORBOARD_FOLDER
    if not folder.is_dir() or not any(folder.iterdir()):
        raise TrainingError(
            "The run has no history",
            got=f"no files in {folder}",
            expected="the folder of a run of `vla-align train`",
            fix="give the folder that --out named",
        )
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    history: dict[str, Series] = {}
    for name in events.Tags()[SCALARS]:
        written = sorted(events.Scalars(name), key=lambda event: event.wall_time)
        latest = {int(event.step): float(event.value) for event in written}
        history[name] = [(step, latest[step]) for step in sorted(latest)]
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in history.items()}
    return {name: points for name, points in finite.items() if points}
