"""Products in fewer bits, in plain ONNX: what each method stores and which nodes it inserts.

``int8_weights`` and ``int4`` store the weight in fewer bits and compute in floating point. ``int8``
and ``fp8`` round the activations, too, by scales measured beforehand (explicit Q/DQ, symmetric, as
TensorRT takes it). ``int8_dynamic`` rounds them by scales found at run time, on integer units of a
CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.export.products import Product, add_constant, drop_unused, find_products, insert_node
from vla_align_ros.errors import ExportError

METHODS = ("int8_weights", "int8_dynamic", "int8", "fp8", "int4")
BLOCKS = (128, 64, 32)
"""Terms of a sum that share a scale in int4, largest first; each product takes the first asked for
or smaller that divides its depth."""

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # shares of a block's peak that are tried in int4
_PEAK = {"int8": 127.0, "int8_dynamic": 64.0, "fp8": 448.0, "int4": 7.0}
"""Largest code of a weight. In ``int8_dynamic`` two products with an activation's 8 bits must fit
into 16 bits: x86 without VNNI sums them there and saturates, so that it would act otherwise."""

Array = npt.NDArray[Any]


def quantize(
    model: Any,
    method: str,
    *,
    only: set[str] | None = None,
    ranges: Mapping[str, float] | None = None,
    block: int = BLOCKS[0],
    scale_dtype: Any = np.float32,
    typed: bool = True,
) -> list[str]:
    """Quantise products in place; return their names.

    Args:
        model: `onnx_ir.Model` in float32. method: one of `METHODS`.
        only: names of products; by default all that `find_products` finds.
        ranges: largest absolute activation before each product, for int8 and fp8.
        block: for int4. scale_dtype: numpy dtype to whose values scales are rounded, as what
            follows will be computed in it. typed: whether they have that type in the graph, too;
            else they are float32, for a machine that cannot compute in it.

    Raises:
        ExportError: if nothing can be quantised.
    """
    done, scale = [], _ScaleType(np.dtype(scale_dtype), typed)
    for product in find_products(model):
        if only is not None and product.name not in only:
            continue
        if method == "int4" and _block_for(product.depth, block) is None:
            continue
        if method == "int8_dynamic":
            _insert_dynamic(model, product)
        else:
            if method in _PEAK and method != "int4":
                assert ranges is not None
                _insert_rounding(model, product, method, ranges[product.name], scale)
            _store_weight(model, product, method, block, scale)
        done.append(product.name)
    if not done and only is None:
        raise ExportError(
            "nothing was quantised",
            got=f"no matrix product with constant weights that {method} can hold",
            expected="some",
            fix="export it with precision fp32",
        )
    drop_unused(model)
    return done


@dataclass(frozen=True, slots=True)
class _ScaleType:
    """To what scales are rounded, and whether the graph holds them so."""

    rounded: np.dtype[Any]
    typed: bool

    @property
    def stored(self) -> Any:
        """The numpy dtype of scales in the graph."""
        return self.rounded if self.typed else np.dtype(np.float32)


def round_weight(
    values: npt.NDArray[np.float32], method: str, axis: int, block: int, scale_dtype: Any
) -> tuple[Array, Array]:
    """Return codes and scales of a matrix; codes times scales is what the product will use.

    Scales have shape (outputs,), or for int4 the matrix's with `block` terms to one.
    """
    kind = "int8" if method == "int8_weights" else method
    if kind == "int4":
        return _round_blocks(values, 1 - axis, block, scale_dtype)
    peaks = np.abs(values).max(axis=1 - axis, keepdims=True).astype(np.float32)
    scales = _as_scales(peaks / _PEAK[kind], scale_dtype)
    return _encode(values / scales.astype(np.float32), kind), scales.reshape(-1)


def _as_scales(steps: Array, dtype: Any) -> Array:
    """Steps as scales; 1 where one is 0, or too small for `dtype`: its weights become 0."""
    scales = steps.astype(dtype)
    return np.where(scales > 0, scales, np.ones((), dtype))


def _encode(scaled: Array, kind: str) -> Array:
    import ml_dtypes

    if kind == "fp8":
        limit = _PEAK["fp8"]
        return np.clip(scaled, -limit, limit).astype(ml_dtypes.float8_e4m3fn)
    limit = _PEAK[kind]
    codes = np.rint(scaled).clip(-limit, limit).astype(np.int8)
    return codes.astype(ml_dtypes.int4) if kind == "int4" else codes


def _round_blocks(values: Array, axis: int, block: int, dtype: Any) -> tuple[Array, Array]:
    """Choose for each block the clipping that loses least."""
    parts = np.moveaxis(values, axis, 0).reshape(-1, block, values.shape[1 - axis])
    peaks = np.abs(parts).max(axis=1, keepdims=True).astype(np.float32)
    best = np.full(peaks.shape, np.inf, dtype=np.float32)
    chosen = _as_scales(peaks / _PEAK["int4"], dtype)
    for clip in _CLIPS:
        scales = _as_scales(clip * peaks / _PEAK["int4"], dtype)
        wide = scales.astype(np.float32)
        restored = np.rint(parts / wide).clip(-_PEAK["int4"], _PEAK["int4"]) * wide
        error = np.square(parts - restored).sum(axis=1, keepdims=True)
        chosen = np.where(error < best, scales, chosen)
        best = np.minimum(error, best)
    codes = _encode(parts / chosen.astype(np.float32), "int4").reshape(-1, values.shape[1 - axis])
    return np.moveaxis(codes, 0, axis), np.moveaxis(chosen[:, 0], 0, axis)


def _block_for(depth: int, largest: int) -> int | None:
    return next((size for size in BLOCKS if size <= largest and depth % size == 0), None)


def _store_weight(model: Any, product: Product, method: str, block: int, scale: _ScaleType) -> None:
    """Put codes, scales and a DequantizeLinear in the place of the weight."""
    import onnx_ir as ir

    weight, axis = product.weight, product.axis
    size = _block_for(product.depth, block) or 0
    kind = {"int8_weights": ir.DataType.INT8, "int8": ir.DataType.INT8}.get(
        method, ir.DataType.FLOAT8E4M3FN if method == "fp8" else ir.DataType.INT4
    )
    shape = list(weight.shape)
    if method == "int4":
        scale_shape = [
            extent // size if i == 1 - axis else extent for i, extent in enumerate(shape)
        ]
    else:
        scale_shape = [shape[axis]]

    source = weight.const_value

    def load(part: int) -> Any:
        values = source.numpy().astype(np.float32)
        made = round_weight(values, method, axis, size, scale.rounded)[part]
        return ir.tensor(made.astype(scale.stored) if part else made)

    scale_type = ir.DataType.from_numpy(scale.stored)
    codes = ir.LazyTensor(lambda: load(0), dtype=kind, shape=ir.Shape(shape))
    scales = ir.LazyTensor(lambda: load(1), dtype=scale_type, shape=ir.Shape(scale_shape))
    inputs = [
        add_constant(model, f"{weight.name}_codes", codes),
        add_constant(model, f"{weight.name}_scales", scales),
    ]
    options = {"axis": 1 - axis, "block_size": size} if method == "int4" else {"axis": axis}
    made = {f"{weight.name}_restored": scale_type}
    (restored,) = insert_node(model, product.node, "DequantizeLinear", inputs, made, **options)
    restored.shape = weight.shape
    product.node.replace_input_with(1, restored)


def _insert_rounding(
    model: Any, product: Product, kind: str, peak: float, scale: _ScaleType
) -> None:
    """Round the activation by a fixed scale, once for all products that share it."""
    import ml_dtypes

    source = product.activation
    name = f"{source.name}_{kind}"
    known = next((use.node for use in source.uses() if _made(use.node, name)), None)
    if known is None:
        zero = np.zeros((), np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)
        width = np.array(peak / _PEAK[kind] if peak > 0.0 else 1.0, dtype=scale.rounded)
        constants = [
            add_constant(model, f"{name}_scale", width.astype(scale.stored)),
            add_constant(model, f"{kind}_zero", zero),
        ]
        types = {name: constants[1].dtype}, {f"{name}_restored": constants[0].dtype}
        (codes,) = insert_node(
            model, product.node, "QuantizeLinear", [source, *constants], types[0]
        )
        (rounded,) = insert_node(
            model, product.node, "DequantizeLinear", [codes, *constants], types[1]
        )
        codes.shape = rounded.shape = source.shape
    else:
        rounded = next(iter(known.outputs[0].uses())).node.outputs[0]
    product.node.replace_input_with(0, rounded)


def _made(node: Any, name: str) -> bool:
    return node.op_type == "QuantizeLinear" and node.outputs[0].name == name


def _insert_dynamic(model: Any, product: Product) -> None:
    """Multiply in integers: activations to uint8 by their own range, at run time."""
    import onnx_ir as ir

    node, source = product.node, product.activation
    name = f"{source.name}_uint8"
    known = next((u.node for u in source.uses() if u.node.op_type == "DynamicQuantizeLinear"), None)
    kinds = ir.DataType
    outputs = {name: kinds.UINT8, f"{name}_scale": kinds.FLOAT, f"{name}_zero": kinds.UINT8}
    codes, scale, zero = (
        insert_node(model, node, "DynamicQuantizeLinear", [source], outputs)
        if known is None
        else known.outputs
    )
    weight, transposed = product.weight, product.axis == 0

    stored = weight.const_value

    def load(part: int) -> Any:
        values = stored.numpy().astype(np.float32)
        values = values.T if transposed else values
        return ir.tensor(round_weight(values, "int8_dynamic", 1, 0, np.float32)[part])

    rows, columns = (weight.shape[1], weight.shape[0]) if transposed else tuple(weight.shape)
    matrix = ir.LazyTensor(lambda: load(0), dtype=ir.DataType.INT8, shape=ir.Shape((rows, columns)))
    scales = ir.LazyTensor(lambda: load(1), dtype=ir.DataType.FLOAT, shape=ir.Shape((columns,)))
    constants = [
        add_constant(model, f"{weight.name}_codes", matrix),
        add_constant(model, f"{weight.name}_scales", scales),
    ]
    base = node.outputs[0].name
    no_offset = add_constant(model, "int8_no_offset", np.zeros((), np.int8))
    factors = [codes, constants[0], zero, no_offset]
    (summed,) = insert_node(model, node, "MatMulInteger", factors, {f"{base}_int": kinds.INT32})
    steps = {
        "Cast": ([summed], f"{base}_sum", {"to": kinds.FLOAT}),
        "Mul": ([scale, constants[1]], f"{base}_scales", {}),
    }
    wide, both = (
        insert_node(model, node, op, inputs, {made: kinds.FLOAT}, **options)[0]
        for op, (inputs, made, options) in steps.items()
    )
    (result,) = insert_node(model, node, "Mul", [wide, both], {f"{base}_scaled": kinds.FLOAT})
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        parts, made = [result, node.inputs[2]], {f"{base}_biased": kinds.FLOAT}
        (result,) = insert_node(model, node, "Add", parts, made)
    result.shape = node.outputs[0].shape
    ir.convenience.replace_all_uses_with(node.outputs[0], result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
