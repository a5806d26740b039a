"""Gathers what the policy looks at: pictures and state, put together by their stamps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import ContractError
from vla_align_ros.runtime.metrics import Metrics
from vla_align_ros.runtime.sources import RobotState, Source
from vla_align_ros.runtime.sync import Sample, Synchroniser

Pixels = NDArray[np.uint8]
Load = Callable[[], Pixels]
SYNC_TOLERANCE_S = 0.1
OTHER_PARTS = ("pose", "joints", "gripper")  # told beside the cameras, by these names


@dataclass(frozen=True, slots=True)
class Sight:
    """Pictures of every camera and the state, all of one instant.

    `loads` give (H, W, 3) uint8 RGB by camera name; `stamp_s` is the oldest picture's stamp,
    `arrived_s` when the last of them came (monotonic); `state` (D,) as the StateSpec orders it.
    """

    loads: Mapping[str, Load]
    stamp_s: float
    arrived_s: float
    state: NDArray[np.float32] | None


def tell_camera(name: str) -> str:
    """What a camera is called where other parts of the robot are told beside it."""
    return f"camera {name}" if name in OTHER_PARTS else name


class Observer:
    """The newest sample of each input with its age, and the synchronised sets of them.

    Clocks are as the runner's. Raises ConfigurationError on state that nobody can supply.
    """

    def __init__(
        self,
        spec: PolicySpec,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        steady: Callable[[], float],
        tolerance_s: float = SYNC_TOLERANCE_S,
    ) -> None:
        self.cameras: dict[str, Source[Load]] = {c.name: Source() for c in spec.cameras}
        self.pixels = {camera.name: camera.height * camera.width for camera in spec.cameras}
        self.state = RobotState.for_spec(spec.state)
        self._metrics = metrics
        self._clock = clock
        self._steady = steady
        self._sync: Synchroniser[Load] = Synchroniser(list(self.cameras), tolerance_s)
        self._seen_s = steady()
        self._why_not: str | None = None

    def take_image(self, camera: str | None, load: Load, stamp_s: float) -> Sight | None:
        """Take a picture of a camera (of the only one, if None); the sight that it completes.

        Raises ContractError on a camera that the policy does not have.
        """
        name = self._find_camera(camera)
        steady_s = self._steady()
        self.cameras[name].put(load, stamp_s=stamp_s, steady_s=steady_s)
        self._metrics.count("frames_received")
        self._metrics.observe_ms("transport", 1e3 * (self._clock() - stamp_s))
        if name == next(iter(self.cameras)):
            self._metrics.tick("camera", steady_s)
        found = self._sync.put(name, Sample(load, stamp_s, steady_s))
        if found is None:
            self._explain_cameras()
            return None
        return self._complete(found)

    def ages_s(self, *, with_pose: bool) -> dict[str, float | None]:
        """Ages in seconds by name (image_age, state_age), None where nothing arrived."""
        now_s, steady_s = self._clock(), self._steady()
        ages = {"image_age": self.oldest_image(now_s, steady_s)[1]}
        if self.state.names or with_pose:
            ages["state_age"] = self.state.age_s(now_s, steady_s, with_pose=with_pose)
        return ages

    def ages_by_source(self) -> dict[str, float | None]:
        """Ages in seconds of every camera by name, and of pose and joints."""
        now_s, steady_s = self._clock(), self._steady()
        sources: dict[str, Source[Any]] = {
            **{tell_camera(name): source for name, source in self.cameras.items()},
            "pose": self.state.pose,
            "joints": self.state.gripper,
        }
        return {name: source.age_s(now_s, steady_s) for name, source in sources.items()}

    def oldest_image(self, now_s: float, steady_s: float) -> tuple[str, float | None]:
        """What to call the camera whose picture is furthest off, and that picture's age."""
        ages = {name: source.age_s(now_s, steady_s) for name, source in self.cameras.items()}
        missing = [name for name, age_s in ages.items() if age_s is None]
        worst = missing[0] if missing else max(ages, key=lambda name: abs(ages[name] or 0.0))
        return ("image" if len(ages) == 1 else f"image of {worst}"), ages[worst]

    def explain_disorder(self, steady_s: float, limit_s: float) -> str | None:
        """Why nothing fitted together for longer than `limit_s`; None if something did."""
        return self._why_not if steady_s - self._seen_s > limit_s else None

    def clear(self) -> None:
        """Forget every sample."""
        for source in self.cameras.values():
            source.clear()
        self.state.clear()
        self._sync.clear()
        self._seen_s = self._steady()
        self._why_not = None
        self._metrics.pause("camera")

    def _complete(self, found: Mapping[str, Sample[Load]]) -> Sight | None:
        stamp_s = min(sample.stamp_s for sample in found.values())
        arrived_s = max(sample.arrived_s for sample in found.values())
        state = None
        if self.state.names:
            state, off_s = self.state.vector_at(stamp_s)
            if state is None:
                return None
            if off_s > self._sync.tolerance_s:
                self._note_disorder(f"the robot state is {off_s:.3f} s off the picture")
                return None
        self._seen_s, self._why_not = self._steady(), None
        loads = {name: sample.value for name, sample in found.items()}
        return Sight(loads, stamp_s, arrived_s, state)

    def _explain_cameras(self) -> None:
        spread_s = self._sync.spread_s
        if spread_s is not None and spread_s > self._sync.tolerance_s:
            names = " and ".join(self.cameras)
            self._note_disorder(f"the pictures of {names} are {spread_s:.3f} s apart")

    def _note_disorder(self, what: str) -> None:
        self._metrics.count("frames_unsynchronised")
        self._why_not = f"{what}, {self._sync.tolerance_s:.3f} s at most"

    def _find_camera(self, camera: str | None) -> str:
        name = next(iter(self.cameras)) if camera is None and len(self.cameras) == 1 else camera
        if name is None or name not in self.cameras:
            raise ContractError(
                "a picture is of no camera of the policy",
                got=repr(camera),
                expected=" or ".join(self.cameras),
                fix="name one of them",
            )
        return name
