"""Compares the strategies of chunk execution in the simulator: jerk at hand-over, reaction time.

Simulated time, so that two runs of one scene are the same until something is changed in one: what
follows from the change is then known exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.actions import twist_from_delta
from vla_align_ros.contract.observation import ActionChunk, Observation
from vla_align_ros.runtime.chunks import ChunkBuffer, ScheduledAction
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.statistics import wilson_interval
from vla_align_ros.runtime.strategies import STRATEGIES, count_committed, find_strategy
from vla_align_ros.sim.tabletop import TICK_S, TabletopEnv

FIRST_SEED = 2_000_000_000  # beyond the data sets' and the demonstration's
FRAME_TICKS = 5  # a picture every 0.1 s
CHANGE_S = 1.0  # when the simulator's shift "object_moved" moves the object
SECONDS = 4.0
EPISODE_S = 16.0  # as long as `vla-align evaluate` lets a policy try
LATENCY_S = 0.1
NOTICED_M_S = 0.02  # commands differ when their velocities do by more than this
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Drive:
    """One run, by tick: commanded velocity (N, 3) in m/s, the plan that each came from (N,).

    A plan of 0 is none. `answered_s` is when the first command for the last words left.
    """

    velocity: Vector
    plans: NDArray[np.int64]
    answered_s: float | None


class Pilot:
    """Plans on pictures as the node does, one inference at a time, each of a fixed length.

    `replan_s`: from one planned picture to the next, at the least. All times in seconds of the
    simulator.
    """

    def __init__(self, policy: Policy, strategy: str, latency_s: float, replan_s: float) -> None:
        spec = policy.spec.action
        self.buffer = ChunkBuffer(spec.period_s, spec.horizon, find_strategy(strategy))
        self._policy = policy
        self._camera = policy.spec.cameras[0].name
        self._latency_s, self._replan_s = latency_s, replan_s
        self._commits = count_committed(latency_s, spec)
        self._pending: tuple[float, ActionChunk, int] | None = None
        self._next_s = 0.0

    def act(self, env: TabletopEnv, now_s: float) -> ScheduledAction | None:
        """The action for `now_s`, after what has arrived by then, and a look if one is due."""
        if self._pending is not None and self._pending[0] <= now_s + 1e-9:
            _, chunk, told = self._pending
            self.buffer.add(chunk, now_s, told=told)
            self._pending = None
        if self._pending is None and now_s >= self._next_s - 1e-9:
            self._pending = (now_s + self._latency_s, *self._plan(env, now_s))
            self._next_s = now_s + self._replan_s
        return self.buffer.action_at(now_s)

    def _plan(self, env: TabletopEnv, now_s: float) -> tuple[ActionChunk, int]:
        """A chunk, and how many actions it was told."""
        picture, words = env.render(), self.buffer.instruction
        assert picture is not None and words is not None
        decided = self.buffer.commit(now_s, self._commits)
        state = env.state() if self._policy.spec.state is not None else None
        seen = Observation({self._camera: picture}, state, words, now_s, decided)
        return self._policy.infer(seen), 0 if decided is None else len(decided)


class Track:
    """Drives the simulated arm by a policy whose inference takes a fixed time, on its own clock."""

    def __init__(self, policy: Policy, latency_s: float = LATENCY_S) -> None:
        self._policy = policy
        self._latency_s = latency_s
        self._env = TabletopEnv(render_size=224)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def drive(self, strategy: str, seed: int, *, move: bool = False, switch: bool = False) -> Drive:
        """Run `SECONDS` of a scene; at `CHANGE_S` the object is moved, or other words are said."""
        env = self._env
        env.begin(seed, shift="object_moved")
        saved = env.save()
        env.restore({**saved, "moved": not move})
        pilot = Pilot(self._policy, strategy, self._latency_s, FRAME_TICKS * TICK_S)
        words = [env.task.instruction]
        words += [t.instruction for t in env.tasks if t.object != env.task.object]
        switch = switch and len(words) > 1
        pilot.buffer.set_instruction(words[0].lower())
        velocities, plans, gripper = [], [], 1.0
        answered_s: float | None = None
        for tick in range(round(SECONDS / TICK_S)):
            now_s = tick * TICK_S
            if switch and now_s >= CHANGE_S:
                pilot.buffer.set_instruction(words[1].lower())
            action = pilot.act(env, now_s)
            twist, gripper = self._command(action, gripper)
            if action is not None and answered_s is None:
                answered = action.instruction == words[int(switch)].lower()
                answered_s = now_s if answered else None
            velocities.append(twist[:3])
            plans.append(0 if action is None else action.plan)
            env.tick(twist, gripper)
        return Drive(np.array(velocities), np.array(plans), answered_s)

    def succeeds(self, strategy: str, seed: int, replan_s: float) -> bool:
        """Run a scene of the training distribution to its end; `replan_s` as in `Pilot`."""
        env, gripper = self._env, 1.0
        env.begin(seed)
        pilot = Pilot(self._policy, strategy, self._latency_s, replan_s)
        pilot.buffer.set_instruction(env.task.instruction.lower())
        for tick in range(round(EPISODE_S / TICK_S)):
            twist, gripper = self._command(pilot.act(env, tick * TICK_S), gripper)
            env.tick(twist, gripper)
            if tick % FRAME_TICKS == 0 and env.succeeded():
                return True
        return False

    def _command(self, action: ScheduledAction | None, gripper: float) -> tuple[Vector, float]:
        """Twist (6,) and gripper; without an action the arm stands and the gripper stays."""
        if action is None:
            return np.zeros(6), gripper
        return twist_from_delta(action.action, action.period_s), float(action.action[6])


def measure_jerk(drives: Sequence[Drive]) -> dict[str, float]:
    """Steps of the commanded velocity where the plan changes, and jerk over all of the motion.

    `handover_step_mm_s`: size of the step from one tick to the next at a change of plan (p50, p99).
    `jerk_rms_m_s3`: root mean square of the second difference of velocity over the tick squared.
    """
    steps, jerks = [], []
    for drive in drives:
        moving = np.flatnonzero(drive.plans)
        if not len(moving):
            continue
        velocity, plans = drive.velocity[moving[0] :], drive.plans[moving[0] :]
        change = np.linalg.norm(np.diff(velocity, axis=0), axis=1)
        steps.append(1e3 * change[np.diff(plans) != 0])
        jerks.append(np.linalg.norm(np.diff(velocity, n=2, axis=0), axis=1) / TICK_S**2)
    all_steps, all_jerks = np.concatenate(steps), np.concatenate(jerks)
    return {
        "handover_step_mm_s_p50": round(float(np.median(all_steps)), 2),
        "handover_step_mm_s_p99": round(float(np.quantile(all_steps, 0.99)), 2),
        "jerk_rms_m_s3": round(float(np.sqrt(np.mean(all_jerks**2))), 2),
        "jerk_p99_m_s3": round(float(np.quantile(all_jerks, 0.99)), 2),
    }


def find_reaction_s(plain: Drive, changed: Drive) -> float | None:
    """From the change to the first command that differs by `NOTICED_M_S`; None if none does."""
    first = round(CHANGE_S / TICK_S)
    gap = np.linalg.norm(changed.velocity - plain.velocity, axis=1)[first:]
    noticed = np.flatnonzero(gap > NOTICED_M_S)
    return float(noticed[0] * TICK_S) if len(noticed) else None


def compare_strategies(
    bundle: Path,
    scenes: int,
    latency_s: float = LATENCY_S,
    tell: Callable[[str], None] = lambda text: None,
    *,
    episodes: int = 0,
    replan_s: float | None = None,
) -> dict[str, Any]:
    """Drive `scenes` scenes by every strategy that fits the policy: jerk and reaction times.

    And `episodes` scenes to their end, planning every `replan_s` (the node's default for the
    policy, if not given): how many succeeded. An inference takes `latency_s`.
    """
    results: dict[str, Any] = {}
    with Policy.open(bundle) as policy:
        replan_s = policy.spec.action.replan_period_s if replan_s is None else replan_s
        policy.warm_up()
        track = Track(policy, latency_s)
        try:
            for name, strategy in STRATEGIES.items():
                if strategy().commits and not policy.spec.action.committed:
                    continue
                results[name] = _measure_strategy(track, name, scenes)
                if episodes > 0:
                    results[name] |= _measure_success(track, name, episodes, replan_s)
                tell(f"{name:9} {results[name]}")
        finally:
            track.close()
    settings = {"latency_s": latency_s, "scenes": scenes, "noticed_m_s": NOTICED_M_S}
    return {"bundle_id": policy.bundle_id, **settings, "replan_s": replan_s, **results}


def _measure_strategy(track: Track, name: str, scenes: int) -> dict[str, Any]:
    plain, moved, switched = [], [], []
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        drive = track.drive(name, seed)
        plain.append(drive)
        moved.append(find_reaction_s(drive, track.drive(name, seed, move=True)))
        answered_s = track.drive(name, seed, switch=True).answered_s
        switched.append(None if answered_s is None else answered_s - CHANGE_S)
    return {
        **measure_jerk(plain),
        "reaction_to_words_s": _middle(switched),
        "reaction_to_moved_object_s": _middle(moved),
    }


def _measure_success(track: Track, name: str, episodes: int, replan_s: float) -> dict[str, Any]:
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    successes = sum(track.succeeds(name, seed, replan_s) for seed in seeds)
    interval = list(wilson_interval(successes, episodes))
    return {"successes": successes, "episodes": episodes, "success_interval": interval}


def _middle(times_s: Sequence[float | None]) -> dict[str, float | int | None]:
    """Median and largest of those that reacted, and how many did."""
    known = [time_s for time_s in times_s if time_s is not None]
    return {
        "median": round(float(np.median(known)), 3) if known else None,
        "max": round(max(known), 3) if known else None,
        "reacted": len(known),
    }
