"""The rules by which an arm accepts velocity commands: those of MoveIt Servo."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.runtime.metrics import Metrics

STREAM_GAP_S = 0.5  # a longer silence between two commands ends a stream; it is not jitter


class ServoInput:
    """Keeps the latest twist and answers what the arm must do now. Holds no clock: pass seconds.

    A command counts only while it is younger than `timeout_s` by its own stamp; after that the arm
    stands still (`incoming_command_timeout` of MoveIt Servo). Refusals are counted by reason in
    `refused`: wrong_frame, non_finite, stale (arrived too old), future (stamped ahead of us). What
    is faster than the arm's `max_linear_m_s` or `max_angular_rad_s` is slowed down as a whole, its
    direction kept, as Servo does at a joint's speed limit; `clamped` counts it. `scale` (metres and
    radians a second) is what one unit means under Servo's default, "unitless"; None is
    "speed_units", which this package asks for.
    """

    def __init__(
        self,
        *,
        frame: str,
        timeout_s: float,
        max_linear_m_s: float = math.inf,
        max_angular_rad_s: float = math.inf,
        scale: tuple[float, float] | None = None,
    ) -> None:
        self.frame = frame
        self.timeout_s = timeout_s
        self.refused: Counter[str] = Counter()
        self.accepted = 0
        self.clamped = 0
        self._largest = (max_linear_m_s, max_angular_rad_s)
        self._scale = scale
        self.expired = 0
        self._twist = np.zeros(6)
        self._stamp_s = -math.inf
        self._not_before_s = -math.inf
        self._last_arrival_s = -math.inf
        self._arrivals = Metrics()

    def accept(
        self, twist: Sequence[float], *, frame: str, stamp_s: float, now_s: float
    ) -> str | None:
        """Take a twist (6,) in m/s and rad/s; returns the reason of a refusal, or None."""
        reason = self._refusal(twist, frame, stamp_s, now_s)
        if reason is not None:
            self.refused[reason] += 1
            return reason
        self.accepted += 1
        self._twist = self._slow(np.array(twist, dtype=float))
        self._stamp_s = stamp_s
        self._note_arrival(now_s, moving=bool(self._twist.any()))
        return None

    def twist_at(self, now_s: float) -> NDArray[np.float64]:
        """The velocity (6,) to move with at `now_s`: the last command, or zero once it is old.

        A motion that ends because no command followed it, or because the clock went back behind it,
        is counted once in `expired`.
        """
        if abs(now_s - self._stamp_s) <= self.timeout_s:
            return self._twist
        if self._twist.any():
            self.expired += 1
            self._twist = np.zeros(6)
        return self._twist

    def forget(self, now_s: float) -> None:
        """Start a new episode: stand still, refuse commands stamped before now, zero the counts."""
        self.refused.clear()
        self.accepted = self.expired = self.clamped = 0
        self._twist = np.zeros(6)
        self._stamp_s = -math.inf
        self._not_before_s = now_s
        self._last_arrival_s = -math.inf
        self._arrivals = Metrics()

    def statistics(self) -> dict[str, float | int]:
        """Counts, and the rate and jitter of accepted commands on arrival (silences left out).

        Keys: accepted, expired, clamped (if any), refused_<reason>, and once there is an interval
        command_rate_hz, command_jitter_p50_ms and command_jitter_p99_ms.
        """
        counts: dict[str, float | int] = {"accepted": self.accepted, "expired": self.expired}
        if self.clamped:
            counts["clamped"] = self.clamped
        counts.update({f"refused_{reason}": n for reason, n in sorted(self.refused.items())})
        counts.update({key: round(v, 3) for key, v in self._arrivals.snapshot().items()})
        return counts

    def _refusal(
        self, twist: Sequence[float], frame: str, stamp_s: float, now_s: float
    ) -> str | None:
        if frame != self.frame:
            return "wrong_frame"
        if len(twist) != 6 or not all(math.isfinite(value) for value in twist):
            return "non_finite"
        if now_s - stamp_s > self.timeout_s or stamp_s < self._not_before_s:
            return "stale"
        if stamp_s - now_s > self.timeout_s:
            return "future"
        return None

    def _slow(self, twist: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._scale is not None:
            twist = twist * np.repeat(self._scale, 3)
        speeds = [float(np.linalg.norm(part)) for part in (twist[:3], twist[3:])]
        factor = min([1.0, *(m / v for m, v in zip(self._largest, speeds, strict=True) if v > m)])
        self.clamped += factor < 1.0
        return twist * factor

    def _note_arrival(self, now_s: float, *, moving: bool) -> None:
        """Time the stream of commands; a zero ends it, as the silence after one is meant."""
        if now_s - self._last_arrival_s > STREAM_GAP_S:
            self._arrivals.pause("command")
        self._arrivals.tick("command", now_s)
        if not moving:
            self._arrivals.pause("command")
        self._last_arrival_s = now_s
