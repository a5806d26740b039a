"""Which runs are looked at, and their networks: before training, and as they are now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from training.model import PrismaticVLA
from training.run_folder import Run, name_folders
from vla_align_ros.errors import ConfigurationError

BEFORE, AFTER = "before", "after"


def open_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """Open runs that can look at the same scenes, by names that differ.

    Raises:
        ConfigurationError: if they have other cameras, or another state, than the first.
        TrainingError: if one is no run.
    """
    names = name_folders(folders)
    runs = {name: Run.open(folder) for name, folder in zip(names, folders, strict=True)}
    first, *others = runs.values()
    wanted = _inputs(first)
    for run in others:
        if _inputs(run) != wanted:
            raise ConfigurationError(
                "The runs cannot look at the same scenes",
                got=f"{run.folder} reads {_inputs(run)}",
                expected=f"{wanted}, as {first.folder} does",
                fix="diagnose them one at a time",
            )
    return runs


def load_networks(run: Run, *, before: bool) -> Iterator[tuple[str, PrismaticVLA]]:
    """The run's networks one at a time, so that no two large ones are in memory."""
    if before:
        yield BEFORE, run.load_before()
    yield AFTER, run.load_after()


def _inputs(run: Run) -> tuple[object, ...]:
    spec = run.processor.spec
    state = None if spec.state is None else tuple(spec.state.names)
    return tuple(camera.name for camera in spec.cameras), state
