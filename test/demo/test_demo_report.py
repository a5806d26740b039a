"""Report, table, film, contact sheet and page from the records of a real run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from vla_align_ros.demo.page import write_page
from vla_align_ros.demo.pictures import write_contact_sheet, write_film
from vla_align_ros.demo.report import SUCCESS_BAR, RunFacts, build_report, find_stops, write_json
from vla_align_ros.demo.table import headline, print_table, summary_rows
from vla_align_ros.ros.recording import Film, read_json_lines

RECORDED = Path(__file__).parent / "recorded"
EPISODES = read_json_lines(RECORDED / "episodes.jsonl")
DIAGNOSTICS = read_json_lines(RECORDED / "diagnostics.jsonl")
READY_S = read_json_lines(RECORDED / "events.jsonl")[0]["stamp_s"]
FACTS = RunFacts(
    bundle_id="7b0dfd334f23" * 5 + "7b0d",
    bundle="tabletop",
    seed=1,
    first_episode_seed=1_000_010_000,
    shift="none",
    swap=False,
    ros_distro="jazzy",
    started_by="processes (wheels)",
    planned_episodes=2,
    wall_s=42.0,
)


def make_report(facts: RunFacts = FACTS, **changes: Any) -> dict[str, Any]:
    episodes = [{**episode, **changes} for episode in EPISODES]
    return build_report(facts, episodes, DIAGNOSTICS, READY_S)


def test_the_report_has_the_names_that_stay() -> None:
    report = make_report()
    assert (report["episodes"], report["successes"], report["success_rate"]) == (2, 0, 0.0)
    assert report["success_interval"][1] == pytest.approx(0.6576, abs=1e-4)
    assert report["frames"]["sent"] == report["frames"]["received"] == 340
    assert set(report["latency_ms"]) >= {"transport", "prepare", "infer", "decode", "total"}
    assert all(0 < ms["p50"] <= ms["p99"] for ms in report["latency_ms"].values())
    assert 18 < report["command_rate_hz"] < 21
    assert {"reason", "time_s"} <= set(report["stops"][0])
    assert (report["ros_distro"], report["bundle_id"]) == ("jazzy", FACTS.bundle_id)
    assert report["machine"]["cores"] >= 1
    assert json.loads(json.dumps(report)) == report


def test_the_switched_episode_is_reported_with_both_instructions() -> None:
    (switched,) = make_report()["switched"]
    assert switched["episode"] == 1
    assert switched["from"] != switched["to"]
    assert switched["at_s"] == pytest.approx(2.0, abs=0.2)
    assert switched["success"] is False


def test_stops_are_told_once_in_order_from_the_start_of_the_graph() -> None:
    stops = make_report()["stops"]
    assert [stop["reason"] for stop in stops] == ["no_instruction", "planning", "no_instruction"]
    times = [stop["time_s"] for stop in stops]
    assert times == sorted(times)
    assert 15 < times[0] < 20
    assert find_stops(DIAGNOSTICS * 2, READY_S) == stops


@pytest.mark.parametrize(
    ("changes", "facts", "passed"),
    [
        ({"success": True, "told_success": True}, FACTS, True),
        ({}, FACTS, False),
        ({"success": True, "told_success": True}, replace(FACTS, planned_episodes=3), False),
        ({"success": False, "told_success": True}, replace(FACTS, swap=True), True),
        ({"success": True, "told_success": True}, replace(FACTS, swap=True), False),
        ({"success": False, "told_success": False}, replace(FACTS, swap=True), False),
    ],
)
def test_passes_only_when_complete_and_above_the_bar(
    changes: dict[str, bool], facts: RunFacts, passed: bool
) -> None:
    assert make_report(facts, **changes)["passed"] is passed


def test_the_bar_itself_passes() -> None:
    episodes = [{**EPISODES[0], "success": k < 4, "told_success": k < 4} for k in range(5)]
    facts = replace(FACTS, planned_episodes=5)
    assert SUCCESS_BAR == 0.8
    assert build_report(facts, episodes, DIAGNOSTICS, READY_S)["passed"]
    episodes[0]["success"] = episodes[0]["told_success"] = False
    assert not build_report(facts, episodes, DIAGNOSTICS, READY_S)["passed"]


def test_a_policy_that_said_nothing_gives_a_report_without_its_figures() -> None:
    report = build_report(FACTS, EPISODES, [], READY_S)
    assert report["latency_ms"] == {}
    assert report["frames"]["policy"] is None
    assert report["stops"] == []
    assert summary_rows(report)


def test_refused_commands_add_up_over_the_episodes() -> None:
    commands = {**EPISODES[0]["commands"], "refused_stale": 3}
    assert make_report(commands=commands)["commands"]["refused"] == {"stale": 6}


def test_the_table_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(make_report())
    text = capsys.readouterr().out
    for part in ("0 of 2 = 0%", "interval 0% to 66%", "switched in episode 2", "340 of 340"):
        assert part in text
    for part in ("jitter p99", "no_instruction x2", "infer", "p99", "jazzy", "missed"):
        assert part in text


def test_a_machine_too_busy_for_real_time_is_named() -> None:
    assert "too busy" not in dict(summary_rows(make_report()))["simulator"]
    assert "too busy" in dict(summary_rows(make_report(real_time_factor=0.7)))["simulator"]


def test_swap_shows_both_rates() -> None:
    report = make_report(replace(FACTS, swap=True), success=False, told_success=True)
    rows = dict(summary_rows(report))
    assert rows["success on the object not named"].startswith("0 of 2")
    assert rows["success on the object named"].startswith("2 of 2")
    assert "< 20%" in headline(report)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a film an episode, in colours that can be told apart."""
    out = tmp_path_factory.mktemp("run")
    for index, episode in enumerate(EPISODES):
        with Film(out / episode["film"], rate_hz=5.0) as film:
            for k in range(12):
                picture = np.full((224, 224, 3), 60 + 10 * k, np.uint8)
                picture[..., index] = 220
                film.add(picture)
    return out


def test_the_film_holds_all_episodes_with_their_captions(folder: Path) -> None:
    path = write_film(folder, EPISODES, 5.0)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(pictures) == 2 * (12 + 10)
    first, second = pictures[5][:104], pictures[25][:104]
    assert first.min() < 90 < 240 < first.max(), "dark ink on light paper"
    assert np.abs(first.astype(int) - second).max() > 100, "another instruction"
    assert pictures[5][200:, :, 0].mean() > 200 > pictures[5][200:, :, 1].mean()


def test_the_contact_sheet_frames_success_green_and_failure_red(folder: Path) -> None:
    episodes = [{**EPISODES[0], "success": True}, EPISODES[1]]
    sheet = cv2.imread(str(write_contact_sheet(folder, episodes)))
    assert sheet.shape == (330, 512, 3)
    (_, green, red), (_, other_green, other_red) = (sheet[100, x].astype(int) for x in (3, 259))
    assert green > red + 40
    assert other_red > other_green + 40


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    report = make_report()
    write_film(folder, EPISODES, 5.0)
    write_contact_sheet(folder, EPISODES)
    text = write_page(report, folder).read_text()
    sources = re.findall(r'src="([^"]{0,40})', text)
    assert len(sources) == 4, "film, contact sheet, two thumbnails"
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    links = set(re.findall(r'href="([^"]+)"', text)) - {"logs", "report.json"}
    assert all((folder / link).exists() for link in links)
    for spoken in EPISODES[1]["spoken"]:
        assert spoken["instruction"] in text


def test_text_cannot_break_the_page(folder: Path) -> None:
    report = make_report(replace(FACTS, bundle="<script>alert(1)</script>"))
    assert "<script>" not in write_page(report, folder).read_text()


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    write_json(make_report(), tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["episodes"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
