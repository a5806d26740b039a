"""Engine sets for tests, their engines being any bytes: what the contract checks is around them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.engines import SIDECAR, seal
from vla_align_ros.contract.files import readable_json

ENGINES = {"policy": b"engine of the policy", "vision": b"engine of the towers"}


def make_facts(
    bundle_id: str, target: str = "sm89", engines: Mapping[str, bytes] = ENGINES, **changes: Any
) -> dict[str, Any]:
    """Return what engine.json holds for these engines, unsealed."""
    graphs = {
        name: {
            "path": f"{name}.engine",
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "onnx_sha256": hashlib.sha256(name.encode()).hexdigest(),
            "inputs": [{"name": "state", "dtype": "float32", "shape": [1, 7]}],
            "outputs": [{"name": "actions", "dtype": "float32", "shape": [1, 4, 7]}],
        }
        for name, content in engines.items()
    }
    return {
        "format": "vla_align_ros.engine",
        "schema_version": 1,
        "bundle_id": bundle_id,
        "target": target,
        "architecture": target,
        "library": "tensorrt_rtx",
        "library_version": "1.7.1.116",
        "precision": "bf16",
        "scheme": "casts",
        "command": "vla-align export --trt",
        "versions": {"onnx": "1.23.2"},
        "graphs": graphs,
        "gates": {},
        **changes,
    }


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a sidecar with the hash that fits it."""
    (folder / SIDECAR).write_bytes(readable_json(seal(facts)))


def make_engine_set(
    bundle: Bundle, target: str = "sm89", engines: Mapping[str, bytes] = ENGINES, **changes: Any
) -> Path:
    """Write an engine set into a bundle by hand; return its folder."""
    folder = bundle.path / "engines" / target
    folder.mkdir(parents=True)
    for name, content in engines.items():
        (folder / f"{name}.engine").write_bytes(content)
    write_facts(folder, make_facts(bundle.id, target, engines, **changes))
    return folder
