"""From a trained network to a static ONNX graph, and the proof that it computes the same."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.model import PrismaticVLA
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ExportError

OPSET = 20
PARITY = 1e-4
"""Largest allowed difference of a normalised action between the fp32 graph and torch."""

Inputs = Mapping[str, npt.NDArray[Any]]


class PolicyGraph(nn.Module):
    """What is exported: the processor's inputs, one output, nothing that only training needs."""

    def __init__(self, model: PrismaticVLA) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None = None,
    ) -> Tensor:
        """Return normalised actions (1, H, A)."""
        actions: Tensor = self.model(
            pixel_values, input_ids, attention_mask, state, output_hidden_states=False
        ).actions
        return actions


def export_onnx(model: PrismaticVLA, processor: Processor, path: Path) -> None:
    """Write the chunk policy as one self-contained ONNX file with static shapes, batch 1.

    Raises:
        ExportError: for a tokens head (it decodes in a loop), or a model that does not fit the
        processor.
    """
    if model.config.head.kind != "chunk":
        raise ExportError(
            "this policy cannot be exported to one graph",
            got="a tokens head",
            expected="a chunk head",
            fix="train with HeadConfig(kind='chunk')",
        )
    horizon = processor.spec.action.horizon
    if model.config.head.horizon != horizon:
        raise ExportError(
            "model and processor disagree",
            got=f"horizon {model.config.head.horizon}",
            expected=f"{horizon}",
            fix="export the files of one run",
        )
    use_eager_attention(model)
    graph = PolicyGraph(model.without_grounding()).eval().requires_grad_(False)
    names = [tensor.name for tensor in processor.input_tensors()]
    with _quiet():
        torch.onnx.export(
            graph,
            tuple(torch.from_numpy(a) for a in example_inputs(processor).values()),
            str(path),
            input_names=names,
            output_names=["actions"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
        )


def use_eager_attention(model: PrismaticVLA) -> None:
    """Switch transformers' parts to eager attention, which exports to MatMul and Softmax."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"


def example_inputs(processor: Processor) -> dict[str, npt.NDArray[Any]]:
    """Return inputs as `Processor.prepare` shapes them; half of the tokens are padding."""
    rng = np.random.default_rng(0)
    inputs: dict[str, npt.NDArray[Any]] = {}
    for tensor in processor.input_tensors():
        shape = tuple(int(extent or 1) for extent in tensor.shape)
        if tensor.dtype == "float32":
            inputs[tensor.name] = rng.standard_normal(shape).astype(np.float32)
        elif tensor.name == "attention_mask":
            inputs[tensor.name] = (np.arange(shape[1]) < (shape[1] + 1) // 2).astype(np.int64)[None]
        else:
            inputs[tensor.name] = np.full(shape, processor.tokenizer.bos_id, dtype=np.int64)
    return inputs


def run_onnx(path: Path, samples: Sequence[Inputs]) -> list[npt.NDArray[np.float32]]:
    """Run a graph on CPU, one thread, and return its actions for each sample."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(["actions"], dict(sample))[0] for sample in samples]


@torch.no_grad()
def run_torch(model: PrismaticVLA, samples: Sequence[Inputs]) -> list[npt.NDArray[np.float32]]:
    """Run the fp32 model on the same samples."""
    return [
        model.predict(**{name: torch.from_numpy(value) for name, value in sample.items()})
        .float()
        .numpy()
        for sample in samples
    ]


def check_parity(
    path: Path, model: PrismaticVLA, samples: Sequence[Inputs], limit: float = PARITY
) -> float:
    """Return the largest difference of a normalised action; ExportError beyond `limit`."""
    pairs = zip(run_onnx(path, samples), run_torch(model, samples), strict=True)
    worst = max(float(np.abs(a - b).max()) for a, b in pairs)
    if not worst <= limit:
        raise ExportError(
            "the exported graph computes something else than the model",
            got=f"a difference of {worst:.2e} in normalised actions",
            expected=f"at most {limit:.0e}",
            fix="report it with the versions of torch and onnxruntime; do not use this graph",
        )
    return worst


def strip_metadata(path: Path) -> None:
    """Drop stack traces and module scopes, in place: large, and they name local paths."""
    import onnx

    model = onnx.load(path)
    for entry in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        model.graph,
        model,
    ):
        del entry.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence the exporter's progress and its warnings about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
