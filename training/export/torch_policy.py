"""Rebuilds the trained network behind the runtime's seam, from a run or from a bundle alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.model import PrismaticVLA, VlaConfig
from training.quantize import quantize_linears
from training.run_weights import RunWeights
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.manifest import MANIFEST_NAME
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError, VlaAlignError
from vla_align_ros.inference.torch import TorchPolicy

PREFIX = "model."
QUANTIZE = ("none", "nf4", "int8")


class ActingModule(nn.Module):
    """The network with a robot's inputs and outputs by name; token policies give tokens, too."""

    def __init__(self, model: PrismaticVLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return "actions" (1, H, A) normalised, and "tokens" (1, A) of a token policy."""
        if self.model.action_tokens is None:
            return {"actions": self.model.predict(**inputs)}
        tokens = self.model.generate_tokens(**inputs)
        actions = self.model.action_tokens.decode(tokens).float().unsqueeze(1)
        return {"actions": actions, "tokens": tokens}


def load_policy(
    folder: Path, *, dtype: torch.dtype, device: torch.device, quantize: str = "none"
) -> TorchPolicy:
    """Rebuild the network of a run or a bundle, in eval mode.

    Args:
        folder: a run (model.json and model.safetensors, or openvla/; and processor/), or a bundle,
            whose weights are taken from its graphs. dtype: of weights and activations. device:
            where it goes.
        quantize: "nf4" or "int8" stores the language model's linear layers so (bitsandbytes).

    Raises:
        BackendError: if the folder is neither, or the bundle's graphs do not hold every weight.
    """
    if quantize not in QUANTIZE:
        raise BackendError(
            "quantisation is unknown", got=repr(quantize), expected=" or ".join(QUANTIZE)
        )
    if (folder / MANIFEST_NAME).is_file():
        bundle = Bundle.open(folder)
        model, processor = rebuild_from_bundle(bundle), bundle.processor
    else:
        try:
            weights, processor = RunWeights.find(folder), Processor.load(folder / "processor")
            weights.check()
            model = weights.load()
        except VlaAlignError as cause:
            raise BackendError(
                "network cannot be rebuilt", got=cause, expected="the folder of a run or a bundle"
            ) from cause
    return prepare_policy(model, processor, dtype=dtype, device=device, quantize=quantize)


def prepare_policy(
    model: PrismaticVLA,
    processor: Processor,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str = "none",
) -> TorchPolicy:
    """Bring a network to a dtype, a device and a storage of its weights (see `load_policy`)."""
    model = model.without_grounding().eval().requires_grad_(False)
    cast_parameters(model, dtype)
    if quantize != "none":
        quantize_linears(model, find_llm_linears(model), quantize, compute_dtype=dtype)
    outputs = tuple(processor.output_tensors())
    if model.action_tokens is not None:
        outputs += (TensorSpec("tokens", "int64", (1, model.config.head.action_dim)),)
    module = ActingModule(model).to(device)
    return TorchPolicy(module, tuple(processor.input_tensors()), outputs)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters in place; buffers, such as the rotary tables, keep their precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def find_llm_linears(model: PrismaticVLA) -> list[str]:
    """Names of the linear layers in the language model's blocks."""
    blocks = [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith("llm.") and ".layers." in name
    ]
    return [name for name, module in blocks if isinstance(module, nn.Linear)]


def rebuild_from_bundle(bundle: Bundle) -> PrismaticVLA:
    """Build the network that a bundle's provenance describes, with the weights of its graphs.

    Raises:
        BackendError: if the description is missing, or a weight is.
    """
    config = read_config(bundle)
    with torch.random.fork_rng(devices=[]):
        model = PrismaticVLA(config, pretrained=False).without_grounding()
    weights = read_weights(bundle, set(model.state_dict()))
    absent = find_absent(model, weights)
    if absent:
        raise BackendError(
            "bundle does not hold every weight of its network",
            got=f"no {absent[:3]} ({len(absent)} in all)",
            expected="graphs whose weights carry the parameters' names",
            fix="give the folder of the run, or export it with this version",
        )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def read_config(bundle: Bundle) -> VlaConfig:
    """Return the network that the bundle's provenance describes."""
    provenance: Mapping[str, Any] = bundle.manifest["provenance"]
    run = provenance.get("config") or {}
    described = provenance.get("model") or (run.get("model") if isinstance(run, dict) else None)
    try:
        config = VlaConfig.from_dict(described)
    except (VlaAlignError, AttributeError, TypeError, KeyError, ValueError) as cause:
        raise BackendError(
            "bundle does not describe its network",
            got=cause,
            expected="the model's configuration in its provenance",
            fix="give the folder of the run, or export it with this version",
        ) from cause
    return dataclasses.replace(config, attention_backend="eager")


def read_weights(bundle: Bundle, wanted: set[str]) -> dict[str, Tensor]:
    """Read weights in float32 from a bundle's graphs, by the names that the network has for them.

    Weights that are stored in 8 bits come back as the values that the graph computes with.
    """
    from training.export.graph_file import load_graph
    from training.export.names import read_named
    from training.export.precision import restore_weights

    found: dict[str, Tensor] = {}
    for spec in bundle.acting_graphs:
        graph = load_graph(bundle.graph_path(spec.name))
        restore_weights(graph)
        for name, array in read_named(graph).items():
            plain = name.removeprefix(PREFIX)
            if plain in wanted and plain not in found:
                found[plain] = torch.from_numpy(array.astype(np.float32, copy=False))
    return found


def find_absent(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the model's state that no weight fills, but for those tied to one that is."""
    state = model.state_dict(keep_vars=True)
    filled = {id(tensor) for name, tensor in state.items() if name in weights}
    return sorted(
        name for name, tensor in state.items() if name not in weights and id(tensor) not in filled
    )
