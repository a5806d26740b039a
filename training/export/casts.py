"""A graph in bfloat16 or float16: products and what lies between them, with the rest in float32.

What adds up long sums of squares, exponentials or angles stays in float32, as torch's autocast has
it, and so do the modules that decide much. The types are explicit, so a strongly typed compiler has
nothing left to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.export.names import narrow_name
from training.export.products import DELICATE, belongs, drop_unused, insert_node

WIDE = {
    *("Softmax", "LayerNormalization", "RMSNormalization", "Pow", "ReduceMean", "ReduceSum"),
    *("Sqrt", "Reciprocal", "Div", "Cos", "Sin", "CumSum", "Exp", "Log", "ArgMax", "Range"),
    *("Cast", "Where", "Einsum", "ScatterND", "GatherND", "MatMulInteger", "DynamicQuantizeLinear"),
    "ConstantOfShape",
}
"""Operators that are never computed in 16 bits."""

NOT_IN_BFLOAT16 = frozenset({"Conv"})
"""Operators that ONNX's opset 21 does not define in bfloat16."""

_LARGEST_HALF = 65504.0


def lower_precision(
    model: Any, dtype: str, *, delicate: Sequence[str] = DELICATE, simulate: bool = False
) -> int:
    """Compute a float32 graph in "bfloat16" or "float16", in place; return the nodes that do.

    Args:
        model: `onnx_ir.Model`; its inputs and outputs keep their types. dtype: to compute in.
        delicate: modules, or weights by name, that stay in float32.
        simulate: round every result to `dtype` and keep the float32 types, for a machine that
            cannot compute in it: what a kernel that sums in float32 would give.
    """
    import onnx_ir as ir

    low = ir.DataType[dtype.upper()]
    wide = _find_wide(
        model, delicate, NOT_IN_BFLOAT16 if low == ir.DataType.BFLOAT16 else frozenset()
    )
    lowered = [node for node in model.graph if node not in wide]
    if simulate:
        _round_results(model, lowered, low)
        drop_unused(model)
        return len(lowered)
    chosen = set(lowered)
    casts: dict[tuple[str, Any], Any] = {}

    def cast(value: Any, to: Any, before: Any) -> Any:
        key = (value.name, to)
        if key not in casts:
            casts[key] = insert_node(
                model, before, "Cast", [value], {f"{value.name}_{to.name.lower()}": to}, to=to
            )[0]
        return casts[key]

    for node in lowered:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            constant = value.name in model.graph.initializers
            narrow = _narrow(model, value, low) if constant else cast(value, low, node)
            node.replace_input_with(index, narrow)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(low)
    for node in list(model.graph):
        if node in chosen or node.op_type in ("Cast", "DequantizeLinear"):
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == low:
                node.replace_input_with(index, cast(value, ir.DataType.FLOAT, node))
    _restore_outputs(model, low)
    drop_unused(model)
    return len(lowered)


def _find_wide(model: Any, modules: Sequence[str], further: frozenset[str]) -> set[Any]:
    """The nodes that stay in float32: by operator, by module, what only they feed, and angles."""
    import onnx_ir as ir

    wide: set[Any] = set()
    delicate: set[Any] = set()
    weights = model.graph.initializers
    for node in model.graph:
        values = [value for value in node.inputs if value is not None]
        made = [v.producer() for v in values if v.producer() is not None]
        sources = {str(v.name) for v in values if v.name in weights or _is_restored(v)}
        within = any(belongs(name, modules) for name in sources)
        if within or (made and all(producer in delicate for producer in made)):
            delicate.add(node)
        floats = any(value.dtype == ir.DataType.FLOAT for value in (*values, *node.outputs))
        if node in delicate or node.op_type in WIDE | further or not floats:
            wide.add(node)
    return wide | _find_angles(model)


def _find_angles(model: Any) -> set[Any]:
    """All that leads to an angle: bfloat16 does not tell position 255 from 256."""
    found: set[Any] = set()
    waiting = [node for node in model.graph if node.op_type in ("Cos", "Sin")]
    while waiting:
        node = waiting.pop()
        found.add(node)
        makers = (value.producer() for value in node.inputs if value is not None)
        waiting += [maker for maker in makers if maker is not None and maker not in found]
    return found


def _is_restored(value: Any) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _narrow(model: Any, value: Any, low: Any) -> Any:
    """The same constant in 16 bits; what lies beyond float16's range becomes its largest number."""
    import numpy as np
    import onnx_ir as ir

    name = narrow_name(str(value.name), low)
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    source = value.const_value

    def load() -> Any:
        values = source.numpy()
        if low == ir.DataType.FLOAT16 and not _is_weight(source):
            values = np.clip(values, -_LARGEST_HALF, _LARGEST_HALF)
        with np.errstate(over="ignore"):  # an infinite weight is for the gates to find
            return ir.tensor(values.astype(low.numpy()))

    tensor = ir.LazyTensor(load, dtype=low, shape=value.shape, name=name)
    model.graph.register_initializer(
        ir.Value(name=name, shape=value.shape, type=ir.TensorType(low), const_value=tensor)
    )
    return model.graph.initializers[name]


def _is_weight(tensor: Any) -> bool:
    """Weights beyond the range must overflow and be found out; masks may be clipped."""
    return str(tensor.name or "").startswith("model.")


def _round_results(model: Any, nodes: list[Any], low: Any) -> None:
    """Round what goes into the nodes and what comes out of them, and compute in float32."""
    import onnx_ir as ir

    lowered = set(nodes)
    rounded: dict[str, Any] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or value.producer() in lowered:
                continue
            if value.name in model.graph.initializers:
                replacement = _rounded_constant(model, value, low)
            else:
                if value.name not in rounded:
                    rounded[value.name] = _there_and_back(value, low)
                    model.graph.insert_before(node, _makers(rounded[value.name]))
                replacement = rounded[value.name]
            node.replace_input_with(index, replacement)
    for node in nodes:
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            users = list(value.uses())
            result = _there_and_back(value, low)
            model.graph.insert_after(node, _makers(result))
            for user, index in users:
                user.replace_input_with(index, result)
            if value in model.graph.outputs:
                _swap_output(model, value, result)


def _there_and_back(value: Any, low: Any) -> Any:
    """A value of two new casts: to 16 bits and back."""
    import onnx_ir as ir

    narrow = ir.node("Cast", [value], {"to": low})
    narrow.outputs[0].name = f"{value.name}_{low.name.lower()}"
    narrow.outputs[0].type = ir.TensorType(low)
    wide = ir.node("Cast", [narrow.outputs[0]], {"to": ir.DataType.FLOAT})
    result = wide.outputs[0]
    result.name, result.shape = f"{value.name}_rounded", value.shape
    result.type = ir.TensorType(ir.DataType.FLOAT)
    return result


def _makers(result: Any) -> list[Any]:
    last = result.producer()
    return [last.inputs[0].producer(), last]


def _rounded_constant(model: Any, value: Any, low: Any) -> Any:
    import onnx_ir as ir

    narrow = _narrow(model, value, low)
    name = f"{narrow.name}_rounded"
    if name not in model.graph.initializers:
        source = narrow.const_value
        tensor = ir.LazyTensor(
            lambda: ir.tensor(source.numpy().astype("float32")),
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
            name=name,
        )
        model.graph.register_initializer(
            ir.Value(
                name=name,
                shape=value.shape,
                type=ir.TensorType(ir.DataType.FLOAT),
                const_value=tensor,
            )
        )
    return model.graph.initializers[name]


def _swap_output(model: Any, value: Any, result: Any) -> None:
    """Let `result` be the graph's output under `value`'s name."""
    index = list(model.graph.outputs).index(value)
    value.name, result.name = f"{value.name}_exact", value.name
    model.graph.outputs[index] = result


def _restore_outputs(model: Any, low: Any) -> None:
    """Give the graph's outputs back in float32."""
    import onnx_ir as ir

    for value in list(model.graph.outputs):
        if value.dtype != low:
            continue
        node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        result = node.outputs[0]
        result.name, result.shape = f"{value.name}_wide", value.shape
        result.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.append(node)
        _swap_output(model, value, result)
