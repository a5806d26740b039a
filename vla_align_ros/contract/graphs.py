"""Which graphs a policy consists of, in the order in which they run, and the tensors between them.

``chunk``: one graph "policy", or "vision" and "policy". ``tokens``: "vision", "prefill" and
"decode"; prefill gives the first action token and the cache, decode one further token a call.
Other graphs may lie beside them; they take no part in acting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_align_ros.contract.files import require_keys
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BundleError, ContractError

LAYOUTS = (("policy",), ("vision", "policy"), ("vision", "prefill", "decode"))
"""Names of the graphs that act, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """A graph's name and tensors; all shapes are static."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without the name."""
        return {
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
        }

    @classmethod
    def from_dict(cls, name: str, data: object) -> GraphSpec:
        """Read the JSON form; ContractError if it is none."""
        fields = require_keys(data, ("inputs", "outputs"), f"graph {name!r}")
        sides = {s: _read_tensors(fields[s], f"{s} of graph {name!r}") for s in fields}
        return cls(name, **sides)


def chunk_graphs(
    processor: Processor, visual: tuple[int, ...] | None = None
) -> tuple[GraphSpec, ...]:
    """Return the graphs of a chunk policy.

    Args:
        processor: of the policy. visual: shape of the visual tokens (1, N, D) if vision is a graph
            of its own.
    """
    pixels, *rest = processor.input_tensors()
    if visual is None:
        return (GraphSpec("policy", (pixels, *rest), processor.output_tensors()),)
    tokens = TensorSpec("visual", "float32", visual)
    return (
        GraphSpec("vision", (pixels,), (tokens,)),
        GraphSpec("policy", (tokens, *rest), processor.output_tensors()),
    )


def token_graphs(
    processor: Processor, visual: tuple[int, ...], *, rows: int, block: tuple[int, ...]
) -> tuple[GraphSpec, ...]:
    """Return the graphs of a token policy.

    Args:
        processor: of the policy. visual: shape of the visual tokens (1, N, D). rows: tokens that
            the cache holds: all that is read, and all decoded tokens but the last. block: what the
            cache keeps of one token: (layers, key-value heads, width of a head).
    """
    pixels, *rest = processor.input_tensors()
    mask = next(tensor for tensor in rest if tensor.name == "attention_mask")
    tokens = TensorSpec("visual", "float32", visual)
    cache = tuple(TensorSpec(name, "float32", (rows, *block)) for name in ("keys", "values"))
    action = TensorSpec("action", "float32", (1, 1))
    return (
        GraphSpec("vision", (pixels,), (tokens,)),
        GraphSpec(
            "prefill", (tokens, *rest), (TensorSpec("token", "int64", (1, 1)), action, *cache)
        ),
        GraphSpec(
            "decode",
            (TensorSpec("token", "int64", (1, 1)), TensorSpec("step", "int64", (1,)), mask, *cache),
            (
                TensorSpec("next_token", "int64", (1, 1)),
                action,
                TensorSpec("new_keys", "float32", (1, *block)),
                TensorSpec("new_values", "float32", (1, *block)),
            ),
        ),
    )


def find_layout(names: Sequence[str]) -> tuple[str, ...]:
    """Return the graphs that act, in order, among those named; BundleError if they are none."""
    for layout in reversed(LAYOUTS):
        if set(layout) <= set(names):
            return layout
    raise BundleError(
        "bundle's graphs make no policy",
        got=sorted(names),
        expected=" or ".join("+".join(layout) for layout in LAYOUTS),
        fix="export the policy again",
    )


def check_graphs(graphs: Mapping[str, Any], processor: Processor) -> tuple[GraphSpec, ...]:
    """Check that the graphs that act fit the processor and each other; return them in order.

    Args:
        graphs: JSON form by name. processor: of the same bundle.

    Raises:
        BundleError: if they make no policy, or a tensor is not what the layout wants there.
    """
    layout = find_layout(tuple(graphs))
    try:
        found = tuple(
            GraphSpec.from_dict(name, {k: v for k, v in graphs[name].items() if k != "path"})
            for name in layout
        )
    except ContractError as cause:
        raise BundleError("bundle's graphs cannot be read", got=cause) from cause
    shapes = {t.name: t.shape for spec in found for t in (*spec.inputs, *spec.outputs)}
    if any(extent is None for shape in shapes.values() for extent in shape):
        raise BundleError("bundle's graphs are not static", got=shapes, expected="fixed shapes")
    known: dict[str, tuple[Any, ...]] = shapes
    expected: tuple[GraphSpec, ...]
    if "prefill" in layout:
        rows, *block = known.get("keys") or (0,)
        visual = known.get("visual", ())
        expected = token_graphs(processor, visual, rows=rows, block=tuple(block))
    else:
        expected = chunk_graphs(processor, known.get("visual") if "vision" in layout else None)
    for spec, wanted in zip(found, expected, strict=True):
        if spec != wanted:
            raise BundleError(
                f"bundle's graph {spec.name!r} does not fit its processor",
                got=spec.to_dict(),
                expected=wanted.to_dict(),
                fix="export the policy again",
            )
    return found


def _read_tensors(data: object, what: str) -> tuple[TensorSpec, ...]:
    if not isinstance(data, list):
        raise ContractError(f"{what} are no list", got=data, expected="a list of tensors")
    return tuple(TensorSpec.from_dict(item) for item in data)
