"""While a plan is made the arm goes on with the one before, and the policy is told with what."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from rig import OTHER, SAY, MakeRig, Rig
from sample_policy import HORIZON, make_spec

from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.strategies import find_strategy

PERIOD_S = 0.2


class Slow:
    """A policy that takes two committed actions, plans at random, and needs its time for it."""

    def __init__(self, delay_s: float) -> None:
        self.spec = make_spec(committed=2)
        self.last_timings_ms: Mapping[str, float] = {}
        self.rig: Rig | None = None
        self.seen: list[Observation] = []
        self.chunks: list[ActionChunk] = []
        self._delay_s = delay_s

    def infer(self, observation: Observation) -> ActionChunk:
        assert self.rig is not None
        self.seen.append(observation)
        self.rig.pass_time(self._delay_s)
        actions = np.random.default_rng(len(self.seen)).uniform(0, 0.01, size=(HORIZON, 7))
        chunk = ActionChunk(actions, PERIOD_S, observation.stamp_s, observation.instruction)
        self.chunks.append(chunk)
        return chunk


def run(strategy: str, delay_s: float, words: str = SAY) -> Slow:
    """Two plans, the second 0.1 s after the first arrived, for `words`."""
    policy = Slow(delay_s)
    policy.rig = Rig(policy, strategy=find_strategy(strategy))
    policy.rig.runner.set_instruction(SAY)
    policy.rig.feed()
    policy.rig.pass_time(0.1)
    policy.rig.runner.set_instruction(words)
    policy.rig.feed()
    assert policy.rig.runner.deactivate()
    return policy


@pytest.mark.parametrize(("delay_s", "count"), [(0.1, 1), (0.25, 2), (0.45, 2)])
def test_it_is_told_what_is_executed_until_its_plan_arrives(delay_s: float, count: int) -> None:
    """At most two, which is what the policy takes; and no more than the plan before still has."""
    policy = run("rtc", delay_s)
    assert policy.seen[0].committed is None, "nothing was planned, and no delay was known"
    told, before = policy.seen[1].committed, policy.chunks[0]
    assert told is not None
    passed = (policy.seen[1].stamp_s - before.stamp_s) / PERIOD_S
    first, share = int(passed + 1e-6), passed - int(passed + 1e-6)
    left = HORIZON - first - (share > 1e-6)
    assert len(told) == min(count, left)
    for index, action in enumerate(told[:, :6], first):
        later = before.actions[index + 1, :6] if share > 1e-6 else 0.0
        mixed = (1.0 - share) * before.actions[index, :6] + share * later
        np.testing.assert_allclose(action, mixed, atol=1e-9)


def test_other_words_are_told_nothing_of_the_plan_for_the_old_ones() -> None:
    assert run("rtc", 0.1, OTHER).seen[1].committed is None


@pytest.mark.parametrize("strategy", ["newest", "blend"])
def test_a_strategy_that_does_not_commit_tells_nothing(strategy: str) -> None:
    assert run(strategy, 0.1).seen[1].committed is None


def test_a_policy_that_cannot_be_told_is_refused_before_it_runs(make_rig: MakeRig) -> None:
    with pytest.raises(ConfigurationError, match="cannot be run by rtc"):
        make_rig(strategy=find_strategy("rtc"))
