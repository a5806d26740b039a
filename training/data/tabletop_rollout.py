"""Demonstrations on the MuJoCo table-top, from all over it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.data.collect_settings import CollectSettings
from training.data.rollout import EpisodeMaker
from vla_align_ros.sim.expert import Expert
from vla_align_ros.sim.labels import environment_state
from vla_align_ros.sim.tabletop import TabletopEnv

ANYWHERE_LOW_M = (0.18, -0.22, 0.05)
ANYWHERE_HIGH_M = (0.44, 0.22, 0.30)
ANYWHERE_YAW_RAD = 0.8
CLEAR_Z_M = 0.11
CLEAR_RADIUS_M = 0.09


class TabletopMaker(EpisodeMaker):
    """The expert keeps no phase of its own, so it can take over anywhere, and change its task."""

    start_shares: ClassVar = {
        "home": 0.15,
        "midway": 0.25,
        "anywhere": 0.25,
        "kicked": 0.25,
        "switched": 0.10,
    }

    def __init__(self, settings: CollectSettings) -> None:
        self._env = TabletopEnv()
        self._expert = Expert()
        super().__init__(settings, self._env)
        self._run_ups |= {"anywhere": self._go_anywhere, "switched": self._switch}

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()

    def _begin(self, rng: np.random.Generator, number: int) -> int:
        # Above 2**31, so that no evaluation that counts its seeds from 0 meets these scenes.
        seed = int(rng.integers(2**31, 2**32))
        self._env.begin(seed, shift=self.settings.shift)
        return seed

    def _instruction(self) -> str:
        return self._env.task.instruction

    def _expert_action(self) -> NDArray[np.float64]:
        return self._expert.act(self._env)

    def _label(self) -> NDArray[np.float32]:
        return environment_state(self._env)

    def _finished(self) -> bool:
        return self._env.succeeded()

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

    def _switch(self, rng: np.random.Generator) -> None:
        task = self._env.task
        others = [other for other in self._env.tasks if other != task]
        self._env.set_task(others[int(rng.integers(len(others)))])
        self._run_expert(rng)
        self._env.set_task(task)
