"""Makes one demonstration: an unrecorded run-up into an odd state, then the expert's way out.

Nothing clumsy is ever recorded: what was perturbed is only the state from which the expert
continues, so every recorded chunk of actions is what the expert would do (recovery data in the
manner of DAgger, Ross et al. 2011, with the scripted expert as the labeller).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.layout import EpisodeRecord
from training.data.schema import (
    ACTION_KEY,
    ATTEMPT_NOTE,
    CHUNK_KEY,
    ENVIRONMENT_KEY,
    SEED_NOTE,
    START_NOTE,
    STATE_KEY,
    VIDEO_KEY,
)
from vla_align_ros.errors import DataError

if TYPE_CHECKING:
    from vla_align_ros.runtime.policy import Policy
    from vla_align_ros.sim.robot import SimObservation
    from vla_align_ros.sim.tabletop import TabletopEnv

ENVIRONMENTS = ("tabletop",)
MAX_STEPS = 80
STEPS_AFTER_SUCCESS = 2
MAX_ATTEMPTS = 25
RUN_UP_STEPS = (1, 20)  # of the expert, before recording, a kick or a switch of the task
KICK_M = (0.03, 0.08)
KICK_RAD = 0.4
KICK_STEPS = 2
GRIPPER_FLIP_RATE = 0.15
POLICY_STEPS = (5, 40)
POLICY_EXECUTED = (2, 4)
ANYWHERE_LOW_M = (0.18, -0.22, 0.05)
ANYWHERE_HIGH_M = (0.44, 0.22, 0.30)
ANYWHERE_YAW_RAD = 0.8
CLEAR_Z_M = 0.11
CLEAR_RADIUS_M = 0.09

START_SHARES = {
    "home": 0.15,
    "midway": 0.25,
    "anywhere": 0.25,
    "kicked": 0.25,
    "switched": 0.10,
}


@dataclass(frozen=True)
class CollectSettings:
    """All that decides the content of episode number n (the number of episodes does not).

    `record_frames` (low, high): record only that many frames after the run-up, drawn per episode;
    None records until two steps after success. `policy` is a bundle that drives the run-up.
    """

    env: str = "tabletop"
    seed: int = 0
    shift: str = "none"
    horizon: int = 8
    record_frames: tuple[int, int] | None = None
    policy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, kept in meta/collection.json."""
        values = asdict(self)
        values["record_frames"] = list(self.record_frames) if self.record_frames else None
        return values


class EpisodeMaker:
    """Makes episode number n of a collection; the same settings and n give the same episode."""

    def __init__(self, settings: CollectSettings) -> None:
        """Build the simulator, the expert and, for DAgger, the policy (one each a process)."""
        if settings.env not in ENVIRONMENTS:
            raise DataError(
                "Unknown environment",
                got=settings.env,
                expected=f"one of {', '.join(ENVIRONMENTS)}",
                fix="pass one of them as --env",
            )
        from vla_align_ros.sim.expert import Expert
        from vla_align_ros.sim.labels import environment_state
        from vla_align_ros.sim.shifts import find_shift
        from vla_align_ros.sim.tabletop import TabletopEnv

        find_shift(settings.shift)
        self.settings = settings
        self._policy: Policy | None = None
        if settings.policy is not None:
            from vla_align_ros.runtime.policy import Policy

            self._policy = Policy.open(settings.policy, backend="onnx", threads=1)
        self._env: TabletopEnv = TabletopEnv()
        self._expert = Expert()
        self._label = environment_state
        self._run_ups: dict[str, Callable[[np.random.Generator], None]] = {
            "home": lambda rng: None,
            "midway": self._start_midway,
            "anywhere": self._go_anywhere,
            "kicked": self._kick,
            "switched": self._switch,
            "policy": self._drive_with_policy,
        }

    def make(self, number: int) -> EpisodeRecord:
        """Episode `number`; scenes where the expert fails are replaced by the next draw."""
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self.settings.seed, number, attempt])
            # Above 2**31, so that no evaluation that counts its seeds from 0 meets these scenes.
            env_seed = int(rng.integers(2**31, 2**32))
            self._env.begin(env_seed, shift=self.settings.shift)
            start = self._draw_start(rng)
            self._run_ups[start](rng)
            notes: dict[str, int | float | str] = {
                SEED_NOTE: env_seed,
                START_NOTE: start,
                ATTEMPT_NOTE: attempt,
            }
            record = self._record(rng, notes)
            if record is not None:
                return record
        raise DataError(
            f"The expert failed {MAX_ATTEMPTS} times in a row at episode {number}",
            got=f"shift {self.settings.shift!r}, seed {self.settings.seed}",
            expected="success in nearly every scene",
            fix="run the simulator's tests: the expert or the scene is broken",
        )

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()

    def _draw_start(self, rng: np.random.Generator) -> str:
        if self._policy is not None:
            return "policy"
        return str(rng.choice(list(START_SHARES), p=list(START_SHARES.values())))

    # -- run-ups (never recorded) ---------------------------------------------------------------
    def _go_anywhere(self, rng: np.random.Generator) -> None:
        position = rng.uniform(ANYWHERE_LOW_M, ANYWHERE_HIGH_M)
        layout = self._env.layout
        for thing in (*layout.objects, *layout.receptacles):
            if np.hypot(position[0] - thing.x_m, position[1] - thing.y_m) < CLEAR_RADIUS_M:
                position[2] = max(position[2], CLEAR_Z_M)  # do not start inside of a thing
        yaw = float(rng.uniform(-ANYWHERE_YAW_RAD, ANYWHERE_YAW_RAD))
        gripper = float(rng.integers(2))
        self._env.place_tool(position, yaw, gripper_open=gripper)
        self._env.advance(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper]))

    def _run_expert(self, rng: np.random.Generator) -> float:
        gripper = 1.0
        for _ in range(int(rng.integers(*RUN_UP_STEPS, endpoint=True))):
            action = self._expert.act(self._env)
            gripper = float(action[6])
            self._env.advance(action)
        return gripper

    def _start_midway(self, rng: np.random.Generator) -> None:
        self._run_expert(rng)

    def _kick(self, rng: np.random.Generator) -> None:
        gripper = self._run_expert(rng)
        if rng.random() < GRIPPER_FLIP_RATE:
            gripper = 1.0 - gripper
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        turn = rng.uniform(-KICK_RAD, KICK_RAD)
        kick = [*(rng.uniform(*KICK_M) * direction), 0.0, 0.0, turn]
        for _ in range(KICK_STEPS):
            self._env.advance(np.array([*(value / KICK_STEPS for value in kick), gripper]))

    def _switch(self, rng: np.random.Generator) -> None:
        task = self._env.task
        others = [other for other in self._env.tasks if other != task]
        self._env.set_task(others[int(rng.integers(len(others)))])
        self._run_expert(rng)
        self._env.set_task(task)

    def _drive_with_policy(self, rng: np.random.Generator) -> None:
        from vla_align_ros.contract.processor import Observation

        if self._policy is None:
            raise DataError(
                "No policy to drive",
                got="no bundle",
                expected="a policy bundle",
                fix="pass --policy",
            )
        camera = self._policy.spec.cameras[0].name
        left = int(rng.integers(*POLICY_STEPS, endpoint=True))
        while left > 0:
            seen = self._env.observe()
            observation = Observation(
                images={camera: _picture(seen)},
                state=seen.state if self._policy.spec.state is not None else None,
                instruction=self._env.task.instruction,
                stamp_s=seen.time_s,
            )
            executed = min(left, int(rng.integers(*POLICY_EXECUTED, endpoint=True)))
            for action in self._policy.infer(observation).actions[:executed]:
                self._env.advance(action)
            left -= executed
            if self._env.succeeded():
                break

    # -- the recorded part ----------------------------------------------------------------------
    def _record(
        self, rng: np.random.Generator, notes: dict[str, int | float | str]
    ) -> EpisodeRecord | None:
        """The expert from here on, or None if it does not succeed."""
        wanted = self.settings.record_frames
        limit = MAX_STEPS if wanted is None else int(rng.integers(*wanted, endpoint=True))
        images, states, labels, actions = [], [], [], []
        succeeded_for = 0
        for _ in range(limit):
            seen = self._env.observe()
            images.append(_picture(seen))
            states.append(seen.state)
            labels.append(self._label(self._env))
            actions.append(self._act())
            succeeded_for = succeeded_for + 1 if self._env.succeeded() else 0
            if wanted is None and succeeded_for > STEPS_AFTER_SUCCESS:
                break
        if wanted is None and not succeeded_for:
            return None
        steps = len(actions)
        actions += [self._act() for _ in range(self.settings.horizon - 1)]
        every = np.stack(actions)
        chunks = np.lib.stride_tricks.sliding_window_view(every, self.settings.horizon, axis=0)
        return EpisodeRecord(
            task=self._env.task.instruction,
            images={VIDEO_KEY: np.stack(images)},
            columns={
                STATE_KEY: np.stack(states),
                ENVIRONMENT_KEY: np.stack(labels),
                ACTION_KEY: every[:steps],
                CHUNK_KEY: np.ascontiguousarray(chunks.transpose(0, 2, 1)),
            },
            notes=notes,
        )

    def _act(self) -> np.ndarray:
        action = self._expert.act(self._env).astype(np.float32)
        self._env.advance(action)
        return action


def _picture(seen: SimObservation) -> np.ndarray:
    if seen.image is None:
        raise DataError(
            "The simulator draws no picture",
            got="an observation without an image",
            expected="a TabletopEnv with render=True",
            fix="set MUJOCO_GL=egl or osmesa and install its library",
        )
    return seen.image
