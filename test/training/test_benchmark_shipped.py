"""What is published of the shipped policy is what was measured, and all of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
if importlib.util.find_spec("mujoco") is None:
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from training.benchmark.shipped import (
    BEGIN,
    DEMOS,
    END,
    EXACT,
    PAGES,
    PICTURES,
    RUN,
    SHIPPED,
    publish,
    put_tables,
    read_results,
    write_tables,
)
from training.model.checkpoint import WEIGHTS
from vla_align_ros.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder as scripts/shipped leaves it, of the figures that are published."""
    out, results = tmp_path / "out", read_results(ROOT / "docs/results")
    for name in DEMOS:
        write(out / name / "report.json", results[f"tabletop_{name}"]["report"])
    write(out / RUN / "run.json", results["tabletop_training"]["run"])
    (out / RUN / WEIGHTS).write_bytes(b"weights")
    for name, row in zip(("int8", "fp32"), results["tabletop_bundles"]["rows"], strict=True):
        for turn, figures in enumerate(row["turns_ms"], start=1):
            rows = [{f"{key}_ms": value for key, value in figures.items()}]
            write(out / f"bench_{name}_{turn}.json", {"rows": rows})
    write(out / "shifts.json", {"rows": results["tabletop_shifts"]["rows"]})
    write(out / "sight_shifts.json", results["sight_shifts"])
    for name, picture in PICTURES.items():
        shutil.copy(ROOT / "docs/images" / name, out / picture)
    for name in (SHIPPED, EXACT):
        shutil.copytree(ROOT / "bundles/tabletop", out / name)
    return out


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_pages(root: Path) -> None:
    for name in ("docs/results", "docs/images"):
        (root / name).mkdir(parents=True)
    for page, names in PAGES.items():
        blocks = [f"{BEGIN.format(name)}\noutdated\n{END.format(name)}\n" for name in names]
        (root / page).write_text("Words.\n" + "Between.\n".join(blocks))


def test_figures_pictures_and_tables_are_published_and_a_second_time_the_same(
    measured: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    make_pages(root)
    publish(measured, root)
    once = {page: (root / page).read_text() for page in PAGES}
    assert not [page for page, text in once.items() if "outdated" in text]
    published = read_results(root / "docs/results")
    for name in ("tabletop_demo", "tabletop_swap", "tabletop_fp32", "sight_shifts"):
        assert published[name] == read_results(ROOT / "docs/results")[name]
    row = published["tabletop_bundles"]["rows"][0]
    assert row["bytes"] > row["sight_bytes"] > 1e6 and row["largest_errors"]["mm"] > 0
    assert f"{row['bytes'] / 1e6:.1f} MB" in once["README.md"]
    assert all((root / "docs/images" / name).stat().st_size > 10_000 for name in PICTURES)
    publish(measured, root)
    assert once == {page: (root / page).read_text() for page in PAGES}


def test_a_policy_that_was_not_measured_to_the_end_is_not_published(
    measured: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    make_pages(root)
    (measured / "swap/report.json").unlink()
    with pytest.raises(ConfigurationError, match="scripts/shipped make and measure"):
        publish(measured, root)
    assert not list((root / "docs/results").iterdir())


def test_the_published_pages_show_the_published_figures() -> None:
    results = read_results(ROOT / "docs/results")
    shown = write_tables(results)
    for page, names in PAGES.items():
        text = (ROOT / page).read_text()
        assert put_tables(text, shown, names) == text
    ids = [row["bundle_id"] for row in results["tabletop_bundles"]["rows"]]
    assert ids[0] == results["sight_shifts"]["bundle_id"]
    assert ids == [results[f"tabletop_{name}"]["report"]["bundle_id"] for name in ("demo", "fp32")]
