"""Names of weights and of architectures, for caches of features and the teachers that fill them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ORIGIN_KEYS = (
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    "_name_or_path",
)
"""What a Hugging Face configuration says of where a model came from, not of what it computes."""


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """Sha-256 of names, shapes, types and bytes of a state dict, 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint_architecture(config: Any) -> str:
    """Sha-256 of a Hugging Face configuration but for the model's origin, 16 hex digits.

    Heads, epsilons and activations decide features, and no weight tells them.
    """
    values = json.loads(config.to_json_string(use_diff=False))
    decisive = {key: value for key, value in values.items() if key not in ORIGIN_KEYS}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
