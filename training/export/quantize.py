"""8-bit weights for a CPU robot: dynamic quantisation, the delicate parts left in float."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from vla_align_ros.errors import ExportError

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
KEPT_IN_FLOAT = ("model.action_head", "model.state_encoder", "model.grounding")
"""Modules that cost little and decide much: before the action, and the state's token."""


def quantize_int8(
    source: Path, target: Path, *, keep: Sequence[str] = KEPT_IN_FLOAT, reduce_range: bool = False
) -> int:
    """Write `target` with int8 weights a channel; return the number of nodes changed.

    Only matrix products with constant weights are touched. keep: modules (dotted names in the
    exported module) that stay float32. reduce_range: 7-bit weights, exact on x86 processors without
    VNNI, where 8-bit sums can saturate.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    excluded = find_nodes(onnx.load(source, load_external_data=False), keep)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns on the root logger that no pre-processing was done
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)
    changed = sum(node.op_type == "MatMulInteger" for node in onnx.load(target).graph.node)
    if changed == 0:
        raise ExportError(
            "nothing was quantised",
            got=f"no matrix product with constant weights in {source.name}",
            expected="some",
            fix="export it with precision fp32",
        )
    return changed


def find_nodes(model: object, modules: Sequence[str]) -> list[str]:
    """Return the names of the nodes that were exported from one of `modules`."""
    found = []
    for node in model.graph.node:  # type: ignore[attr-defined]
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES_KEY), "")
        if any(f"'{module}'" in scopes for module in modules):
            # ONNX Runtime first rewrites Gemm as a MatMul of this other name.
            found.append(f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name)
    return found
