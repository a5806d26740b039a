"""Holds the latest sample of each input with its age: by its stamp and by its arrival."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.contract.spec import StateSpec
from vla_align_ros.errors import ConfigurationError

T = TypeVar("T")
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw")
GRIPPER_NAME = "gripper"
KEPT_STATES = 512  # half a second of a driver at 1 kHz: longer than a picture is under way


@dataclass(slots=True)
class Source(Generic[T]):
    """The newest sample of one input. `stamp_s` is the sender's clock.

    Up to `keep` samples are kept to find the one nearest to another stamp.
    """

    value: T | None = None
    stamp_s: float = 0.0
    arrived_s: float = 0.0
    received: int = 0
    keep: int = 0
    _recent: deque[tuple[float, T]] = field(default_factory=deque)

    def put(self, value: T, *, stamp_s: float, steady_s: float) -> None:
        """Replace the sample; `steady_s` is this machine's monotonic clock at its arrival."""
        self.value = value
        self.stamp_s = stamp_s
        self.arrived_s = steady_s
        self.received += 1
        if self._recent and stamp_s < self._recent[-1][0]:
            self._recent.clear()  # the sender's clock went back
        self._recent.append((stamp_s, value))
        while len(self._recent) > self.keep:
            self._recent.popleft()

    def clear(self) -> None:
        """Forget the samples, keep the count."""
        self.value = None
        self._recent.clear()

    def nearest(self, stamp_s: float) -> tuple[T, float] | None:
        """The kept sample nearest to a stamp, and how many seconds it is off; None without one."""
        if not self._recent:
            return None
        # They lie in order of their stamps.
        after = bisect_left(self._recent, stamp_s, key=lambda sample: sample[0])
        beside = list(islice(self._recent, max(0, after - 1), after + 1))
        found_s, value = min(beside, key=lambda sample: abs(sample[0] - stamp_s))
        return value, abs(found_s - stamp_s)

    def age_s(self, now_s: float, steady_s: float) -> float | None:
        """Age in seconds, None without a sample: by stamp or by arrival, whichever is further off.

        The arrival catches a clock that stands still, the stamp a driver that repeats itself. A
        stamp ahead of `now_s` gives a negative age.
        """
        if self.value is None:
            return None
        return max(now_s - self.stamp_s, steady_s - self.arrived_s, key=abs)

    def lag_s(self, now_s: float, steady_s: float) -> float:
        """For how long the sample may have been out of date: by stamp or arrival, the longer."""
        return max(now_s - self.stamp_s, steady_s - self.arrived_s)


@dataclass(slots=True)
class RobotState:
    """End-effector pose (x, y, z in m, roll, pitch, yaw in rad) and gripper (fraction open)."""

    names: tuple[str, ...] = ()
    pose: Source[NDArray[np.float64]] = field(default_factory=lambda: Source(keep=KEPT_STATES))
    gripper: Source[float] = field(default_factory=lambda: Source(keep=KEPT_STATES))

    @classmethod
    def for_spec(cls, spec: StateSpec | None) -> RobotState:
        """A state that can fill the policy's StateSpec; ConfigurationError on unknown names."""
        names = () if spec is None else tuple(spec.names)
        unknown = [name for name in names if name not in (*POSE_NAMES, GRIPPER_NAME)]
        if unknown:
            raise ConfigurationError(
                "the policy wants robot state that this runtime cannot supply",
                got=", ".join(unknown),
                expected="names among " + ", ".join((*POSE_NAMES, GRIPPER_NAME)),
                fix="train the policy with a StateSpec of these names",
            )
        return cls(names)

    @property
    def needs_pose(self) -> bool:
        """Whether the policy looks at the end-effector pose."""
        return any(name in POSE_NAMES for name in self.names)

    @property
    def needs_gripper(self) -> bool:
        """Whether the policy looks at the gripper."""
        return GRIPPER_NAME in self.names

    def clear(self) -> None:
        """Forget the samples."""
        self.pose.clear()
        self.gripper.clear()

    def age_s(self, now_s: float, steady_s: float, *, with_pose: bool = False) -> float | None:
        """Age of the oldest part that is needed (`with_pose` needs the pose in any case)."""
        oldest: float | None = 0.0
        for needed, source in (
            (self.needs_pose or with_pose, self.pose),
            (self.needs_gripper, self.gripper),
        ):
            if needed:
                age = source.age_s(now_s, steady_s)
                if age is None:
                    return None
                oldest = age if oldest is None else max(oldest, age, key=abs)
        return oldest

    def vector_at(self, stamp_s: float) -> tuple[NDArray[np.float32] | None, float]:
        """The state (D,) in the order of the StateSpec, of the samples nearest to a stamp.

        Beside it, how many seconds the furthest of them is off; None while a part is missing.
        """
        values: dict[str, np.float64] = {}
        off_s = 0.0
        for needed, names, source in (
            (self.needs_pose, POSE_NAMES, self.pose),
            (self.needs_gripper, (GRIPPER_NAME,), self.gripper),
        ):
            if not needed:
                continue
            found = source.nearest(stamp_s)
            if found is None:
                return None, 0.0
            values.update(zip(names, np.ravel(found[0]), strict=True))
            off_s = max(off_s, found[1])
        return np.array([values[name] for name in self.names], np.float32), off_s
