"""The second graph of a bundle: what the policy sees and where its words look, for run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.export.graph_file import save_graph
from training.export.graphs import use_eager_attention
from training.export.source import RunSource
from training.export.stages import Stages
from training.export.trace import trace_graph
from training.model import PrismaticVLA
from training.sight.attention import record_attention
from training.sight.config import WatchConfig, choose_blocks
from training.sight.features import ENCODER
from vla_align_ros.contract.files import hash_file
from vla_align_ros.contract.sight import ATTENTION, SIGHT_NAME, TOKENS, SightStatistics, read_sight
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import ExportError
from vla_align_ros.inference.onnx import OnnxBackend

PARITY = 1e-3
"""Largest allowed difference from torch, relative to the largest value of the output."""

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
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return visual tokens (B, N, D) and attention (B, N), mean over heads and blocks."""
        with record_attention(self.model.llm, self.blocks) as recorded:
            out = self.model(pixel_values, input_ids, attention_mask, state)
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


def export_sight(
    stages: Stages, source: RunSource
) -> tuple[dict[str, Path], SightStatistics | None]:
    """Export the graph of a run that `vla-align sight fit` looked at: {"sight": path}, statistics.

    ({}, None) where it did not. Always fp32: statistics and graph must agree.

    Raises:
        ExportError: if the graph computes something else than the model on the golden inputs.
    """
    known = source.folder / SIGHT_NAME
    if not known.is_file():
        return {}, None
    statistics = read_sight(known)

    def write(folder: Path) -> None:
        model = PrismaticVLA.load(source.folder)
        graph = SightGraph(model, statistics.place, choose_attention_blocks(model))
        write_sight_graph(graph, source.processor.input_tensors(), folder / "sight.onnx")
        check_sight(folder / "sight.onnx", graph, source.samples())

    facts = {**source.facts(), "statistics": hash_file(known.resolve())[0]}
    return {"sight": stages.run("sight", facts, write) / "sight.onnx"}, statistics


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


@torch.no_grad()
def check_sight(path: Path, graph: SightGraph, samples: Sequence[Inputs]) -> float:
    """Return the largest relative difference from torch; ExportError beyond `PARITY`."""
    engine = OnnxBackend(path)
    worst = 0.0
    for sample in samples:
        got = engine.infer(sample)
        wanted = graph(**{name: torch.from_numpy(value) for name, value in sample.items()})
        for name, other in zip((TOKENS, ATTENTION), wanted, strict=True):
            reference = other.float().numpy()
            scale = max(float(np.abs(reference).max()), 1e-9)
            worst = max(worst, float(np.abs(got[name] - reference).max()) / scale)
    engine.close()
    if not worst <= PARITY:
        raise ExportError(
            "the sight graph computes something else than the model",
            got=f"a relative difference of {worst:.2e}",
            expected=f"at most {PARITY:.0e}",
            fix="report it with the versions of torch and onnxruntime; do not use this graph",
        )
    return worst
