"""Real samples of a data set, on which ranges of activations are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.config import RunConfig
from training.data.dataset import ActionChunkDataset
from training.data.sources import open_sources
from training.export.restore import Arrays, prepare_samples
from training.golden_inputs import gather_inputs
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ExportError

SAMPLES = 128


def read_calibration(
    roots: Sequence[str | Path],
    processor: Processor,
    config: Mapping[str, Any],
    count: int = SAMPLES,
) -> list[Arrays]:
    """Return inputs of frames of the training episodes, as the robot would prepare them.

    Args:
        roots: folders of LeRobot data. processor: of the policy. config: of the run, which says how
            its data are read. count: of frames, drawn evenly by chance; fewer if there are fewer.

    Raises:
        ExportError: if the policy's run is not known. DataError: as opening the data does.
    """
    if "data" not in config:
        raise ExportError(
            "calibration data cannot be read",
            got="a policy without the configuration of its run",
            expected="one that `vla-align train` made",
            fix="leave --data out: the golden samples serve",
        )
    settings = RunConfig.from_dict(config).data
    once = dataclasses.replace(settings, decode="online", cache=False)
    data = ActionChunkDataset(open_sources(roots, once), processor, once)
    frames = data.indices("train")
    chosen = np.sort(np.random.default_rng(0).permutation(frames)[:count])
    return prepare_samples(gather_inputs(data, processor, chosen), processor)
