"""One attention block as an ONNX graph, in every precision that engines are built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8", "int4")
LENGTH, WIDTH, HEADS, BLOCK = 16, 64, 2, 32
NARROW = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "int4": TensorProto.FLOAT16}
SCALE = 0.05
OPSET = 21


class Graph:
    """Collects nodes and constants; products take their weights in the graph's precision."""

    def __init__(self, precision: str, seed: int) -> None:
        self.precision = precision
        self.kind = NARROW.get(precision, TensorProto.FLOAT)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.rng = np.random.default_rng(seed)

    def add(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name=f"{name}_node", **attributes)
        )
        return name

    def constant(self, name: str, values: np.ndarray, kind: int | None = None) -> str:
        kind = self.kind if kind is None else kind
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        self.constants.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def integers(self, name: str, values: list[int]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def weight(self, name: str, rows: int, columns: int) -> str:
        """Add a matrix, with its DequantizeLinear where the precision is an integer's or fp8."""
        values = self.rng.normal(scale=0.1, size=(rows, columns))
        if self.precision == "int8":
            scales = np.abs(values).max(axis=0) / 127
            codes = np.rint(values / scales)
            self.constant(f"{name}_codes", codes, TensorProto.INT8)
            self.constant(f"{name}_scales", scales)
            return self.add(
                "DequantizeLinear", f"{name}_codes", f"{name}_scales", name=name, axis=1
            )
        if self.precision == "fp8":
            self.constant(f"{name}_codes", values / 0.01, TensorProto.FLOAT8E4M3FN)
            self.constant(f"{name}_scale", np.array(0.01))
            return self.add("DequantizeLinear", f"{name}_codes", f"{name}_scale", name=name)
        if self.precision == "int4":
            blocks = values.reshape(rows // BLOCK, BLOCK, columns)
            scales = np.abs(blocks).max(axis=1) / 7
            codes = np.rint(blocks / scales[:, None]).reshape(rows, columns)
            self.constant(f"{name}_codes", codes, TensorProto.INT4)
            self.constant(f"{name}_scales", scales)
            return self.add(
                *("DequantizeLinear", f"{name}_codes", f"{name}_scales"),
                **{"name": name, "axis": 0, "block_size": BLOCK},
            )
        return self.constant(name, values)

    def product(self, source: str, name: str, columns: int) -> str:
        """Multiply by a matrix; int8 and fp8 round what goes in, too."""
        if self.precision in ("int8", "fp8"):
            zero = TensorProto.INT8 if self.precision == "int8" else TensorProto.FLOAT8E4M3FN
            scale = self.constant(f"{name}_in_scale", np.array(SCALE))
            point = self.constant(f"{name}_in_zero", np.array(0), zero)
            codes = self.add("QuantizeLinear", source, scale, point, name=f"{name}_in_codes")
            source = self.add("DequantizeLinear", codes, scale, point, name=f"{name}_in")
        weight = self.weight(f"{name}_weight", WIDTH, columns)
        return self.add("MatMul", source, weight, name=name)


def write_attention(
    path: Path, precision: str = "fp32", *, seed: int = 0, external: bool = False
) -> Path:
    """Write LayerNorm, attention over heads, projection and residual: x to y, float32 (1, S, D).

    external: whether the weights go to ``<path>.data``.
    """
    graph = Graph(precision, seed)
    x = "x"
    if precision in NARROW:
        x = graph.add("Cast", "x", name="narrow", to=graph.kind)
    gain, bias = graph.constant("gain", np.ones(WIDTH)), graph.constant("bias", np.zeros(WIDTH))
    normed = graph.add("LayerNormalization", x, gain, bias, name="normed", axis=-1)
    split = graph.integers("split", [1, LENGTH, HEADS, WIDTH // HEADS])
    heads = {}
    for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        flat = graph.product(normed, name, WIDTH)
        apart = graph.add("Reshape", flat, split, name=f"{name}_apart")
        heads[name] = graph.add("Transpose", apart, name=f"{name}_heads", perm=order)
    scores = graph.add("MatMul", heads["query"], heads["key"], name="scores")
    scale = graph.constant("scale", np.array(1 / np.sqrt(WIDTH // HEADS)))
    scaled = graph.add("Mul", scores, scale, name="scaled")
    weights = graph.add("Softmax", scaled, name="weights", axis=-1)
    mixed = graph.add("MatMul", weights, heads["value"], name="mixed")
    back = graph.add("Transpose", mixed, name="back", perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", back, graph.integers("whole", [1, LENGTH, WIDTH]), name="joined")
    out = graph.add("Add", x, graph.product(joined, "projected", WIDTH), name="sum")
    graph.add("Cast", out, name="y", to=TensorProto.FLOAT)
    save_graph(path, graph.nodes, graph.constants, external=external)
    return path


def save_graph(
    path: Path, nodes: list[Any], constants: list[Any], *, external: bool = False
) -> None:
    """Write nodes from x to y, both float32 (1, S, D)."""
    shape = [1, LENGTH, WIDTH]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "attention", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=path.name + ".data",
        size_threshold=0,
    )
