"""Where a run's scalars and pictures go: TensorBoard always, Weights & Biases where wanted."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from training.files import replace_atomically
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import pip_command

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FILE = "wandb.json"


class Sink(Protocol):
    """What takes scalars and pictures (`torch.utils.tensorboard.SummaryWriter` does)."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Take one number."""

    def add_image(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Take one picture (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """Write what is still held back."""


class RunWriter:
    """Hands every scalar and picture to all of its sinks."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one number."""
        for sink in self.sinks:
            sink.add_scalar(name, value, step)

    def add_image(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Write one picture (H, W, 3) uint8 RGB."""
        for sink in self.sinks:
            sink.add_image(name, picture, step)

    def close(self) -> None:
        """Write what is still held back; the writer takes nothing more."""
        for sink in self.sinks:
            sink.close()


class TensorBoardSink:
    """Event files in <run>/tensorboard."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one number."""
        self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Write one picture (H, W, 3) uint8 RGB."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WandbSink:
    """One run at Weights & Biases, continued when training is.

    Its id is kept in <run>/wandb.json. Steps are a metric of their own, because a continued run
    repeats some, which wandb's own step counter would refuse.
    """

    def __init__(self, run: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb: Any = wandb
        path = run / WANDB_FILE
        if path.exists():
            identity = str(json.loads(path.read_text())["id"])
        else:
            identity = uuid4().hex[:12]
            with replace_atomically(path) as temporary:
                temporary.write_text(json.dumps({"id": identity}) + "\n")
        self._run: Any = wandb.init(
            id=identity, name=name, config=dict(config), dir=str(run), resume="allow"
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Send one number."""
        self._run.log({name: value, "step": step})

    def add_image(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Send one picture (H, W, 3) uint8 RGB."""
        self._run.log({name: self._wandb.Image(picture), "step": step})

    def close(self) -> None:
        """Send the rest and end the session."""
        self._run.finish()


def open_writer(
    run: Path,
    *,
    purge_step: int | None = None,
    wandb: str = "auto",
    name: str = "run",
    config: Mapping[str, Any] | None = None,
) -> RunWriter:
    """Open the writer of the run folder `run`; `wandb` as in WatchConfig.

    purge_step: what a killed run wrote from this step on is written again.

    Raises:
        ConfigurationError: if wandb is "on" and not installed.
    """
    sinks: list[Sink] = [TensorBoardSink(run / TENSORBOARD_FOLDER, purge_step)]
    if wants_wandb(wandb):
        sinks.append(WandbSink(run, name, config or {}))
    return RunWriter(*sinks)


def wants_wandb(setting: str) -> bool:
    """Whether to write to Weights & Biases; "auto" asks for the module and for a key or mode."""
    if setting == "off":
        return False
    installed = importlib.util.find_spec("wandb") is not None
    if setting == "on" and not installed:
        raise ConfigurationError(
            "Weights & Biases is not installed",
            got="watch.wandb=on",
            expected="the module wandb",
            fix=pip_command("wandb"),
        )
    told = bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
    return installed and (setting == "on" or told)
