"""`vla-align data` on a lab's own data: what it says, and how fast the loader is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lab_data import make_episodes, write_lines, write_v2
from tiny_data import write_dataset

from training.data.bench import bench_loader
from training.data.config import AugmentConfig, DataConfig
from vla_align_ros.cli import main


def test_info_describes_data_of_another_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v2(tmp_path, make_episodes())
    assert main(["data", "info", str(root), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["codebase_version"], result["episodes"], result["frames"]) == ("v2.1", 4, 25)
    assert result["task_episodes"] == {"pick up the red cube": 2, "open the drawer": 2}


def test_info_counts_episodes_that_have_no_instruction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v2(tmp_path, make_episodes())
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["tasks"], rows[1]["tasks"] = [], [""]
    write_lines(path, rows)
    assert main(["data", "info", str(root)]) == 0
    assert "2 x (no instruction)" in capsys.readouterr().out
    rows[0]["tasks"] = ["another thing"]
    write_lines(path, rows)
    assert main(["data", "info", str(root)]) == 1


def test_check_and_bench_take_data_that_only_settings_make_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v2(tmp_path, make_episodes())
    names = [f"joint_{number}.pos" for number in range(7)]
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = names
    (root / "meta/info.json").write_text(json.dumps(info))
    assert main(["data", "check", f"{root}", "--camera", "top"]) == 0
    words = ["data", "bench", str(root), "--camera", "top", "--batch-size", "4", "--workers", "0"]
    assert main([*words, "--image-size", "32"]) == 1
    error = capsys.readouterr().err
    fix = error[error.index("'data.action_names=") + 1 : error.index("]'") + 1]
    assert main([*words, "--image-size", "32", "--set", fix]) == 0
    assert main([*words, "--set", "optim.lr=1"]) == 1
    assert "expected data.KEY=VALUE" in capsys.readouterr().err


def test_check_asks_the_hub_for_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, **options: Any) -> Path:
        asked.append((name, options["revision"]))
        return write_v2(tmp_path, make_episodes())

    monkeypatch.setattr("training.data.sources.download_dataset", download)
    assert main(["data", "check", "lab/cubes@v2.1", "--camera", "top", "--quick"]) == 0
    assert asked == [("lab/cubes", "v2.1")]


def test_the_bench_times_every_number_of_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, 6)
    for decode in ("online", "once"):
        config = DataConfig(image_size=32, augment=AugmentConfig(enabled=True), decode=decode)  # type: ignore[arg-type]
        result = bench_loader([tmp_path], config, workers=(0, 2), batch_size=4, batches=2)
        assert set(result["samples_per_s"]) == {"0", "2"}
        assert min(result["samples_per_s"].values()) > 0
    words = ["--workers", "1", "--batch-size", "4", "--image-size", "32", "--json"]
    capsys.readouterr()
    assert main(["data", "bench", str(tmp_path), *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["decode"] == "online"
    assert main(["data", "bench", str(tmp_path), "--workers", "-1"]) == 1
