"""The settings of alignment: which variant of the method a run uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from training.alignment.loss import LOSSES
from training.alignment.projector import PROJECTORS
from training.alignment.registry import find_variant
from training.alignment.schedule import SCHEDULES
from vla_align_ros.errors import ConfigurationError

LAMBDA = 0.2


@dataclass(frozen=True, slots=True)
class AlignmentConfig:
    """A variant of the method; the defaults are the paper's (arXiv 2510.25616).

    weight: lambda; 0 switches everything off, the teacher included. schedule: how lambda changes
    (`schedule.SCHEDULES`): "constant"; "warmup" over `schedule_steps` steps; "linear_decay" and
    "cosine_decay" to `final_fraction` of lambda over `schedule_steps` steps, 0 meaning the whole
    run. loss: "cosine", "l2" or "infonce" (at `temperature`). projector: "mlp", "cosine",
    "orthogonal", "spectral", "whitening" or "film", frozen unless `trainable`; `hidden` is the
    width of those that have hidden layers. at: align the hidden states `layers` of the "llm" (0 is
    the embedding output; none means the middle one, 16 of 32 in the paper; the losses of several
    are summed), or the output of the vision "encoder". shared: one projector for all layers instead
    of one each. seed: of the projectors.
    """

    weight: float = LAMBDA
    schedule: str = "constant"
    schedule_steps: int = 0
    final_fraction: float = 0.0
    loss: str = "cosine"
    temperature: float = 0.07
    projector: str = "mlp"
    trainable: bool = False
    shared: bool = False
    at: Literal["llm", "encoder"] = "llm"
    layers: tuple[int, ...] = ()
    hidden: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and numbers."""
        find_variant(SCHEDULES, self.schedule, "alignment.schedule")
        find_variant(LOSSES, self.loss, "alignment.loss")
        find_variant(PROJECTORS, self.projector, "alignment.projector")
        _require(
            math.isfinite(self.weight) and self.weight >= 0,
            f"alignment weight {self.weight}",
            "0 or more",
            "set lambda to 0.2 (the paper's) or 0 (off)",
        )
        least = 1 if self.schedule == "warmup" else 0
        _require(
            self.schedule_steps >= least,
            f"alignment.schedule_steps {self.schedule_steps} with {self.schedule}",
            f"{least} or more",
            "say over how many steps lambda changes",
        )
        _require(
            0.0 <= self.final_fraction <= 1.0,
            f"alignment.final_fraction {self.final_fraction}",
            "a share of lambda between 0 and 1",
            "correct --set alignment.final_fraction",
        )
        _require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"alignment.temperature {self.temperature}",
            "a number above 0",
            "set it to 0.07 (the default)",
        )
        _require(self.hidden >= 1, f"alignment.hidden {self.hidden}", "1 or more", "raise it")
        self._check_place()

    def _check_place(self) -> None:
        _require(
            self.at in ("llm", "encoder"),
            f"alignment.at {self.at!r}",
            "one of llm, encoder",
            "say where the student's tokens are taken",
        )
        _require(
            self.at == "llm" or not self.layers,
            f"alignment.layers {self.layers} at the encoder",
            "no layers: the encoder's output is one place",
            "empty alignment.layers or set alignment.at=llm",
        )


def _require(condition: bool, got: str, expected: str, fix: str) -> None:
    if not condition:
        raise ConfigurationError(got=got, expected=expected, fix=fix)
