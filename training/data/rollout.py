"""Makes one demonstration: an unrecorded run-up into an odd state, then the expert's way out.

Nothing clumsy is ever recorded: what was perturbed is only the state from which the expert
continues, so every recorded chunk of actions is what the expert would do (recovery data in the
manner of DAgger, Ross et al. 2011, with the scripted expert as the labeller).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from training.data.collect_settings import CollectSettings, check_settings
from training.data.layout import EpisodeRecord
from training.data.schema import (
    ACTION_KEY,
    ATTEMPT_NOTE,
    CHUNK_KEY,
    ENVIRONMENT_KEY,
    PUT_ON_PLATE,
    SEED_NOTE,
    START_NOTE,
    STATE_KEY,
    VIDEO_KEY,
)
from vla_align_ros.contract.observation import Observation
from vla_align_ros.errors import DataError

if TYPE_CHECKING:
    from vla_align_ros.runtime.policy import Policy
    from vla_align_ros.sim.robot import SimObservation

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


class Simulator(Protocol):
    """What every simulator has that the expert can drive."""

    def observe(self) -> SimObservation:
        """Picture and proprioception of now."""
        ...

    def advance(self, action: NDArray[Any]) -> Any:
        """One step of a delta action (7,)."""
        ...

    def succeeded(self) -> bool:
        """Whether the task is done now."""
        ...


class EpisodeMaker(ABC):
    """Makes episode number n of a collection; the same settings and n give the same episode."""

    start_shares: ClassVar[Mapping[str, float]]
    gives_up: ClassVar[tuple[type[Exception], ...]] = ()
    """What the expert raises where it cannot go on: the next draw takes the scene's place."""

    def __init__(self, settings: CollectSettings, simulator: Simulator) -> None:
        """A subclass builds its simulator and expert; here the policy is opened, for DAgger."""
        self.settings = settings
        self._simulator = simulator
        self._policy: Policy | None = None
        if settings.policy is not None:
            from vla_align_ros.runtime.policy import Policy

            self._policy = Policy.open(settings.policy, backend="onnx", threads=1)
        self._run_ups: dict[str, Callable[[np.random.Generator], None]] = {
            "home": lambda rng: None,
            "midway": self._start_midway,
            "kicked": self._kick,
            "policy": self._drive_with_policy,
        }

    def make(self, number: int) -> EpisodeRecord:
        """Episode `number`; scenes where the expert fails are replaced by the next draw."""
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self.settings.seed, number, attempt])
            try:
                record = self._attempt(rng, number, attempt)
            except self.gives_up:
                continue
            if record is not None:
                return record
        raise DataError(
            f"The expert failed {MAX_ATTEMPTS} times in a row at episode {number}",
            got=f"{self.settings.env}, shift {self.settings.shift!r}, seed {self.settings.seed}",
            expected="success in nearly every scene",
            fix="run the simulator's tests: the expert or the scene is broken",
        )

    def _attempt(self, rng: np.random.Generator, number: int, attempt: int) -> EpisodeRecord | None:
        scene = self._begin(rng, number)
        start = self._draw_start(rng)
        self._run_ups[start](rng)
        notes: dict[str, int | float | str] = {
            SEED_NOTE: scene,
            START_NOTE: start,
            ATTEMPT_NOTE: attempt,
        }
        return self._record(rng, notes)

    @abstractmethod
    def close(self) -> None:
        """Free the simulator."""

    # -- what differs between simulators --------------------------------------------------------
    @abstractmethod
    def _begin(self, rng: np.random.Generator, number: int) -> int:
        """Start a scene for episode `number`, and return what names it."""

    @abstractmethod
    def _instruction(self) -> str:
        """What is asked in this scene."""

    @abstractmethod
    def _expert_action(self) -> NDArray[np.float64]:
        """What the expert does now (7,)."""

    @abstractmethod
    def _label(self) -> NDArray[np.float32]:
        """The simulator's truth, for labels."""

    @abstractmethod
    def _finished(self) -> bool:
        """Whether the expert has nothing left to do."""

    # -- run-ups (never recorded) ---------------------------------------------------------------
    def _draw_start(self, rng: np.random.Generator) -> str:
        if self._policy is not None:
            return "policy"
        shares = self.start_shares
        return str(rng.choice(list(shares), p=list(shares.values())))

    def _run_expert(self, rng: np.random.Generator) -> float:
        gripper = 1.0
        for _ in range(int(rng.integers(*RUN_UP_STEPS, endpoint=True))):
            action = self._expert_action()
            gripper = float(action[6])
            self._simulator.advance(action)
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
            self._simulator.advance(np.array([*(value / KICK_STEPS for value in kick), gripper]))

    def _drive_with_policy(self, rng: np.random.Generator) -> None:
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
            seen = self._simulator.observe()
            observation = Observation(
                images={camera: _picture(seen)},
                state=seen.state if self._policy.spec.state is not None else None,
                instruction=self._instruction(),
                stamp_s=seen.time_s,
            )
            executed = min(left, int(rng.integers(*POLICY_EXECUTED, endpoint=True)))
            for action in self._policy.infer(observation).actions[:executed]:
                self._simulator.advance(action)
            left -= executed
            if self._simulator.succeeded():
                break

    # -- the recorded part ----------------------------------------------------------------------
    def _record(
        self, rng: np.random.Generator, notes: dict[str, int | float | str]
    ) -> EpisodeRecord | None:
        """The expert from here on, or None if it does not succeed."""
        wanted = self.settings.record_frames
        limit = MAX_STEPS if wanted is None else int(rng.integers(*wanted, endpoint=True))
        images, states, labels, actions = [], [], [], []
        finished_for = 0
        for _ in range(limit):
            seen = self._simulator.observe()
            images.append(_picture(seen))
            states.append(seen.state)
            labels.append(self._label())
            actions.append(self._act())
            finished_for = finished_for + 1 if self._finished() else 0
            if wanted is None and finished_for > STEPS_AFTER_SUCCESS:
                break
        if wanted is None and not finished_for:
            return None
        steps = len(actions)
        actions += [self._act() for _ in range(self.settings.horizon - 1)]
        every = np.stack(actions)
        chunks = np.lib.stride_tricks.sliding_window_view(every, self.settings.horizon, axis=0)
        return EpisodeRecord(
            task=self._instruction(),
            images={VIDEO_KEY: np.stack(images)},
            columns={
                STATE_KEY: np.stack(states),
                ENVIRONMENT_KEY: np.stack(labels),
                ACTION_KEY: every[:steps],
                CHUNK_KEY: np.ascontiguousarray(chunks.transpose(0, 2, 1)),
            },
            notes=notes,
        )

    def _act(self) -> NDArray[np.float32]:
        action = self._expert_action().astype(np.float32)
        self._simulator.advance(action)
        return action


def open_maker(settings: CollectSettings) -> EpisodeMaker:
    """Build the simulator, the expert and, for DAgger, the policy (one each a process)."""
    check_settings(settings)
    if settings.env == PUT_ON_PLATE:
        from training.data.plate_rollout import PlateMaker

        return PlateMaker(settings)
    from training.data.tabletop_rollout import TabletopMaker

    return TabletopMaker(settings)


def _picture(seen: SimObservation) -> NDArray[np.uint8]:
    if seen.image is None:
        raise DataError(
            "The simulator draws no picture",
            got="an observation without an image",
            expected="a TabletopEnv with render=True",
            fix="set MUJOCO_GL=egl or osmesa and install its library",
        )
    return seen.image
