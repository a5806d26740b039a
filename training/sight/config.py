"""What a run watches of its policy's sight, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_align_ros.errors import ConfigurationError

NEUTRAL_INSTRUCTION = "Describe the scene briefly."


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """Settings of the watch; `every_steps` 0 switches all of it off.

    every_steps: a reading before the first step (the reference of all later ones), then whenever
    this many steps have passed, and after the last one.
    layers: LLM hidden states to measure (0 is the embedding output); empty means five, evenly from
    0 to the last, and the aligned ones. scenes: held-out pictures of the data with their
    instructions.

    probe: fit a linear classifier to mean-pooled visual tokens of labelled pictures. pictures: the
    folder of a set of one's own (one sub-folder a label); None takes the drawings in the wheel
    emosvg and leaves the probe out where that wheel is missing. probe_pictures: at most so many of
    a label. probe_views: times each is shown, each time elsewhere on another background.
    probe_solver: "logistic" (regularised, to convergence) or "sgd" (the paper's).

    attention: draw maps of where words look. attention_scenes: for so many scenes.
    attention_layers: LLM blocks, counted from 1; empty means 15 to 18 of 32, and the like of other
    depths. attention_words: words whose own tokens are asked too, beside the last prompt token.

    wandb: "auto" writes to Weights & Biases too where it is installed and WANDB_API_KEY or
    WANDB_MODE is set; "on" insists; "off" never. batch_size: pictures a forward pass.
    """

    every_steps: int = 500
    layers: tuple[int, ...] = ()
    scenes: int = 16
    probe: bool = True
    pictures: str | None = None
    probe_pictures: int = 16
    probe_views: int = 1
    probe_solver: Literal["logistic", "sgd"] = "logistic"
    attention: bool = True
    attention_scenes: int = 3
    attention_layers: tuple[int, ...] = ()
    attention_words: tuple[str, ...] = ()
    wandb: Literal["auto", "on", "off"] = "auto"
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, least in (
            ("every_steps", self.every_steps, 0),
            ("scenes", self.scenes, 2),
            ("probe_pictures", self.probe_pictures, 1),
            ("probe_views", self.probe_views, 1),
            ("attention_scenes", self.attention_scenes, 0),
            ("batch_size", self.batch_size, 1),
        ):
            if value < least:
                raise ConfigurationError(
                    f"Wrong value for watch.{name}",
                    got=value,
                    expected=f"{least} or more",
                    fix="correct --set",
                )
        for name, text, valid in (
            ("probe_solver", self.probe_solver, ("logistic", "sgd")),
            ("wandb", self.wandb, ("auto", "on", "off")),
        ):
            if text not in valid:
                raise ConfigurationError(
                    f"Wrong value for watch.{name}",
                    got=repr(text),
                    expected=" or ".join(valid),
                    fix="correct --set",
                )


def choose_layers(config: WatchConfig, depth: int, aligned: tuple[int, ...] = ()) -> list[int]:
    """Hidden states to measure of an LLM with `depth` blocks, sorted; 0 is the embedding output."""
    chosen = config.layers or (*(round(depth * k / 4) for k in range(5)), *aligned)
    _check_range("watch.layers", chosen, 0, depth)
    return sorted(set(chosen))


def choose_blocks(config: WatchConfig, depth: int) -> list[int]:
    """Blocks, counted from 1, whose attention is drawn: 15 to 18 of 32 (paper's diagnostics)."""
    chosen = config.attention_layers or tuple(
        max(1, round(block * depth / 32)) for block in range(15, 19)
    )
    _check_range("watch.attention_layers", chosen, 1, depth)
    return sorted(set(chosen))


def _check_range(name: str, chosen: tuple[int, ...], low: int, high: int) -> None:
    if not all(low <= number <= high for number in chosen):
        raise ConfigurationError(
            f"Wrong value for {name}",
            got=chosen,
            expected=f"numbers from {low} to {high}",
            fix="correct --set",
        )
