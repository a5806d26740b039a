"""From a module without weights to a static ONNX graph whose weights are read when it is saved.

Tracing needs names and shapes alone, so a network of any size is traced in the memory of a small
one, and saved tensor by tensor.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from training.export.graph_file import OPSET
from training.export.names import TRANSPOSED, note_lost_names
from vla_align_ros.contract.spec import TensorSpec

Reader = Callable[[str], Tensor]


def trace_graph(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], read: Reader
) -> Any:
    """Trace a module to an `onnx_ir.Model` in float32, with plain operators of ONNX alone.

    Args:
        module: on the meta device, or real; its parameters are only looked at for their shapes.
            Buffers that no checkpoint stores must be real.
        inputs: of its forward, in order. outputs: what it returns, in order.
        read: gives a tensor of the module's state by name, when the graph is saved.
    """
    import onnx_ir as ir

    stored = set(module.state_dict())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, _without_weights(module, stored), _quiet():
        program: Any = torch.onnx.export(
            module,
            tuple(_example(spec) for spec in inputs),
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    model = program.model
    used = [name for name in model.graph.initializers if name in stored]
    for name, value in model.graph.initializers.items():
        if name in stored:
            value.const_value = _lazy(read, name, value.shape)
    _fold_transposed_weights(model, read, stored)
    with _quiet():
        program.optimize()
    model = program.model
    ir.passes.common.ClearMetadataAndDocStringPass()(model)
    note_lost_names(model, read, used)
    model.producer_name, model.producer_version = "vla_align_ros", None
    return model


def _example(spec: TensorSpec) -> Tensor:
    shape = tuple(int(extent or 1) for extent in spec.shape)
    return torch.ones(shape, dtype=getattr(torch, spec.dtype))


@contextlib.contextmanager
def _without_weights(module: nn.Module, stored: set[str]) -> Iterator[None]:
    """Put fake tensors in the place of a module's stored ones while it is traced."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    fakes: dict[int, Any] = {}
    for prefix, part in module.named_modules():
        for table in (part._parameters, part._buffers):
            for key, tensor in table.items():
                name = f"{prefix}.{key}" if prefix else key
                if tensor is None or name not in stored:
                    continue
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    fakes[id(tensor)] = nn.Parameter(fake, False) if is_parameter else fake
                replaced.append((table, key, tensor))
                table[key] = fakes[id(tensor)]
    try:
        yield
    finally:
        for table, key, tensor in replaced:
            table[key] = tensor


def _lazy(read: Reader, name: str, shape: Any, *, transpose: bool = False) -> Any:
    import onnx_ir as ir

    def load() -> Any:
        tensor = read(name).detach().to(torch.float32)
        tensor = tensor.t() if transpose else tensor
        return ir.tensor(tensor.contiguous().numpy(), name=name)

    return ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def _fold_transposed_weights(model: Any, read: Reader, stored: set[str]) -> None:
    """Replace Transpose(weight) by a weight that is stored transposed, and named so."""
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.name not in stored or len(source.shape) != 2:
            continue
        name = source.name + TRANSPOSED
        if name not in graph.initializers:
            rows, columns = source.shape
            tensor = _lazy(read, source.name, (columns, rows), transpose=True)
            graph.register_initializer(
                ir.Value(
                    name=name,
                    shape=ir.Shape((columns, rows)),
                    type=ir.TensorType(ir.DataType.FLOAT),
                    const_value=tensor,
                )
            )
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node, safe=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
