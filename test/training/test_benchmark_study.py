"""What is published of the study is what its folders hold, and nothing that was not run."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from studies import network, write_folder

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from training.benchmark.evaluate import Request, evaluate_suite
from training.benchmark.narrow import STUDIES
from training.benchmark.plot import draw_rates
from training.benchmark.stages import Rules
from training.benchmark.study import (
    FIRST,
    WIDE,
    gather,
    publish,
    write_tables,
)
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.pages import put_between

PAGE = f"before\n{FIRST.begin}\nold\n{FIRST.end}\nafter\n"


def tables_of(results: dict[str, Any], name: str = FIRST.name) -> tuple[str, str, str]:
    return WIDE[name].begin, WIDE[name].end, f"{write_tables(results)}\n"


@pytest.fixture(scope="module")
def study(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that acted beside the expert in one of two environments."""
    out = tmp_path_factory.mktemp("study")
    for name in ("start", "default/seed_0", "pilot_100"):
        (out / "runs" / name).mkdir(parents=True)
        shutil.copy(short / "run.json", out / "runs" / name)
    rules = Rules("tabletop", max_steps=4)
    evaluate_suite(Request(rules, [f"start={short}", None], ["none"], 2, out=out / "evaluation"))
    return out


def test_the_figures_are_those_of_the_folders(study: Path) -> None:
    results = gather(study)
    assert [variant["name"] for variant in results["variants"]] == ["start", "expert"]
    assert results["variants"][0]["envs"]["none"]["episodes"] == 2
    assert [run["name"] for run in results["runs"]] == ["default/seed_0", "start"], "no pilots"
    recorded = json.loads((study / "runs/start/run.json").read_text())
    assert results["runs"][1]["seconds"] == recorded["seconds"]
    assert f"| `start` | {recorded['samples']} | {recorded['seconds']:.0f} |" in write_tables(
        results
    )


def test_before_the_diagnosis_there_is_no_table_of_sight(study: Path) -> None:
    results = gather(study)
    assert results["sight"] == [] and "probe" not in write_tables(results)


def test_sight_is_compared_by_training_seed(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    (out / "diagnosis").mkdir()
    networks = [network("runs/start", 0.3), network("runs/start", 0.9, when="before")]
    networks += [network(f"default/seed_{seed}", 0.1) for seed in range(6)]
    networks += [network(f"align/seed_{seed}", 0.2 + seed / 100) for seed in range(5)]
    (out / "diagnosis/diagnosis.json").write_text(json.dumps({"networks": networks}))
    results = gather(out)
    assert len(results["sight"]) == 12
    for test in results["sight_tests"]:
        assert list(test["differences"]) == ["0", "1", "2", "3", "4"], "pairs alone"
        assert test["differences"]["4"] == pytest.approx(0.14)
        assert test["p_repeats"] == pytest.approx(1 / 32)
    tables = write_tables(results)
    assert "| align over default | `layer_2` | +0.100, +0.110" in tables
    assert {(test["better"], test["worse"]) for test in results["sight_tests"]} == {
        ("align", "default")
    }, "a test without runs"
    assert "| start | 0.30 [0.26, 0.34] | 0.30 [0.26, 0.34] | - | - | - |" in tables


def test_every_variant_is_compared_with_default_alone(study: Path) -> None:
    pair = {"difference": 0.1, "differences": {"0": 0.1}, "p_repeats": 0.5, "p_value": 0.5}
    pair |= {"wins": 2, "losses": 1, "pairs": 4}
    names = ("default", "align", "freeze")
    rows = [{"better": one, "worse": two, **pair} for one in names for two in names if one != two]
    tables = write_tables({**gather(study), "comparisons": rows})
    assert "| align over default |" in tables and "| freeze over default |" in tables
    assert "over align" not in tables and "over freeze" not in tables


def test_publishing_writes_figures_plot_and_tables(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    publish(study, page)
    once = page.read_text()
    results = json.loads((tmp_path / "results/study.json").read_text())
    assert put_between(PAGE, *tables_of(results)) == once and "old" not in once
    ElementTree.parse(tmp_path / "images/study.svg")
    publish(study, page)
    assert page.read_text() == once


def test_a_narrow_study_is_published_alone_and_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    out, page, repetition = tmp_path / "out", tmp_path / "results.md", STUDIES[1]
    (out / repetition.name).mkdir(parents=True)
    write_folder(out / repetition.name, {("default", 5): (1, 1, 0, 0), ("align", 5): (1, 1, 1, 0)})
    page.write_text(f"{PAGE}{repetition.begin}\nnot yet\n{repetition.end}\n")
    publish(out, page)
    text = page.read_text()
    assert text.startswith(PAGE) and "not yet" not in text
    assert "| align over default | +0.500 | +0.500 |" in text
    published = [path.name for path in sorted(tmp_path.glob("*/study*"))]
    assert published == ["study_narrow2.svg", "study_narrow2.json"]
    ElementTree.parse(tmp_path / "images/study_narrow2.svg")


def test_a_study_without_evaluation_or_a_page_without_marks_is_told(
    study: Path, tmp_path: Path
) -> None:
    assert gather(tmp_path) is None
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    with pytest.raises(ConfigurationError, match="scripts/study evaluate"):
        publish(tmp_path, page)
    assert page.read_text() == PAGE
    page.write_text("a page")
    with pytest.raises(ConfigurationError, match="no place for the tables"):
        publish(study, page)


def test_the_benchmark_s_study_is_published_beside_the_first(study: Path, tmp_path: Path) -> None:
    page, plate = tmp_path / "results.md", WIDE["plate"]
    page.write_text(f"{PAGE}{plate.begin}\nnot yet\n{plate.end}\n")
    publish(study, page, plate)
    assert page.read_text().startswith(PAGE) and "not yet" not in page.read_text()
    published = [path.name for path in sorted(tmp_path.glob("*/study*"))]
    assert published == ["study_plate.svg", "study_plate.json"]


@pytest.mark.parametrize("name", WIDE)
def test_the_published_page_shows_the_published_figures(name: str) -> None:
    docs, place = Path(__file__).resolve().parents[2] / "docs", WIDE[name]
    page = (docs / "results.md").read_text()
    results = json.loads((docs / place.results).read_text())
    assert put_between(page, *tables_of(results, name)) == page
    assert (docs / place.plot).read_text() == draw_rates(results)
