"""Closed-loop episodes in the simulator without ROS: the quick way to a success rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.spec import EXECUTED_ACTIONS, PolicySpec
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.statistics import wilson_interval
from vla_align_ros.sim.layout import Task
from vla_align_ros.sim.robot import STATE_NAMES
from vla_align_ros.sim.tabletop import CAMERA, CONTROL_HZ, TabletopEnv

MAX_STEPS = 80


@dataclass(frozen=True)
class Episode:
    """What came of one seed: which instruction was given, which task was judged, success, steps."""

    seed: int
    instruction: str
    judged: str
    success: bool
    steps: int


def run_episode(
    policy: Policy, env: TabletopEnv, seed: int, shift: str, *, executed: int, swap: bool
) -> Episode:
    """Drive one episode, `executed` actions of each chunk; `swap` names the *other* object.

    The task that the seed draws is judged in either case, so with `swap` a policy that follows
    words fails.
    """
    env.begin(seed, shift=shift)
    task = env.task
    told = _other_object(env, task) if swap else task
    steps = 0
    while steps < MAX_STEPS:
        seen = env.observe()
        state = seen.state if policy.spec.state is not None else None
        assert seen.image is not None
        chunk = policy.infer(
            Observation({CAMERA: seen.image}, state, told.instruction, seen.time_s)
        )
        for action in chunk.actions[: min(executed, MAX_STEPS - steps)]:
            env.advance(action)
            steps += 1
            if env.succeeded(task):
                return Episode(seed, told.instruction, task.instruction, True, steps)
    return Episode(seed, told.instruction, task.instruction, False, steps)


def evaluate(
    bundle: str,
    *,
    shift: str = "none",
    episodes: int = 50,
    seed: int = 0,
    executed: int | None = None,
    swap: bool = False,
    threads: int = 1,
) -> dict[str, Any]:
    """Success over `episodes` seeds from `seed` on, with its 95 % Wilson interval.

    executed: of each chunk; None is what `choose_executed` takes.
    """
    if episodes < 1 or (executed is not None and executed < 1):
        raise ConfigurationError(
            "Nothing to run",
            got=f"{episodes} episodes, {executed} actions a chunk",
            expected="at least one of each",
            fix="correct --episodes or --execute",
        )
    check_seed(seed)
    policy = Policy.open(bundle, threads=threads)
    find_camera(policy.spec, "the table-top", CAMERA)
    executed = choose_executed([policy.spec], executed)
    env = TabletopEnv()
    policy.warm_up()
    done: list[Episode] = []
    started_s = time.monotonic()
    with tqdm(total=episodes, desc=shift + (" (swapped)" if swap else ""), unit="episode") as bar:
        for number in range(episodes):
            done.append(
                run_episode(policy, env, seed + number, shift, executed=executed, swap=swap)
            )
            bar.update()
            bar.set_postfix(success=f"{sum(e.success for e in done)}/{len(done)}")
    env.close()
    successes = sum(episode.success for episode in done)
    return {
        "bundle_id": policy.bundle_id,
        "shift": shift,
        "swapped": swap,
        "episodes": episodes,
        "seed": seed,
        "executed": executed,
        "successes": successes,
        "success_rate": successes / episodes,
        "success_interval": list(wilson_interval(successes, episodes)),
        "mean_steps": float(np.mean([episode.steps for episode in done])),
        "seconds": time.monotonic() - started_s,
        "failed_seeds": [episode.seed for episode in done if not episode.success],
    }


def check_seed(seed: int) -> None:
    """ConfigurationError where no scene has the seed."""
    if seed < 0:
        raise ConfigurationError(
            "No episode has this seed", got=seed, expected="0 or more", fix="correct --seed"
        )


def find_camera(spec: PolicySpec, simulator: str, camera: str | None = None) -> str:
    """The one camera of a policy that a simulator of ours can drive: `camera`, or any.

    ConfigurationError where the simulator cannot feed it, or its actions take other times.
    """
    names, rate_hz = [known.name for known in spec.cameras], spec.action.rate_hz
    problems = {
        f"cameras {', '.join(names)}": len(names) != 1 or camera not in (None, names[0]),
        f"{rate_hz:g} Hz": abs(rate_hz - CONTROL_HZ) > 1e-6,
        "another state": spec.state is not None and tuple(spec.state.names) != STATE_NAMES,
    }
    if any(problems.values()):
        fix = "evaluate it in its own simulator or on its robot"
        raise ConfigurationError(
            f"The policy does not fit {simulator}",
            got=", ".join(problem for problem, there in problems.items() if there),
            expected=f"one camera{f', {camera}' if camera else ''}, {CONTROL_HZ:g} Hz, no state or"
            f" {', '.join(STATE_NAMES)}",
            fix=f"{fix}; `--suite tabletop` takes a camera of any name" if camera else fix,
        )
    return names[0]


def choose_executed(specs: Sequence[PolicySpec], asked: int | None) -> int:
    """How many actions of each chunk all these policies execute, so that they can be compared.

    What is asked for, or else EXECUTED_ACTIONS, or all of a shorter chunk. ConfigurationError if a
    chunk has fewer than asked for.
    """
    shortest = min((spec.action.horizon for spec in specs), default=EXECUTED_ACTIONS)
    if asked is None:
        return min(EXECUTED_ACTIONS, shortest)
    if specs and asked > shortest:
        raise ConfigurationError(
            "A chunk is shorter than what is to be executed of it",
            got=f"{asked} actions a chunk",
            expected=f"at most {shortest}, the policy's horizon",
            fix=f"--execute {shortest}",
        )
    return asked


def _other_object(env: TabletopEnv, task: Task) -> Task:
    return next(
        other
        for other in env.tasks
        if other.object != task.object and other.receptacle == task.receptacle
    )
