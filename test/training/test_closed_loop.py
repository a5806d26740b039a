"""Closed-loop success: the same seeds give the same episodes, and the right task is judged."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("needs the extra [sim]", allow_module_level=True)

from sample_policy import make_bundle

from training import closed_loop
from training.closed_loop import evaluate, run_episode
from vla_align_ros.cli import main
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.spec import CameraSpec, StateSpec
from vla_align_ros.errors import BundleError, ConfigurationError, SimulationError
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.sim.expert import Expert
from vla_align_ros.sim.tabletop import TabletopEnv

KEYS = {
    *("bundle_id", "shift", "swapped", "episodes", "seed", "executed", "successes"),
    *("success_rate", "success_interval", "mean_steps", "seconds", "failed_seeds"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def env() -> Iterator[TabletopEnv]:
    made = TabletopEnv()
    yield made
    made.close()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps an episode: what is tested is not whether a random policy gets there."""
    monkeypatch.setattr(closed_loop, "MAX_STEPS", 10)


class Obedient:
    """A policy that knows the truth and does what it is told, in chunks of two actions."""

    spec = SimpleNamespace(state=object())

    def __init__(self, env: TabletopEnv) -> None:
        self.env, self.expert = env, Expert()
        self.heard: list[Observation] = []

    def infer(self, seen: Observation) -> Any:
        self.heard.append(seen)
        told = [task for task in self.env.tasks if task.instruction == seen.instruction]
        self.env.set_task(told[0])
        return SimpleNamespace(actions=np.stack([self.expert.act(self.env)] * 2))


def test_the_result_has_the_documented_keys_and_adds_up(bundle: Bundle, brief: None) -> None:
    result = evaluate(str(bundle.path), episodes=2, seed=40)
    assert set(result) == KEYS
    assert result["bundle_id"] == bundle.id and result["shift"] == "none"
    assert (result["episodes"], result["seed"], result["executed"]) == (2, 40, 2)
    assert result["swapped"] is False and result["seconds"] > 0.0
    assert (result["successes"], result["success_rate"]) == (0, 0.0)
    assert result["failed_seeds"] == [40, 41] and result["mean_steps"] == 10.0
    low, high = result["success_interval"]
    assert low == 0.0 and high == pytest.approx(0.6576, abs=1e-4)  # Wilson's, 0 of 2


def test_episodes_are_deterministic_by_seed(bundle: Bundle, env: TabletopEnv, brief: None) -> None:
    def trace(seed: int, shift: str = "none") -> tuple[Any, ...]:
        with Policy.open(bundle) as policy:
            episode = run_episode(policy, env, seed, shift, executed=2, swap=False)
        return episode, env.observe().image.tobytes(), env.observe().state.tobytes()

    first, other = trace(3), trace(4)
    assert trace(3) == first
    assert first[1:] != other[1:]
    assert first[0].instruction == first[0].judged and first[0].steps == 10
    assert all(trace(3, name)[1] != first[1] for name in shifts()[1:3])


def shifts() -> list[str]:
    from vla_align_ros.sim.shifts import SHIFTS

    return list(SHIFTS)


def test_who_does_what_the_words_say_succeeds(env: TabletopEnv) -> None:
    policy: Any = Obedient(env)
    episode = run_episode(policy, env, 7, "none", executed=1, swap=False)
    assert episode.success and 10 < episode.steps == len(policy.heard) < closed_loop.MAX_STEPS
    assert {seen.instruction for seen in policy.heard} == {episode.judged}
    stamps = [seen.stamp_s for seen in policy.heard]
    np.testing.assert_allclose(np.diff(stamps), 0.2, atol=1e-6)


def test_with_the_other_object_named_who_follows_words_fails(env: TabletopEnv) -> None:
    policy: Any = Obedient(env)
    episode = run_episode(policy, env, 7, "none", executed=1, swap=True)
    assert not episode.success and episode.steps == closed_loop.MAX_STEPS
    told, judged = (
        next(task for task in env.tasks if task.instruction == text)
        for text in (episode.instruction, episode.judged)
    )
    assert told.object != judged.object and told.receptacle == judged.receptacle
    assert env.succeeded(told) and not env.succeeded(judged)


def test_as_many_actions_of_a_chunk_are_executed_as_asked(
    bundle: Bundle, env: TabletopEnv, brief: None
) -> None:
    seen: list[float] = []
    with Policy.open(bundle) as policy:
        infer = policy.infer

        def count(observation: Observation) -> Any:
            seen.append(observation.stamp_s)
            return infer(observation)

        policy.infer = count  # type: ignore[method-assign]
        for executed, calls in ((1, 10), (2, 5), (4, 3)):
            seen.clear()
            episode = run_episode(policy, env, 0, "none", executed=executed, swap=False)
            assert len(seen) == calls and episode.steps == 10
            np.testing.assert_allclose(np.diff(seen), 0.2 * executed, atol=1e-6)


def test_the_command_prints_a_line_a_shift_and_json_last(
    bundle: Bundle, brief: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--episodes", "1", "--seed", "9", "--shift", *shifts()[:2], "--swap", "--json"]
    assert main(["evaluate", str(bundle.path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["rows"]
    assert [row["shift"] for row in rows] == shifts()[:2]
    assert all(row["swapped"] and set(row) == KEYS for row in rows)
    for line, name in zip(lines[:-1], shifts()[:2], strict=True):
        assert line.startswith(name) and "0/1  0.00 [0.00, " in line


def test_mistakes_are_one_clear_error(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ({"episodes": 0}, {"executed": 0}):
        with pytest.raises(ConfigurationError, match="Nothing to run"):
            evaluate(str(bundle.path), **wrong)  # type: ignore[arg-type]
    assert main(["evaluate", str(bundle.path), "--execute", "0"]) == 1
    assert "Nothing to run" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"No episode has this seed: got -1; .*--seed"):
        evaluate(str(bundle.path), seed=-1)
    with pytest.raises(BundleError):
        evaluate(str(tmp_path / "nowhere"), episodes=1)
    with pytest.raises((ConfigurationError, SimulationError), match="moonlight"):
        evaluate(str(bundle.path), episodes=1, shift="moonlight")


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda s: replace(s, cameras=(CameraSpec("top", 64, 48),)), "got cameras top; expected"),
        (lambda s: replace(s, action=replace(s.action, rate_hz=15.0)), "got 15 Hz; expected"),
        (lambda s: replace(s, state=StateSpec(("x", "yaw"))), "got another state; "),
    ],
)
def test_a_policy_of_another_rig_is_refused_before_an_episode(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, change: Any, got: str
) -> None:
    with Policy.open(str(bundle.path)) as policy:
        other = SimpleNamespace(spec=change(policy.spec))
        monkeypatch.setattr(closed_loop.Policy, "open", lambda *args, **options: other)
        with pytest.raises(
            ConfigurationError, match=rf"does not fit the table-top: {got}.*--suite"
        ):
            evaluate(str(bundle.path), episodes=1)
