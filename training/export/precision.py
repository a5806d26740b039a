"""What a precision means: which products in how many bits, and in what the rest is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.export.casts import lower_precision
from training.export.graph_file import OPSET, load_graph, save_graph
from training.export.products import DELICATE, add_constant, drop_unused, find_products
from training.export.quantize import BLOCKS, quantize
from vla_align_ros.errors import ExportError

AUTO, AUTO_WEIGHTS = "auto", "auto_weights"
SEARCHED = (AUTO, AUTO_WEIGHTS)
"""Precisions that keep what does not bear fewer bits in the base."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a graph is computed.

    method: of the products (see `quantize`), or None. base: "float32", "bfloat16" or "float16",
    for all that is not delicate. kept: products that stay in the base. block: for int4. spared:
    further products that stay in float32, as delicate ones do.
    """

    method: str | None = None
    base: str = "float32"
    kept: tuple[str, ...] = ()
    block: int = BLOCKS[0]
    spared: tuple[str, ...] = ()

    @property
    def rounds_activations(self) -> bool:
        """Whether ranges of activations must be measured beforehand."""
        return self.method in ("int8", "fp8")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "kept": list(self.kept), "spared": list(self.spared)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gives."""
        lists = {name: tuple(data[name]) for name in ("kept", "spared")}
        return cls(**{**data, **lists})

    def describe(self) -> str:
        """Say it in a few words."""
        parts = [
            self.method or self.base,
            *([f"block {self.block}"] if self.method == "int4" else []),
        ]
        if self.method is not None:
            parts.append(f"the rest {self.base}")
        return ", ".join(parts)


CPU_PLANS = {
    "fp32": Plan(),
    "fp16": Plan(base="float16"),
    "int8": Plan("int8_weights"),
    "int8_dynamic": Plan("int8_dynamic"),
    "int4": Plan("int4"),
    AUTO: Plan("int8_dynamic"),
    AUTO_WEIGHTS: Plan("int8_weights"),
}
"""Of bundles for ONNX Runtime and OpenVINO: where bits are few, in storage or on integer units."""

ENGINE_PLANS = {
    "fp32": Plan(),
    "bf16": Plan(base="bfloat16"),
    "fp16": Plan(base="float16"),
    "int8": Plan("int8", "bfloat16"),
    "fp8": Plan("fp8", "bfloat16"),
    "int4": Plan("int4", "bfloat16"),
    AUTO: Plan("int8", "bfloat16"),
}
"""Of TensorRT engines: explicit Q/DQ and strong types. `auto` starts from its method and keeps what
does not bear it."""


def find_plan(precision: str, *, engine: bool, block: int = BLOCKS[0]) -> Plan:
    """Return the plan that a precision stands for; ExportError, naming those there are, if none."""
    plans = ENGINE_PLANS if engine else CPU_PLANS
    if precision not in plans:
        elsewhere = precision in (CPU_PLANS if engine else ENGINE_PLANS)
        where = "with --trt" if not engine else "without --trt"
        raise ExportError(
            "unknown precision",
            got=repr(precision),
            expected=" or ".join(plans),
            fix=f"{precision} is made {where}" if elsewhere else "correct --precision",
        )
    if block not in BLOCKS:
        raise ExportError(
            "unknown block size", got=block, expected=" or ".join(map(str, BLOCKS)), fix="--block"
        )
    return replace(plans[precision], block=block)


def write_plan(
    source: Path,
    target: Path,
    plan: Plan,
    ranges: Mapping[str, float] | None = None,
    *,
    simulate: bool = False,
) -> list[str]:
    """Write a float32 graph as a plan has it; return the names of the quantised products.

    Args:
        source: as `trace` made it, or weights of 8 bits that were restored.
        target: a new file. ranges: largest activation by product, if the plan rounds them.
        simulate: compute in float32 and round each result to the base, for a machine without it.
    """
    model = load_graph(source)
    done = apply_plan(model, plan, ranges, simulate=simulate)
    save_graph(model, target)
    return done


def apply_plan(
    model: Any, plan: Plan, ranges: Mapping[str, float] | None, *, simulate: bool = False
) -> list[str]:
    """Do to a graph in memory what `write_plan` does to a file."""
    import ml_dtypes

    done: list[str] = []
    if plan.method is not None:
        left = {*plan.kept, *plan.spared}
        chosen = {product.name for product in find_products(model)} - left
        low = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
        done = quantize(
            model,
            plan.method,
            only=chosen if left else None,
            ranges=ranges,
            block=plan.block,
            scale_dtype=low[plan.base],
            typed=not simulate,
        )
    if plan.base != "float32":
        delicate = (*DELICATE, *plan.spared)
        lower_precision(model, plan.base, delicate=delicate, simulate=simulate)
    return done


def restore_weights(model: Any) -> tuple[str, ...]:
    """Turn weights that lie in 8 bits back to float32, in place; return products that never were.

    What the export of a bundle spared is spared again, also where a weight's name tells nothing.
    A graph without such weights is left as it is, and () returned.

    Raises:
        ExportError: if activations are rounded, too: such a graph is no source for another.
    """
    rounded = {"QuantizeLinear", "DynamicQuantizeLinear"} & {node.op_type for node in model.graph}
    if rounded:
        raise ExportError(
            "graph has rounded activations",
            got=sorted(rounded),
            expected="a bundle in fp32, or with weights alone in 8 bits",
            fix="export the run with --precision fp32, and build from that bundle",
        )
    packed = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    names = {_restore(model, node) for node in packed}
    model.opset_imports[""] = max(OPSET, model.opset_imports[""])  # only types were added since 20
    drop_unused(model)
    if not packed:
        return ()
    return tuple(p.name for p in find_products(model, keep=()) if p.name not in names)


def _restore(model: Any, node: Any) -> str:
    """Put a float32 weight in the place of codes and scales; return its name."""
    import onnx_ir as ir

    codes, scales = (value.const_value.numpy() for value in node.inputs[:2])
    values = codes.astype(np.float32)
    axis = int(node.attributes["axis"].as_int())
    if "block_size" in node.attributes and node.attributes["block_size"].as_int():
        wide = np.repeat(scales, int(node.attributes["block_size"].as_int()), axis=axis)
    else:
        wide = np.expand_dims(scales, tuple(i for i in range(values.ndim) if i != axis))
    name = node.outputs[0].name.removesuffix("_restored")
    node.outputs[0].name = f"{name}_made"
    value = add_constant(model, name, (values * wide).astype(np.float32))
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    model.graph.remove(node, safe=True)
    return str(name)
