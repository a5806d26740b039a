"""Golden samples: held-out observations with the actions of the trained fp32 model."""

from __future__ import annotations

import numpy as np

from training.export.graph import run_torch
from training.golden_inputs import Arrays
from training.model import PrismaticVLA
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.processor import Observation, Processor


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
