"""One episode of any suite, by a policy or by the scripted expert, and what is noted of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.benchmark.episode import Notes, Record, Sim, make_record
from training.benchmark.policies import Acting
from training.closed_loop import choose_executed, find_camera
from training.data.schema import PUT_ON_PLATE, TABLETOP
from vla_align_ros.contract.observation import Observation
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.sim.put_on_plate.environments import (
    MAX_STEPS,
    SUITES,
    TRAINING,
    find_environment,
)
from vla_align_ros.sim.shifts import SHIFTS

Action = NDArray[np.float64]

LOOK_EVERY = 4  # steps of the expert, for the times
SUITE_NAMES = (*SUITES, TABLETOP)


@dataclass(frozen=True)
class Rules:
    """How episodes are run; those of other rules are not comparable.

    `executed` actions of each chunk; None, until `evaluate_suite` has put a number there, is what
    `choose_executed` takes. `size_px` is the camera's (width, height); the table-top draws its own
    size.
    """

    suite: str
    executed: int | None = None
    size_px: tuple[int, int] = (640, 480)
    render_backend: str = "cpu"
    max_steps: int = MAX_STEPS


class Stage(Protocol):
    """A simulator that is open; `run` drives one episode, `policy` None being the expert."""

    def run(self, policy: Acting | None, env: str, seed: int, *, keep: bool) -> Record:
        """Drive one episode."""

    def close(self) -> None:
        """Free the simulator."""


def environment_names(suite: str) -> tuple[str, ...]:
    """The environments of a suite in the order of its tables; ConfigurationError if unknown."""
    if suite == TABLETOP:
        return tuple(SHIFTS)
    if suite in SUITES:
        return tuple(env.name for env in SUITES[suite])
    raise ConfigurationError(
        "No such suite", got=repr(suite), expected="one of " + ", ".join(SUITE_NAMES)
    )


def nameable_environments(suite: str) -> tuple[str, ...]:
    """Those of a suite, and the scenes of put-on-plate's demonstrations: no row of the paper's."""
    own = environment_names(suite)
    return (TRAINING.name, *own) if suite == PUT_ON_PLATE else own


def axis_of(suite: str, env: str) -> str:
    """The axis that an environment belongs to."""
    return SHIFTS[env].axis if suite == TABLETOP else find_environment(env).axis


def open_stage(rules: Rules, assets: str | None) -> Stage:
    """Open the simulator of a suite."""
    if rules.suite == TABLETOP:
        return TabletopStage(rules)
    return PlateStage(rules, assets)


def policy_actions(
    policy: Acting, sim: Sim, instruction: str, executed: int | None, notes: Notes
) -> Iterator[Action]:
    """The actions of a policy that looks after every `executed` of them."""
    camera = find_camera(policy.spec, "the simulator")
    executed = choose_executed([policy.spec], executed)
    while True:
        seen = notes.look(sim)
        assert seen.image is not None
        state = seen.state if policy.spec.state is not None else None
        observation = Observation({camera: seen.image}, state, instruction, seen.time_s)
        with notes.clock.timing("infer"):
            chunk = policy.infer(observation)
        yield from chunk.actions[:executed]


def drive(
    policy: Acting | None,
    sim: Sim,
    words: str,
    rules: Rules,
    notes: Notes,
    expert: Iterator[Action],
) -> Iterator[None]:
    """Yield after every step of `policy`, or of `expert` where it is None, to the last one."""
    notes.film(sim)
    actions = (
        expert if policy is None else policy_actions(policy, sim, words, rules.executed, notes)
    )
    for action in islice(actions, rules.max_steps):
        with notes.clock.timing("advance"):
            sim.advance(action)
        notes.film(sim)
        yield


class PlateStage:
    """The WidowX benchmark: always all steps, as published."""

    def __init__(self, rules: Rules, assets: str | None) -> None:
        from vla_align_ros.sim.put_on_plate.environment import PutOnPlateEnv

        self._rules = rules
        self._env = PutOnPlateEnv(
            assets, size_px=rules.size_px, render_backend=rules.render_backend
        )

    def run(self, policy: Acting | None, env: str, seed: int, *, keep: bool) -> Record:
        """Drive one episode to its last step."""
        sim, notes = self._env, Notes(keep)
        sim.begin(seed, environment=env)
        words = sim.scene.instruction
        for _ in drive(policy, sim, words, self._rules, notes, self._expert_actions(notes)):
            pass
        outcome = (sim.succeeded_once, sim.succeeded(), sim.grasped_once)
        return make_record(policy, env, seed, words, outcome, sim.steps, notes)

    def _expert_actions(self, notes: Notes) -> Iterator[Action]:
        """The expert's actions; it needs no pictures, so only some are drawn, until it is done.

        They end where it finds no grasp any more: the episode is judged as it is then.
        """
        from vla_align_ros.sim.put_on_plate.expert import PlateExpert
        from vla_align_ros.sim.put_on_plate.grasps import GraspError

        expert = PlateExpert(self._env)
        while True:
            if self._env.steps % LOOK_EVERY == 0 and not expert.finished:
                notes.look(self._env)
            try:
                action = expert.act()
            except GraspError:
                return
            yield action

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


class TabletopStage:
    """The MuJoCo table-top: an episode ends when the object lies on its receptacle."""

    def __init__(self, rules: Rules) -> None:
        from vla_align_ros.sim.tabletop import TabletopEnv

        self._rules = rules
        self._env = TabletopEnv()

    def run(self, policy: Acting | None, env: str, seed: int, *, keep: bool) -> Record:
        """Drive one episode until success or the last step."""
        sim, notes = self._env, Notes(keep)
        sim.begin(seed, shift=env)
        words = sim.task.instruction
        steps, grasped, success = 0, False, False
        for _ in drive(policy, sim, words, self._rules, notes, self._expert_actions(notes)):
            steps += 1
            grasped |= sim.held_object() == sim.task.object
            success = sim.succeeded()
            if success:
                break
        outcome = (success, success, grasped)
        return make_record(policy, env, seed, words, outcome, steps, notes)

    def _expert_actions(self, notes: Notes) -> Iterator[Action]:
        from vla_align_ros.sim.expert import Expert

        expert = Expert()
        while True:
            notes.look(self._env)
            yield expert.act(self._env)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()
