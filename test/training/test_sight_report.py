"""The writers and the page: everything that was written is on it, and nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.commands import report as command
from training.sight import ProbeResult, SightReading, open_writer, write_report
from training.sight.curves import MAX_POINTS, draw_chart, group_series, thin
from training.sight.history import read_history
from training.sight.reading import save_reading
from training.sight.writers import RunWriter, wants_wandb
from vla_align_ros.errors import ConfigurationError, TrainingError

LEFT_OUT = "no probe without <drawings>"


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(folder: Path, *, finished: bool = True) -> Path:
    writer = open_writer(folder, wandb="off")
    for step in (0, 10, 20):
        writer.add_scalar("loss/total", 3.0 - step / 10, step)
        writer.add_scalar("align/cosine_layer_2", step / 40, step)
        probe = {"encoder": ProbeResult(30 + step, 60, 0.25, {"bird": 0.5, "tool & die": 0.9})}
        scalars = {"sight/cka_scenes_encoder": 1.0 - step / 100, "sight/probe_encoder": 0.5}
        figure = np.full((20, 30, 3), 10 * step, np.uint8)
        reading = SightReading(step, scalars, probe, {"attention_0": figure}, (LEFT_OUT,))
        save_reading(reading, folder / "sight")
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
    writer.close()
    config = {"recipe": "smol <align>", "optim": {"steps": 20}}
    (folder / "config.json").write_text(json.dumps(config))
    if finished:
        values = {"parameters": 15_000_000, "seconds": 12.5, "machine": "A & B"}
        (folder / "run.json").write_text(json.dumps(values))
    return folder


def test_the_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run"))
    text = path.read_text()
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert str(attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|<script|<link|https?:", text)
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert sum(tag == "img" for tag, _ in page.tags) == 2  # of the first and the last reading
    for told in ("loss/total", "align/cosine", "sight/cka_scenes", "smol <align>", LEFT_OUT):
        assert told in page.text
    for told in (
        "A & B",
        "tool & die",
        "15,000,000",
        "20 of 20",
        "0.500",
        "0.833",
        "[0.720, 0.907]",
    ):
        assert told in page.text


def test_an_unfinished_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, finished=False)).read_text())
    assert "not finished" in page.text


def test_a_run_that_was_not_watched_has_a_page(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, wandb="off")
    writer.add_scalar("loss/total", 1.0, 5)
    writer.close()
    page = Page(write_report(tmp_path).read_text())
    assert "loss/total" in page.text and "Linear probe" not in page.text


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    """TensorBoard's file is there from the start, its first scalars come some steps later."""
    writer = open_writer(tmp_path, wandb="off")
    (tmp_path / "config.json").write_text(json.dumps({"optim": {"steps": 20}}))
    page = Page(write_report(tmp_path).read_text())
    writer.close()
    assert "0 of 20" in page.text and "not finished" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no history.*got no files in .*expected.*--out"):
        write_report(tmp_path)


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    result = command.run(parser.parse_args([str(make_run(tmp_path))]))
    assert Path(result["report"]).stat().st_size == result["bytes"]
    assert result["report"] in capsys.readouterr().out


def test_a_continued_run_has_each_step_once(tmp_path: Path) -> None:
    for values, purge in (((1.0, 2.0, 3.0), None), ((20.0, 30.0), 2)):
        writer = open_writer(tmp_path, purge_step=purge, wandb="off")
        for step, value in enumerate(values, start=purge or 1):
            writer.add_scalar("loss/total", value, step)
        writer.close()
        for path in (tmp_path / "tensorboard").iterdir():  # two files of one second sort by chance
            if purge is None:
                path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
    steps = read_history(tmp_path)["loss/total"]
    assert [step for step, _ in steps] == [1, 2, 3]
    assert [value for _, value in steps] == [1.0, 20.0, 30.0]


def test_numbers_that_are_none_are_not_drawn(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, wandb="off")
    for step, value in enumerate((1.0, float("nan"), float("inf"), 2.0)):
        writer.add_scalar("loss/total", value, step)
    writer.add_scalar("loss/none", float("nan"), 0)
    writer.close()
    assert read_history(tmp_path) == {"loss/total": [(0, 1.0), (3, 2.0)]}


def test_places_share_a_chart_in_their_order() -> None:
    line = [(0, 1.0)]
    names = ("x/cka_layer_10", "x/cka_layer_2", "x/cka_encoder", "x/other", "x/seen_block_3")
    charts = group_series(dict.fromkeys(names, line))
    assert set(charts) == {"x/cka", "x/other", "x/seen"}
    assert list(charts["x/cka"]) == ["encoder", "layer_2", "layer_10"]


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9)),
        min_size=1,
        max_size=2000,
        unique_by=lambda point: point[0],
    )
)
def test_any_series_is_drawn_inside_its_chart(points: list[tuple[int, float]]) -> None:
    series = sorted(points)
    thinned = thin(series)
    assert len(thinned) <= MAX_POINTS + 1 and thinned[-1] == series[-1]
    assert [step for step, _ in thinned] == sorted({step for step, _ in thinned})
    text = draw_chart("a <b>", {"": series})
    assert "a &lt;b&gt;" in text
    spots = re.findall(r"(-?[\d.]+),(-?[\d.]+)", text.split('points="')[1].split('"')[0])
    assert len(spots) == len(thinned)
    assert all(50 <= float(x) <= 460 and 0 <= float(y) <= 190 for x, y in spots)


class Recorder:
    """A sink at the boundary: what arrives there would be sent."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any, int]] = []
        self.closed = 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.got.append((name, value, step))

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        self.got.append((name, picture.shape, step))

    def close(self) -> None:
        self.closed += 1


def test_every_sink_gets_everything() -> None:
    one, two = Recorder(), Recorder()
    writer = RunWriter(one, two)
    writer.add_scalar("a", 1.0, 3)
    writer.add_image("b", np.zeros((2, 4, 3), np.uint8), 4)
    writer.close()
    assert one.got == two.got == [("a", 1.0, 3), ("b", (2, 4, 3), 4)]
    assert one.closed == two.closed == 1


def fake_wandb(calls: list[tuple[str, Any]]) -> types.ModuleType:
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    session = types.SimpleNamespace(
        define_metric=lambda name, **settings: calls.append(("metric", (name, settings))),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish", None)),
    )

    def init(**settings: Any) -> Any:
        calls.append(("init", settings))
        return session

    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda picture: ("image", picture.shape)  # type: ignore[attr-defined]
    return module


def test_weights_and_biases_get_steps_of_their_own_and_one_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    for _ in range(2):  # a run and its continuation
        writer = open_writer(tmp_path, wandb="on", name="recipe", config={"seed": 1})
        writer.add_scalar("loss/total", 0.5, 7)
        writer.add_image("sight/map", np.zeros((2, 4, 3), np.uint8), 7)
        writer.close()
    first, second = (values for kind, values in calls if kind == "init")
    assert first == second and first["config"] == {"seed": 1} and first["resume"] == "allow"
    assert first["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert ("metric", ("*", {"step_metric": "step"})) in calls
    assert ("log", {"loss/total": 0.5, "step": 7}) in calls
    assert ("log", {"sight/map": ("image", (2, 4, 3)), "step": 7}) in calls
    assert [kind for kind, _ in calls].count("finish") == 2


def test_weights_and_biases_are_asked_for_only_where_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb([]))
    assert [wants_wandb(setting) for setting in ("auto", "on", "off")] == [False, True, False]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert [wants_wandb(setting) for setting in ("auto", "on", "off")] == [True, True, False]


def test_a_missing_wandb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not wants_wandb("auto")
    with pytest.raises(ConfigurationError, match=r"Weights & Biases.*pip install '\.\[wandb\]'"):
        wants_wandb("on")


def test_wandb_itself_takes_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("needs the extra [wandb]: the real library, offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = open_writer(tmp_path, wandb="auto", name="recipe", config={"seed": 1})
    for step in (1, 2, 2):  # a repeated step too
        writer.add_scalar("loss/total", 1.0 / step, step)
    writer.add_image("sight/map", np.zeros((4, 4, 3), np.uint8), 2)
    writer.close()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    sent = kept / f"run-{identity}.wandb"
    deadline_s = time.monotonic() + 30  # wandb's own process writes behind
    while sent.stat().st_size < 500 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert sent.stat().st_size >= 500
    assert len(list((kept / "files" / "media" / "images").rglob("*.png"))) == 1
