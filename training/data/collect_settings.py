"""What is asked of a collection, checked before anything is simulated or written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from training.data.schema import PUT_ON_PLATE, TABLETOP
from vla_align_ros.errors import DataError

ENVIRONMENTS = (TABLETOP, PUT_ON_PLATE)


@dataclass(frozen=True)
class CollectSettings:
    """All that decides the content of episode number n (the number of episodes does not).

    `record_frames` (low, high): record only that many frames after the run-up, drawn per episode;
    None records until two steps after success. `policy` is a bundle that drives the run-up.
    `size_px` (width, height): of put_on_plate's pictures; the table-top's have one size.
    `assets` is the folder of put_on_plate's meshes; which they are is kept, not where they lie.
    `render_backend` draws put_on_plate: "cpu", or "gpu", whose pictures are others.
    """

    env: str = TABLETOP
    seed: int = 0
    shift: str = "none"
    horizon: int = 8
    record_frames: tuple[int, int] | None = None
    policy: str | None = None
    size_px: tuple[int, int] | None = None
    assets: str | None = None
    render_backend: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, kept in meta/collection.json."""
        values = asdict(self)
        values.pop("assets")
        if self.render_backend == "cpu":  # as in collections from before there was a choice
            values.pop("render_backend")
        for key in ("record_frames", "size_px"):
            values[key] = None if values[key] is None else list(values[key])
        return values


def check_settings(settings: CollectSettings) -> None:
    """Refuse what no simulator can do, before anything is written; a VlaAlignError."""
    if settings.env not in ENVIRONMENTS:
        raise DataError(
            "Unknown environment",
            got=settings.env,
            expected=f"one of {', '.join(ENVIRONMENTS)}",
            fix="pass one of them as --env",
        )
    if settings.seed < 0:
        raise DataError(
            "No scenes have this seed",
            got=f"--seed {settings.seed}",
            expected="0 or more",
            fix="correct --seed",
        )
    if settings.env == PUT_ON_PLATE:
        if settings.shift != "none":
            raise DataError(
                "put_on_plate is collected in its training distribution",
                got=f"--shift {settings.shift}",
                expected="none: its other environments are there to evaluate in",
                fix="leave --shift out",
            )
        if settings.size_px is not None:
            from vla_align_ros.sim.put_on_plate.environments import check_size

            check_size(settings.size_px)
        return
    from vla_align_ros.sim.shifts import find_shift

    find_shift(settings.shift)
    unasked = CollectSettings()
    for option, name in (
        ("--size", "size_px"),
        ("--assets", "assets"),
        ("--render", "render_backend"),
    ):
        value = getattr(settings, name)
        if value != getattr(unasked, name):
            raise DataError(
                "The table-top draws in one size and needs no meshes",
                got=f"{option} {value}",
                expected=f"{option} with --env {PUT_ON_PLATE} only",
                fix=f"leave {option} out",
            )
