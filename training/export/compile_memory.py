"""How much memory engines take on a device, from the shapes of the weights alone.

A reckoning, not a measurement: it leaves out what TensorRT adds (execution contexts, code, and
twice the largest engine while it builds) and what else runs on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}
"""Of a matrix that is a factor of a product; all else stays in bf16 where the products are not."""

_REST_BYTES = {"fp32": 4.0}
_LANGUAGE = "language_model."
_EMBEDDING = "embed_tokens"


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes on the device.

    Attributes:
        vision: weights of towers and projector. language: weights of the language model, once.
        cache: keys and values of a token policy, float32.
    """

    vision: float
    language: float
    cache: float

    @property
    def chunk(self) -> float:
        """Of a chunk policy: everything once, no cache."""
        return self.vision + self.language

    @property
    def tokens(self) -> float:
        """Of a token policy: prefill and decode are two engines, each with the language model."""
        return self.vision + 2 * self.language + self.cache


def reckon_memory(
    shapes: Mapping[str, Iterable[int]],
    precision: str,
    *,
    block: int = 128,
    rows: int = 0,
    row_values: int = 0,
) -> EngineMemory:
    """Add up weights by their shapes.

    Args:
        shapes: of the weights, by their published names. precision: of ``WEIGHT_BYTES``.
        block: of int4, one bf16 scale a block. rows, row_values: tokens that the cache holds, and
            keys or values of one (layers x key-value heads x width of a head).
    """
    sizes = {"vision": 0.0, "language": 0.0}
    for name, shape in shapes.items():
        extents = tuple(shape)
        product = len(extents) == 2 and _EMBEDDING not in name
        each = WEIGHT_BYTES[precision] if product else _REST_BYTES.get(precision, 2.0)
        if product and precision == "int4":
            each += 2.0 / block
        side = "language" if name.startswith(_LANGUAGE) else "vision"
        sizes[side] += each * math.prod(extents)
    return EngineMemory(**sizes, cache=2 * 4.0 * rows * row_values)
