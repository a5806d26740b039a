"""What is exported: a finished run, its network read tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.graph_file import OPSET, save_graphs
from training.export.restore import denormalize, prepare_samples
from training.export.trace import trace_graph
from training.golden_inputs import GOLDEN_INPUTS, read_golden_inputs
from training.model.checkpoint import read_json
from training.run_weights import RunWeights
from vla_align_ros.contract.files import hash_file
from vla_align_ros.contract.graphs import GraphSpec
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ExportError

CONFIG = "config.json"
RUN_SUMMARY = "run.json"
DATASET = "dataset.json"
BLEND = "blend.json"
PROCESSOR = "processor"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class RunSource:
    """A finished run: its folder, processor and golden inputs; weights are read when needed."""

    folder: Path
    processor: Processor
    inputs: Arrays
    weights: RunWeights

    @classmethod
    def open(cls, folder: Path) -> RunSource:
        """Open a run's folder.

        Raises:
            ExportError: if the run is unfinished. TrainingError: if it lacks weights, or golden
                inputs.
        """
        if not (folder / CONFIG).is_file():
            raise ExportError(
                "this is no finished run",
                got=f"no {CONFIG} in {folder}",
                expected="a folder that `vla-align train --out` filled",
                fix="check the path",
            )
        processor = Processor.load(folder / PROCESSOR)
        inputs = read_golden_inputs(folder / GOLDEN_INPUTS, processor)
        weights = RunWeights.find(folder)
        weights.check()
        return cls(folder, processor, inputs, weights)

    def facts(self) -> dict[str, Any]:
        """Return JSON of all that the graphs and golden samples depend on."""
        names = (GOLDEN_INPUTS, *_files(self.folder / PROCESSOR, PROCESSOR))
        others = {name: hash_file((self.folder / name).resolve())[0] for name in names}
        return {
            "files": {**self.weights.hashes(), **others},
            "opset": OPSET,
        }

    def samples(self) -> list[Arrays]:
        """Return the golden inputs as the first graphs take them."""
        return prepare_samples(self.inputs, self.processor)

    def write_graphs(self, folder: Path, *, split_vision: bool) -> tuple[GraphSpec, ...]:
        """Trace and save the graphs in float32, without ever holding all weights in memory."""
        from training.export.graphs import plan_graphs

        model = self.weights.build_empty()
        with self.weights.open() as stored:

            def read(name: str) -> Any:
                return stored(name.removeprefix("model."))

            graphs = list(plan_graphs(model, self.processor, split_vision=split_vision))
            traced = (
                (g.spec.name, trace_graph(g.module, g.spec.inputs, g.spec.outputs, read))
                for g in graphs
            )
            save_graphs(traced, folder)
        return tuple(graph.spec for graph in graphs)

    def describe(self) -> dict[str, Any]:
        """Return what the run says of itself, without paths of this machine.

        "blend" is there only of weights that `vla-align blend` mixed.
        """
        config = read_json(self.folder / CONFIG)
        summary: dict[str, Any] = {}
        if (self.folder / RUN_SUMMARY).is_file():
            summary = read_json(self.folder / RUN_SUMMARY)
        for repeated in ("out", "dataset"):
            summary.pop(repeated, None)
        named = self.folder / DATASET
        blended = self.folder / BLEND
        told = {
            "recipe": config.get("recipe"),
            "dataset": read_json(named) if named.is_file() else None,
            "config": config,
            "model": self.weights.describe(),
            "run": summary,
            **({"blend": read_json(blended)} if blended.is_file() else {}),
        }
        return {name: _without_places(value) for name, value in told.items()}


def reference_outputs(source: RunSource) -> Arrays:
    """Run the fp32 model in torch on the golden inputs; return "actions" (N, H, A) normalised."""
    import torch

    model = source.weights.load()
    outputs = []
    with torch.no_grad():
        for sample in source.samples():
            tensors = {name: torch.from_numpy(value) for name, value in sample.items()}
            outputs.append(model.predict(**tensors).float().numpy()[0])
    return {"actions": np.stack(outputs)}


def read_reference(folder: Path) -> npt.NDArray[np.float32]:
    """Read the actions (N, H, A), normalised, that `reference_outputs` gave."""
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        actions: npt.NDArray[np.float32] = arrays["actions"]
    return actions


def add_reference(source: RunSource, outputs: npt.NDArray[np.float32]) -> Arrays:
    """Return golden arrays: the inputs and reference_actions (N, H, 7) float64, un-normalised."""
    return {**source.inputs, "reference_actions": denormalize(source.processor, outputs)}


def _without_places(value: Any) -> Any:
    """The same JSON, of every path from the root or the home directory its last name alone."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    local = isinstance(value, str) and value.startswith(("/", "~"))
    return Path(value).name if local else value


def _files(folder: Path, prefix: str) -> list[str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [f"{prefix}/{path.relative_to(folder).as_posix()}" for path in found]
