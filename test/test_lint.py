"""Runs ROS's own linters, which the build farm runs too; ruff and mypy run in scripts/check."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = [str(ROOT / name) for name in ("setup.py", "vla_align_ros", "training", "launch", "test")]


def test_flake8_as_ros_runs_it() -> None:
    flake8 = pytest.importorskip("ament_flake8.main", reason="ament_flake8 is not installed")
    config = str(ROOT / "setup.cfg")
    status, errors = flake8.main_with_errors(argv=["--config", config, *CODE])
    assert status == 0, "\n".join(errors)


def test_pep257_as_ros_runs_it(capfd: pytest.CaptureFixture[str]) -> None:
    pep257 = pytest.importorskip("ament_pep257.main", reason="ament_pep257 is not installed")
    ignored = [f"D{number}" for number in range(100, 108)]  # ruff asks for docstrings
    style = ["--convention", "google", "--add-ignore", *ignored, "D402", "D403", "D417", "--"]
    status = pep257.main(argv=[*style, *CODE])
    assert status == 0, capfd.readouterr().err
