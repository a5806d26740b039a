"""What a bundle gives to an export without torch: samples, physical actions, float32 graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.graph_file import load_graph, save_graphs
from training.export.precision import restore_weights
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor

KEPT = "kept.json"

Arrays = dict[str, npt.NDArray[Any]]


def prepare_samples(golden: Mapping[str, npt.NDArray[Any]], processor: Processor) -> list[Arrays]:
    """Return golden observations as the graphs take them."""
    return [processor.prepare(seen) for seen in iterate_observations(golden, processor.spec)]


def hash_samples(samples: Sequence[Mapping[str, npt.NDArray[Any]]]) -> str:
    """Return a sha256 of what samples hold, in order."""
    state = hashlib.sha256()
    for sample in samples:
        for name in sorted(sample):
            array = np.ascontiguousarray(sample[name])
            state.update(f"{name} {array.dtype} {array.shape} ".encode())
            state.update(array.tobytes())
    return state.hexdigest()


def write_restored(graphs: Mapping[str, Path], folder: Path) -> dict[str, list[str]]:
    """Save a bundle's graphs in float32; return by graph the products that its export spared."""
    kept: dict[str, list[str]] = {}

    def restore() -> Iterator[tuple[str, Any]]:
        for name, path in graphs.items():
            model = load_graph(path)
            kept[name] = list(restore_weights(model))
            yield name, model

    save_graphs(restore(), folder)
    return kept


def denormalize(processor: Processor, outputs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn normalised actions (N, H, A) into metres, radians and fractions, as the robot does."""
    unseen = np.zeros((1, 1, 3), dtype=np.uint8)  # decoding looks at an observation's stamp alone
    nothing = Observation({"none": unseen}, None, "", 0.0)
    return np.stack(
        [
            processor.decode({"actions": np.asarray(output)[None]}, nothing).actions
            for output in np.asarray(outputs)
        ]
    )
