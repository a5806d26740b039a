"""Demonstrations in the benchmark's training distribution: 16 objects by 16 tables, as published.

Episode n shows the n-th pair of object and table, so that any 256 in a row have each pair once;
places and headings are drawn. No environment that is evaluated has this name, but those whose shift
is in picture, words or start draw from the same places, as in the published benchmark.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.data.collect_settings import CollectSettings
from training.data.rollout import EpisodeMaker
from vla_align_ros.sim.put_on_plate.environment import PutOnPlateEnv
from vla_align_ros.sim.put_on_plate.environments import FULL_SIZE_PX, TRAINING
from vla_align_ros.sim.put_on_plate.expert import PlateExpert
from vla_align_ros.sim.put_on_plate.grasps import GraspError
from vla_align_ros.sim.put_on_plate.labels import environment_state
from vla_align_ros.sim.put_on_plate.layout import build_scene, draw_pair


class PlateMaker(EpisodeMaker):
    """The expert has phases: after a push or a policy it begins anew, by what the scene needs."""

    start_shares: ClassVar = {"home": 0.4, "midway": 0.3, "kicked": 0.3}
    gives_up: ClassVar = (GraspError,)

    def __init__(self, settings: CollectSettings) -> None:
        self._env = PutOnPlateEnv(
            settings.assets,
            size_px=settings.size_px or FULL_SIZE_PX,
            render_backend=settings.render_backend,
        )
        super().__init__(settings, self._env)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def _begin(self, rng: np.random.Generator, number: int) -> int:
        scene = draw_pair(self._env.assets, number, rng)
        self._env.begin_scene(build_scene(TRAINING, self._env.assets, scene))
        self._expert = PlateExpert(self._env)
        return scene

    def _instruction(self) -> str:
        return self._env.scene.instruction

    def _expert_action(self) -> NDArray[np.float64]:
        return self._expert.act()

    def _label(self) -> NDArray[np.float32]:
        return environment_state(self._env)

    def _finished(self) -> bool:
        return self._expert.finished

    def _kick(self, rng: np.random.Generator) -> None:
        super()._kick(rng)
        self._expert = PlateExpert(self._env)

    def _drive_with_policy(self, rng: np.random.Generator) -> None:
        super()._drive_with_policy(rng)
        self._expert = PlateExpert(self._env)
