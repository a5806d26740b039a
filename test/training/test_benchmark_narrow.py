"""The second study's tables are of its folder's episodes, split by what fine-tuning showed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from studies import CARROT, WORDS, network, write_folder

if importlib.util.find_spec("mujoco") is None:  # importing it here would choose how it draws
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from training.benchmark.narrow import STUDIES, Study, draw, gather, split_lines, write_tables
from vla_align_ros.pages import put_between


def test_the_object_decides_the_part_not_the_receptacle() -> None:
    parts = split_lines([{"instruction": text} for text in WORDS], [CARROT])
    assert [len(parts[part]) for part in ("shown", "other", "exact")] == [2, 2, 1]
    assert split_lines([{"instruction": CARROT}], [])["other"], "nothing was shown"


def test_what_was_forgotten_is_compared_by_training_seed(tmp_path: Path) -> None:
    write_folder(
        tmp_path,
        {
            ("start", 0): (1, 1, 1, 1),
            **{("default", seed): (1, 1, 0, 0) for seed in range(5)},
            **{("align", seed): (1, 1, 1, 0) for seed in range(5)},
        },
    )
    results = gather(tmp_path)
    assert results is not None and results["instructions"] == [CARROT]
    assert [v["name"] for v in results["variants"]] == ["start", "default", "align"]
    align = results["variants"][2]
    assert align["other"]["rates"] == {str(seed): 0.5 for seed in range(5)}
    assert align["other"]["episodes"] == align["shown"]["episodes"] == 10, "no other environment"
    (other,) = [row for row in results["comparisons"]["other"] if row["better"] == "align"]
    assert other["difference"] == 0.5 and other["p_repeats"] == pytest.approx(1 / 32)
    (shown,) = [row for row in results["comparisons"]["shown"] if row["better"] == "align"]
    assert shown["difference"] == 0.0 and shown["p_repeats"] == 1.0
    tables = write_tables(results)
    assert "| align over default | +0.500 | +0.500, +0.500, +0.500, +0.500, +0.500 |" in tables
    assert "| `align/seed_4` | 64 | 10 | 0.0400 |" in tables


def test_later_trainings_do_not_change_what_was_judged(tmp_path: Path) -> None:
    judged = {("start", 0): (1, 1, 1, 1), ("default", 5): (1, 1, 0, 0), ("align", 5): (1, 1, 1, 0)}
    write_folder(tmp_path / "then", judged)
    later = {("default", 10): (1, 1, 1, 1), ("align", 10): (1, 1, 0, 0)}
    write_folder(tmp_path / "now", {**judged, **later})
    then, now = gather(tmp_path / "then"), gather(tmp_path / "now", seeds=(5,))
    everything = gather(tmp_path / "now")
    assert then is not None and now is not None and everything is not None
    for key in ("variants", "comparisons"):
        assert now[key] == then[key] != everything[key]


def test_the_networks_sight_stands_beside_their_success_once_diagnosed(tmp_path: Path) -> None:
    write_folder(tmp_path, {("default", 0): (1, 1, 0, 0), ("freeze", 0): (1, 1, 1, 0)})
    undiagnosed = gather(tmp_path)
    assert undiagnosed is not None and undiagnosed["sight"] == []
    assert "probe" not in write_tables(undiagnosed)
    (tmp_path / "diagnosis").mkdir()
    networks = [network("default/seed_0", 0.1), network("freeze/seed_0", 0.2)]
    (tmp_path / "diagnosis/diagnosis.json").write_text(json.dumps({"networks": networks}))
    results = gather(tmp_path)
    assert results is not None
    assert {test["better"] for test in results["sight_tests"]} == {"freeze"}, "align has no run"
    assert "| freeze over default | `layer_2` | +0.100 |" in write_tables(results)


def test_before_its_evaluation_there_is_nothing_to_publish(tmp_path: Path) -> None:
    assert gather(tmp_path) is None


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_published_page_shows_the_published_figures(study: Study) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "results.md").read_text()
    results = json.loads((docs / study.results).read_text())
    assert put_between(page, study.begin, study.end, write_tables(results) + "\n") == page
    assert (docs / study.plot).read_text() == draw(results)
