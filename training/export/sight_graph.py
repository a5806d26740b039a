"""The second graph of a bundle: what the policy sees and where its words look, for run time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.export.graph_file import save_graph
from training.export.graphs import name_others, use_eager_attention
from training.export.precision import Plan, write_plan
from training.export.source import RunSource
from training.export.stages import Stages
from training.export.trace import trace_graph
from training.model import PrismaticVLA
from training.sight.attention import record_attention
from training.sight.config import WatchConfig, choose_blocks
from training.sight.features import ENCODER
from vla_align_ros.contract.files import (
    hash_file,
    read_json_object,
    readable_json,
    write_durably,
)
from vla_align_ros.contract.sight import (
    ATTENTION,
    SIGHT_NAME,
    TOKENS,
    SightStatistics,
    read_sight,
)
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import ExportError
from vla_align_ros.inference.onnx import OnnxBackend
from vla_align_ros.runtime.numbers import UNBOUNDED

PARITY = 1e-3
"""Largest allowed difference from torch, relative to the largest value of the output."""

STRAY = 0.02
"""How far float16 may move a scene's distance, relative to the threshold. (Weights in 8 bits moved
the shipped policy's by 0.06, float16 by 0.001.)"""

Inputs = Mapping[str, npt.NDArray[Any]]


class SightGraph(nn.Module):
    """The policy's own inputs; visual tokens at one place, and attention of the last prompt token.

    place: "encoder" (the towers' output) or "layer_<k>", a hidden state of the language model (0 is
    the embedding output). blocks: attention blocks, counted from 1, whose maps are averaged.
    """

    def __init__(self, model: PrismaticVLA, place: str, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.place = place
        self.blocks = tuple(blocks)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return visual tokens (B, N, D) and attention (B, N), mean over heads and blocks.

        others: state, committed and committed_mask, as far as the policy has them.
        """
        texts = (input_ids, attention_mask, *name_others(self.model, others))
        with record_attention(self.model.llm, self.blocks) as recorded:
            out = self.model(pixel_values, *texts)
        if self.place == ENCODER:
            tokens = out.vision_features
        else:
            tokens = out.hidden_states[int(self.place.removeprefix("layer_"))][:, out.visual]
        weights = torch.stack([recorded[block] for block in self.blocks]).mean(0)  # (B, S, S)
        queries = 0 if self.model.action_queries is None else self.model.action_queries.shape[1]
        inserted = weights.shape[-1] - input_ids.shape[1] - queries
        last = inserted + attention_mask.sum(dim=1) - 1
        row = torch.gather(weights, 1, last[:, None, None].expand(-1, 1, weights.shape[-1]))
        return tokens, row[:, 0, out.visual]


@dataclass(frozen=True, slots=True)
class Sight:
    """The graph, the statistics that it must agree with, and what the bundle records of both."""

    graph: Path
    statistics: SightStatistics
    facts: Mapping[str, Any]


def export_sight(stages: Stages, source: RunSource, *, compact: bool) -> Sight | None:
    """Export the graph of a run that `vla-align sight fit` looked at; None where it did not.

    None as well, with a line that says so, where it looked at other weights than the run has now.

    Args:
        stages: of this export. source: the run. compact: in float16, unless that moves the
            distance of a golden scene by more than `STRAY` of the threshold; else in float32.

    Raises:
        ExportError: if the graph computes something else than the model on the golden inputs.
    """
    known = source.folder / SIGHT_NAME
    if not known.is_file():
        return None
    statistics = read_sight(known)
    if statistics.weights and statistics.weights != source.weights.digest():
        stages.say(
            f"sight is left out: {known} is of other weights than the run has now; fit it again by"
            f" `vla-align sight fit {source.folder} --data ...`, and export again"
        )
        return None
    statistics = dataclasses.replace(statistics, weights="")

    def write(folder: Path) -> None:
        model = source.weights.load()
        graph = SightGraph(model, statistics.place, choose_attention_blocks(model))
        write_sight_graph(graph, source.processor.input_tensors(), folder / "sight.onnx")
        check_sight(folder / "sight.onnx", graph, source.samples())

    facts = {**source.facts(), "statistics": hash_file(known.resolve())[0]}
    exact = stages.run("sight", facts, write) / "sight.onnx"
    if not compact:
        return Sight(exact, statistics, {"base": "float32"})

    def reduce(folder: Path) -> None:
        write_plan(exact, folder / "sight.onnx", Plan(base="float16"))
        stray = measure_stray(exact, folder / "sight.onnx", statistics, source.samples())
        write_durably(folder / "stray.json", readable_json(stray))

    reduced = stages.run("sight-fp16", facts, reduce)
    stray = read_json_object(reduced / "stray.json")
    if not stray["distance"] <= STRAY:
        return Sight(exact, statistics, {"base": "float32", "stray_of_float16": stray})
    return Sight(reduced / "sight.onnx", statistics, {"base": "float16", "stray": stray})


def choose_attention_blocks(model: PrismaticVLA) -> list[int]:
    """Blocks, counted from 1, whose attention is shown: 15 to 18 of 32, and the like elsewhere."""
    return choose_blocks(WatchConfig(), int(model.llm.config.num_hidden_layers))


def write_sight_graph(graph: SightGraph, inputs: Sequence[TensorSpec], path: Path) -> None:
    """Write the graph, whose inputs are the processor's."""
    use_eager_attention(graph.model)  # others do not compute the weights
    outputs = [TensorSpec(name, "float32", ()) for name in (TOKENS, ATTENTION)]
    state = graph.state_dict()
    save_graph(
        trace_graph(graph.eval().requires_grad_(False), inputs, outputs, state.__getitem__), path
    )


def measure_stray(
    exact: Path, reduced: Path, statistics: SightStatistics, samples: Sequence[Inputs]
) -> dict[str, float]:
    """How far a reduced graph strays on one picture each, at the most.

    Returns:
        {"distance": of a scene, relative to the threshold; "attention": share of a map's sum that
        lies on other patches (total variation)}; `UNBOUNDED` where an answer is not finite.
    """
    worst = {"distance": 0.0, "attention": 0.0}
    engines = OnnxBackend(exact), OnnxBackend(reduced)
    for sample in samples:
        one, other = (engine.infer(sample) for engine in engines)
        if not all(np.isfinite(out[name]).all() for out in (one, other) for name in out):
            worst = dict.fromkeys(worst, UNBOUNDED)
            break
        distances = [statistics.distance(out[TOKENS][0]) for out in (one, other)]
        maps = [out[ATTENTION] / max(out[ATTENTION].sum(), 1e-38) for out in (one, other)]
        found = {
            "distance": abs(distances[1] - distances[0]) / statistics.threshold,
            "attention": float(np.abs(maps[1] - maps[0]).sum()) / 2,
        }
        worst = {name: max(worst[name], found[name]) for name in worst}
    for engine in engines:
        engine.close()
    return worst


@torch.no_grad()
def check_sight(path: Path, graph: SightGraph, samples: Sequence[Inputs]) -> float:
    """Return the largest relative difference from torch; ExportError beyond `PARITY`."""
    engine = OnnxBackend(path)
    worst = 0.0
    for sample in samples:
        got = engine.infer(sample)
        wanted = graph(*(torch.from_numpy(value) for value in sample.values()))
        for name, other in zip((TOKENS, ATTENTION), wanted, strict=True):
            reference = other.float().numpy()
            scale = max(float(np.abs(reference).max()), 1e-9)
            worst = float(np.maximum(worst, np.abs(got[name] - reference).max() / scale))
    engine.close()
    if not worst <= PARITY:
        raise ExportError(
            "the sight graph computes something else than the model",
            got=f"a relative difference of {worst:.2e}",
            expected=f"at most {PARITY:.0e}",
            fix="report it with the versions of torch and onnxruntime; do not use this graph",
        )
    return worst
