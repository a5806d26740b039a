"""What a sweep will run, and how it compares, without running anything."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

from hypothesis import given
from hypothesis import strategies as st

from training.comparison import Outcome, summarize, t_quantile, write_comparison
from training.model import LlmConfig
from training.recipes import find_recipe
from training.settings import override
from training.sweep import SweepPlan, expand_axes, make_cells
from training.sweep_cells import share_gpus
from training.sweep_tables import TABLES, Row, find_depth, find_table
from vla_align_ros.errors import ConfigurationError


# -- axes -------------------------------------------------------------------------------------
def test_axes_give_every_combination_and_keep_commas_in_brackets() -> None:
    rows = expand_axes(["alignment.weight=0,0.2", "alignment.layers=[1],[1, 2],[]"])
    assert [row.settings for row in rows] == [
        (f"alignment.weight={weight}", f"alignment.layers={layers}")
        for weight in ("0", "0.2")
        for layers in ("[1]", "[1, 2]", "[]")
    ]
    assert rows[1].name == "alignment.weight=0 alignment.layers=[1, 2]"
    quoted = expand_axes(['recipe="a,b",c', 'model.llm.config={"a": 1, "b": [2, 3]}'])
    assert quoted[0].settings == ('recipe="a,b"', 'model.llm.config={"a": 1, "b": [2, 3]}')


def test_a_table_is_multiplied_by_axes() -> None:
    table = (Row("one", ("a=1",), (0.1, 0.2, 0.3)), Row("two", ("a=2",)))
    assert expand_axes([], table) == table
    rows = expand_axes(["b=5,6"], table)
    assert [row.name for row in rows] == ["one b=5", "one b=6", "two b=5", "two b=6"]
    assert rows[3].settings == ("a=2", "b=6") and rows[0].paper is None


@pytest.mark.parametrize("axis", ["optim.lr", "=1", "optim.lr=", "optim.lr=1,,2", "optim.lr=1,"])
def test_a_wrong_axis_is_one_clear_error(axis: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Not an axis: got .*expected key=value1,value2"):
        expand_axes([axis])


def test_an_axis_is_given_once() -> None:
    with pytest.raises(ConfigurationError, match=r"An axis is given twice: got optim\.lr"):
        expand_axes(["optim.lr=1", "seed=1", "optim.lr=2"])


# -- cells ------------------------------------------------------------------------------------
def plan(*axes: str, **values: object) -> SweepPlan:
    return SweepPlan("debug_cpu", ("data",), expand_axes(axes), **values)


def test_a_cell_is_the_recipe_with_the_sweeps_the_rows_and_the_seeds_settings() -> None:
    asked = plan("alignment.weight=0,0.2", seeds=(3, 5), settings=("optim.steps=7",))
    cells = make_cells(asked, Path("out"))
    assert [(cell.row, cell.seed) for cell in cells] == [
        (f"alignment.weight={weight}", seed) for weight in ("0", "0.2") for seed in (3, 5)
    ]
    expected = override(
        find_recipe("debug_cpu"), ["optim.steps=7", "alignment.weight=0.2", "seed=5"]
    )
    assert cells[3].config == expected
    assert cells[3].folder == Path("out/runs/alignment.weight=0.2/seed_5")
    assert len({cell.folder for cell in cells}) == len({cell.log for cell in cells}) == 4


@given(st.lists(st.text(min_size=1, max_size=90), min_size=2, max_size=4, unique=True))
def test_rows_with_any_names_get_folders_of_their_own(names: list[str]) -> None:
    rows = tuple(Row(name, (f"optim.steps={i + 1}",)) for i, name in enumerate(names))
    cells = make_cells(SweepPlan("debug_cpu", ("data",), rows), Path("out"))
    assert len({cell.folder for cell in cells}) == len(names)
    for cell in cells:
        assert cell.folder.parts[:2] == ("out", "runs") and len(cell.folder.parts) == 4
        assert set(cell.folder.parts[2]).isdisjoint("/ \\\n\0[]*'\"") and len(cell.log.name) < 90
        assert cell.folder.parts[2] not in (".", "..")


def test_an_impossible_row_is_named_before_anything_runs() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"The row 'alignment\.loss=mse' cannot be configured: No such alignment\.loss: "
        r"got 'mse'; expected one of cosine, l2, infonce",
    ):
        make_cells(plan("alignment.loss=cosine,mse"), Path("out"))
    with pytest.raises(ConfigurationError, match=r"the same run: got .*'seed=1' .*expected rows"):
        make_cells(plan("seed=1,2"), Path("out"))


# -- the paper's tables -----------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(TABLES))
@pytest.mark.parametrize("recipe", ["tabletop_align", "tabletop_default", "debug_cpu"])
def test_every_table_configures_on_every_student_and_has_its_baseline(
    name: str, recipe: str
) -> None:
    llm = find_recipe(recipe).model.llm
    rows = find_table(name, llm)
    cells = make_cells(SweepPlan(recipe, ("data",), rows), Path("out"))
    assert cells[0].row == "default" and cells[0].config.alignment.weight == 0
    for cell in cells:
        assert all(0 <= layer <= find_depth(llm) for layer in cell.config.alignment.layers)
    by_weight = [cell for cell in cells if cell.config.alignment.weight == 0]
    assert len(by_weight) == (2 if name == "paper_baselines" else 1)


def test_the_papers_layers_at_its_depth_and_scaled_to_a_small_student() -> None:
    paper = find_table("paper_layers", LlmConfig({"model_type": "llama", "num_hidden_layers": 32}))
    settings = {row.name: row.settings[-1] for row in paper}
    assert settings["layer 8"] == "alignment.layers=[8]"
    assert settings["layer 12-16"] == "alignment.layers=[12, 13, 14, 15, 16]"
    assert settings["encoder output"] == "alignment.at=encoder"
    assert all(row.paper is not None for row in paper) and len(paper) == 10
    small = find_table("paper_layers", LlmConfig({"model_type": "llama", "num_hidden_layers": 4}))
    assert [(row.name, row.settings[-1]) for row in small[1:-1]] == [
        ("layer 1: 8 of 32", "alignment.layers=[1]"),
        ("layer 2: 16 of 32, 12-16 of 32", "alignment.layers=[2]"),
        ("layer 3: 20 of 32, 22 of 32, 26 of 32", "alignment.layers=[3]"),
        ("layer 1-2: 8-12 of 32", "alignment.layers=[1, 2]"),
        ("layer 2-3: 16-22 of 32", "alignment.layers=[2, 3]"),
    ]
    assert small[2].paper is None and small[1].paper == (0.552, 0.702, 0.403)


def test_the_depth_is_read_from_a_configuration_or_from_saved_weights(tmp_path: Path) -> None:
    assert find_depth(LlmConfig({"model_type": "llama"})) == 32  # transformers' default
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3", "num_hidden_layers": 5})
    )
    assert find_depth(LlmConfig(pretrained=str(tmp_path))) == 5


def test_an_unknown_table_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"No such --table: got 'losses'.*paper_losses"):
        find_table("losses", LlmConfig({"model_type": "llama"}))


# -- comparing --------------------------------------------------------------------------------
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 120])
def test_the_quantile_is_students(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)
    assert t_quantile(freedom, 0.5) == pytest.approx(stats.t.ppf(0.75, freedom), rel=1e-8)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_a_summary_equals_numpys(values: list[float]) -> None:
    summary = summarize(values)
    assert summary["n"] == len(values)
    assert summary["mean"] == pytest.approx(np.mean(values), abs=1e-6)
    assert summary["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    low, high = summary["interval"]
    assert low - 1e-6 <= summary["mean"] <= high + 1e-6


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    intervals = [summarize(list(rng.normal(3.0, 2.0, 4)))["interval"] for _ in range(1000)]
    assert 930 <= sum(low < 3.0 < high for low, high in intervals) <= 970


def outcome(row: str, seed: int, status: str = "done", **metrics: float) -> Outcome:
    error = "got nothing | expected more" if status == "failed" else None
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return Outcome(row, seed, status, f"runs/{row}/seed_{seed}", ("a=1",), named, error)


def test_differences_are_paired_by_seed_and_failures_are_named(tmp_path: Path) -> None:
    rows = (Row("default", ()), Row("align", ("a=1",), (0.6, 0.7, 0.4)), Row("other", ("b=1",)))
    outcomes = [
        outcome("default", 0, val__l1=1.0, seconds=5.0),
        outcome("default", 1, val__l1=3.0, seconds=5.0),
        outcome("default", 2, "stopped"),
        outcome("align", 0, val__l1=0.5, seconds=6.0),
        outcome("align", 1, val__l1=2.7, seconds=6.0),
        outcome("align", 2, val__l1=9.0, seconds=6.0),
        outcome("other", 0, "failed"),
    ]
    result = write_comparison(tmp_path, "debug_cpu", rows, outcomes)
    assert result == json.loads((tmp_path / "comparison.json").read_text()) | {
        key: result[key]
        for key in ("rows", "runs", "failed")  # tuples there, lists in the file
    }
    align = result["rows"][1]
    assert align["metrics"]["val/l1"]["mean"] == pytest.approx(12.2 / 3)
    difference = align["difference"]["val/l1"]
    assert difference["n"] == 2 and difference["mean"] == pytest.approx(-0.4)
    half = t_quantile(1) * np.std([-0.5, -0.3], ddof=1) / math.sqrt(2)
    assert difference["interval"] == pytest.approx([-0.4 - half, -0.4 + half])
    assert [run["row"] for run in result["failed"]] == ["other"]
    text = (tmp_path / "comparison.md").read_text()
    assert "| align | 3 | 4.067 [" in text and "0.600 / 0.700 / 0.400" in text
    assert "* other, seed 0: failed: got nothing | expected more" in text
    assert "* default, seed 2: stopped" in text and "| seconds" not in text
    with (tmp_path / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["val/l1"]) for line in table[3:6]] == [0.5, 2.7, 9.0]
    assert table[6]["status"] == "failed" and table[6]["error"].startswith("got nothing")
    again = write_comparison(
        tmp_path, "debug_cpu", rows, outcomes, reference="align", metrics=["seconds"]
    )
    assert again["rows"][0]["difference"]["val/l1"]["mean"] == pytest.approx(0.4)
    assert "| default | 2 | 5 [5, 5] |" in (tmp_path / "comparison.md").read_text()


def test_a_sweep_of_which_nothing_is_done_can_be_compared(tmp_path: Path) -> None:
    result = write_comparison(tmp_path, "r", (Row("a"),), [outcome("a", 0, "waiting")])
    assert (
        result["metrics"] == []
        and "* a, seed 0: waiting" in (tmp_path / "comparison.md").read_text()
    )


def test_a_number_that_is_not_finite_counts_as_none() -> None:
    assert summarize([math.nan, 2.0]) == {"n": 1, "mean": 2.0, "sd": None, "interval": None}
    assert summarize([])["mean"] is None


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,7", 2, ["4", "7"]),
        ("0,1,2", 2, ["0", "1"]),
        ("0", 2, [None, None]),
        ("", 1, [None]),
    ],
)
def test_cells_that_run_at_once_get_gpus_of_their_own(
    visible: str, jobs: int, expected: list[str | None]
) -> None:
    given = [share_gpus(slot, jobs, {"CUDA_VISIBLE_DEVICES": visible}) for slot in range(jobs)]
    assert [values.get("CUDA_VISIBLE_DEVICES") for values in given] == expected
