"""The matrix products of a graph: what is quantised, by the name of the weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DELICATE = ("model.action_head", "model.committed", "model.state_encoder", "model.grounding")
"""Modules that cost little and decide much: before the action, and the state's token."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A MatMul or Gemm with a constant matrix.

    name: of the weight. axis: of the weight that counts outputs (the other one is summed over).
    """

    name: str
    node: Any
    axis: int

    @property
    def weight(self) -> Any:
        """The weight's `onnx_ir.Value`."""
        return self.node.inputs[1]

    @property
    def activation(self) -> Any:
        """The other factor's `onnx_ir.Value`."""
        return self.node.inputs[0]

    @property
    def depth(self) -> int:
        """Terms of each sum."""
        return int(self.weight.shape[1 - self.axis])


def find_products(model: Any, *, keep: Sequence[str] = DELICATE) -> list[Product]:
    """List the products in the order in which they run, without those of the modules `keep`."""
    found = []
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or not is_matrix(model, node.inputs[1]):
            continue
        transposed = node.op_type == "Gemm" and read_flag(node, "transB")
        product = Product(node.inputs[1].name, node, 0 if transposed else 1)
        if not belongs(product.name, keep):
            found.append(product)
    return found


def belongs(name: str, modules: Iterable[str]) -> bool:
    """Say whether a weight's dotted name lies in one of some modules."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def is_matrix(model: Any, value: Any) -> bool:
    """Say whether a value is a constant float matrix."""
    return (
        value is not None
        and value.name in model.graph.initializers
        and len(value.shape) == 2
        and value.dtype.is_floating_point()
    )


def read_flag(node: Any, name: str) -> bool:
    """Read an attribute that is 0 or 1, and 0 if it is absent."""
    return bool(node.attributes[name].as_int()) if name in node.attributes else False


def add_constant(model: Any, name: str, tensor: Any) -> Any:
    """Add an initializer (an `onnx_ir` tensor or a numpy array) once; return its value."""
    import onnx_ir as ir

    if name not in model.graph.initializers:
        constant = tensor if not isinstance(tensor, np.ndarray) else ir.tensor(tensor, name=name)
        model.graph.register_initializer(
            ir.Value(
                name=name,
                shape=constant.shape,
                type=ir.TensorType(constant.dtype),
                const_value=constant,
            )
        )
    return model.graph.initializers[name]


def insert_node(
    model: Any,
    before: Any,
    op: str,
    inputs: Sequence[Any],
    outputs: Mapping[str, Any],
    **options: Any,
) -> list[Any]:
    """Insert a node of plain ONNX before another; return its outputs.

    outputs: `onnx_ir.DataType` by name, in order. options: the node's attributes.
    """
    import onnx_ir as ir

    node = ir.node(op, inputs=list(inputs), attributes=options, num_outputs=len(outputs))
    for value, (name, dtype) in zip(node.outputs, outputs.items(), strict=True):
        value.name, value.type = name, ir.TensorType(dtype)
    model.graph.insert_before(before, node)
    return list(node.outputs)


def drop_unused(model: Any) -> None:
    """Drop nodes and constants that nothing uses, and put the nodes in order."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
