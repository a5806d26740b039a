"""Golden samples: held-out observations with the actions of the trained fp32 model."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.graph import run_torch
from training.model import PrismaticVLA
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.processor import Observation, Processor
from vla_align_ros.errors import ExportError

GOLDEN_INPUTS = "golden_inputs.npz"

Arrays = dict[str, npt.NDArray[Any]]


def read_golden_inputs(path: Path, processor: Processor) -> Arrays:
    """Read image_<camera> (N, H, W, 3) uint8, state (N, D) float32 and instruction (N,) from a run.

    Raises:
        ExportError: if the file is missing, needs pickle, or lacks an array.
    """
    names = [f"image_{camera.name}" for camera in processor.spec.cameras] + ["instruction"]
    if processor.spec.state is not None:
        names.append("state")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(
            "the run has no usable golden inputs",
            got=f"{path}: {error}",
            expected=f"an .npz file with {', '.join(names)}, which training writes",
            fix="give the folder of a run that `vla-align train` finished",
        ) from error
    if len(arrays["instruction"]) == 0:
        raise ExportError(
            "the run has no golden inputs",
            got=f"0 samples in {path}",
            expected="1 or more",
            fix="hold out some episodes (data.validation) and train again",
        )
    return arrays


def add_reference_actions(inputs: Arrays, model: PrismaticVLA, processor: Processor) -> Arrays:
    """Return golden arrays: inputs and reference_actions (N, H, 7) float64, un-normalised.

    The model runs in fp32 on the CPU; pictures and actions go through the processor, as on the
    robot.
    """
    seen = observations(inputs, processor)
    outputs = run_torch(model, [processor.prepare(observation) for observation in seen])
    actions = [
        processor.decode({"actions": output}, observation).actions
        for output, observation in zip(outputs, seen, strict=True)
    ]
    return {**inputs, "reference_actions": np.stack(actions)}


def observations(inputs: Arrays, processor: Processor) -> list[Observation]:
    """Return the golden inputs as observations."""
    return list(iterate_observations(inputs, processor.spec))
