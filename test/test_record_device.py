"""A user adds a machine's figures by one command: measured, told with the machine, in one step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    {"backend": "onnx", "precision": "int8", "p50_ms": 96.04, "p90_ms": 99.0, "proved": True},
    {
        "backend": "tensorrt",
        "precision": "bf16",
        "p50_ms": 3.217,
        "p99_ms": None,
        "load_s": 1.5,
        "memory_mb": 912.4,
    },
    {
        "backend": "torch",
        "label": "torch again",
        "precision": "fp32",
        "p50_ms": 284.0,
        "size_mb": 635,
        "proved": False,
    },
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text('{"id": "abc"}')
    return tmp_path / "bundle"


def make_bench(folder: Path, rows: object, status: int = 0) -> Path:
    """Write a command that answers as `vla-align bench BUNDLE --json` does."""
    command = folder / "bench"
    answer = json.dumps({"ok": True, "rows": rows})
    command.write_text(
        f"#!{sys.executable}\nimport sys\nassert sys.argv[1] == 'bench', sys.argv\n"
        f"assert sys.argv[3:] == ['--json']\nprint('for people')\nprint({answer!r})\n"
        f"sys.exit({status})\n"
    )
    command.chmod(0o755)
    return command


def record(bundle: Path, bench: Path, *words: str) -> subprocess.CompletedProcess[str]:
    results = bundle.parent / "devices.json"
    command = [sys.executable, str(ROOT / "scripts/record_device"), str(bundle)]
    command += ["--bench", str(bench), "--results", str(results), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_machine_is_added_and_a_second_run_replaces_it(bundle, tmp_path):
    done = record(bundle, make_bench(tmp_path, ROWS, status=1), "--name", "Some Board")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "| Some Board | onnx | int8 | 96 | 99 | - | - | - | - | - | passed |",
        "| Some Board | tensorrt | bf16 | 3.22 | - | - | - | 1.5 | 912 | - | - |",
        "| Some Board | torch again | fp32 | 284 | - | - | - | - | - | 635 | FAILED |",
    ]
    record(bundle, make_bench(tmp_path, ROWS[:1]), "--name", "Another")
    record(bundle, make_bench(tmp_path, ROWS[:1]), "--name", "Some Board")
    machines = json.loads((tmp_path / "devices.json").read_text())["machines"]
    assert [machine["name"] for machine in machines] == ["Another", "Some Board"]
    entry = machines[1]
    assert entry["rows"] == ROWS[:1] and entry["bundle_id"] == "abc"
    assert entry["command"] == "vla-align bench bundle --json"
    assert entry["machine"]["cpus"] >= 1 and entry["machine"]["memory_gb"] > 0.1
    assert "onnxruntime" in entry["machine"]["versions"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "bundle", "devices.json"]


@pytest.mark.parametrize(("rows", "status"), [([], 0), ([], 1), (ROWS, 130)])
def test_a_measurement_that_failed_adds_nothing(bundle, tmp_path, rows, status):
    done = record(bundle, make_bench(tmp_path, rows, status))
    assert done.returncode != 0 and "gave no rows" in done.stderr
    assert not (tmp_path / "devices.json").exists()
