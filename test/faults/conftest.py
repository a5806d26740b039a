"""One laboratory for all faults, so that those that leave the processes whole share them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # lark, below rclpy's type support, imports what Python 3.11 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    import rosidl_generator_py  # noqa: F401

from vla_align_ros.bench.faults import Laboratory

ROOT = Path(__file__).resolve().parents[2]
SLACK_S = 0.2  # a test machine does much else; the figures in docs/safety.md are without


@pytest.fixture(scope="session")
def shipped() -> Path:
    return ROOT / "bundles" / "tabletop"


@pytest.fixture(scope="module")
def laboratory(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Laboratory(shipped, tmp_path_factory.mktemp("faults"), SLACK_S) as laboratory:
        yield laboratory
