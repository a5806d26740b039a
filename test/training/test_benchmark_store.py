"""Episodes last: a crash loses at most the one that was running, and rules cannot be mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training.benchmark.episode import Record
from training.benchmark.stages import Rules
from training.benchmark.store import EpisodeStore, describe_code
from vla_align_ros.errors import ConfigurationError

RULES = Rules("tabletop")


def record(seed: int, policy: str = "expert") -> Record:
    return Record(policy, "none", seed, "put it", True, True, True, 20, 5.0, 4.0, None)


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path, RULES, {})
    for seed in (3, 1):
        store.add(record(seed))
    again = EpisodeStore(tmp_path, RULES, {})
    assert ("expert", "none", 3) in again and ("expert", "none", 2) not in again
    keys = [("expert", "none", seed) for seed in (1, 2, 3)]
    assert [line["seed"] for line in again.select(keys)] == [1, 3]
    assert "pictures" not in again.select(keys)[0]


def test_a_line_cut_off_by_a_crash_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path, RULES, {})
    store.add(record(1))
    path = tmp_path / "episodes.jsonl"
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        again = EpisodeStore(tmp_path, RULES, {})
        again.add(record(2))
        lines = path.read_text().splitlines()
        assert len(lines) == 2 and ("expert", "none", 2) in EpisodeStore(tmp_path, RULES, {})


def test_damage_in_the_middle_is_one_clear_error(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path, RULES, {})
    store.add(record(1))
    path = tmp_path / "episodes.jsonl"
    path.write_text("{damage\n" + path.read_text())
    with pytest.raises(ConfigurationError, match="cannot be read"):
        EpisodeStore(tmp_path, RULES, {})


@pytest.mark.parametrize("change", [{"executed": 1}, {"max_steps": 40}, {"suite": "vl_think"}])
def test_other_rules_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    EpisodeStore(tmp_path, RULES, {}).add(record(1))
    with pytest.raises(ConfigurationError, match=f"other rules.*{next(iter(change))}"):
        EpisodeStore(tmp_path, replace(RULES, **change), {})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="assets"):
        EpisodeStore(tmp_path, RULES, {"stand_ins": ["a bear"]})


def test_every_episode_says_by_which_code_it_was_run(tmp_path: Path) -> None:
    EpisodeStore(tmp_path, RULES, {}).add(record(1))
    (line,) = EpisodeStore(tmp_path, RULES, {}).select([("expert", "none", 1)])
    assert line["made_by"] == describe_code("tabletop")
    assert "mujoco" in line["made_by"] and "vla_align_ros" in line["made_by"]


def test_without_a_folder_it_keeps_them_in_memory() -> None:
    store = EpisodeStore(None, RULES, {})
    store.add(record(1))
    assert ("expert", "none", 1) in store
