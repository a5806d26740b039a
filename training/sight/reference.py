"""The pretrained features that drift is measured from: taken once, kept with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from training.files import replace_atomically

REFERENCE_FILE = "reference.safetensors"
_KEY = "of"


def save_reference(folder: Path, features: Mapping[str, Tensor], of: Mapping[str, str]) -> None:
    """Write {name: (rows, width)} and a description of what they are features of."""
    from safetensors.torch import save_file

    whole = {name: value.contiguous() for name, value in features.items()}
    with replace_atomically(folder / REFERENCE_FILE) as temporary:
        save_file(whole, str(temporary), metadata={_KEY: json.dumps(dict(of), sort_keys=True)})


def load_reference(folder: Path, of: Mapping[str, str]) -> dict[str, Tensor] | None:
    """Read them back; None if there are none, or they are of something else than `of`."""
    from safetensors import SafetensorError, safe_open

    path = folder / REFERENCE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            if json.loads((file.metadata() or {}).get(_KEY, "null")) != dict(of):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError):
        return None
