"""Notices from outside that a policy stopped commanding an arm that moves. Holds no clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vla_align_ros.errors import SafetyError

PERIODS = 2.0  # a command may be one period late; the arm must stop within two
ALIVE_PERIODS = 1.5  # a heartbeat younger than this says that the node runs
JUDGED_BEATS = 20
ODD_PERIODS = (0.6, 1.7)  # heartbeats that come closer or further apart have another rate

SILENT = "policy_silent"
CEASED = "commands_ceased"


@dataclass(frozen=True, slots=True)
class Trip:
    """The watchdog stopped the arm: a public reason, seconds of silence, and when it noticed.

    `policy_silent`: neither commands nor heartbeats came. `commands_ceased`: heartbeats still
    come, but neither the next command nor the zero that ends a motion.
    """

    reason: str
    silence_s: float
    time_s: float


class Watchdog:
    """Follows the commands and heartbeats of one policy node; trips once for each silence.

    A command that is not zero must be followed by another within `limit_s`, two command periods
    and a tolerance; so must a heartbeat that says "moving". A zero, or a heartbeat "not moving",
    ends the matter for its own channel. A command between two heartbeats that both say "not
    moving" is somebody else's, as a person's who drives: the second one ends its matter too. Until
    then it counts, as the policy may have died of it. Times are seconds on one monotonic clock of
    the caller.

    Raises SafetyError on a rate or tolerance that makes no limit.
    """

    def __init__(self, rate_hz: float, tolerance_s: float) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0 and math.isfinite(tolerance_s)) or (
            tolerance_s < 0
        ):
            raise SafetyError(
                "the watchdog has no time limit",
                got=f"{rate_hz} commands a second, {tolerance_s} s tolerance",
                expected="a rate above 0 and a tolerance of at least 0",
                fix="correct command_rate_hz and tolerance_s of watchdog_node",
            )
        self.limit_s = PERIODS / rate_hz + tolerance_s
        self._period_s = 1.0 / rate_hz
        self._alive_s = ALIVE_PERIODS / rate_hz
        self._beats_s: deque[float] = deque(maxlen=JUDGED_BEATS + 1)
        self.trips = 0
        self.first: Trip | None = None
        self.last: Trip | None = None
        self._command_s: float | None = None  # of the last command, while it was not zero
        self._beat_s: float | None = None  # of the last heartbeat, while it said "moving"
        self._stands = False  # whether the last heartbeat said "not moving"
        self._foreign = False  # whether no heartbeat claimed the last command, as far as is known
        self._heard_s = -math.inf  # of the last heartbeat, whatever it said

    @property
    def moving(self) -> bool:
        """Whether the arm was last told to move, as far as is known here."""
        return self._command_s is not None or self._beat_s is not None

    def take_command(self, *, moving: bool, now_s: float) -> None:
        """Take a command on its way to the arm; `moving` unless it is zero."""
        self._command_s = now_s if moving else None
        self._foreign = self._stands

    def take_heartbeat(self, *, moving: bool, now_s: float) -> None:
        """Take a heartbeat of the policy node, and whether it says that the arm moves."""
        self._heard_s = now_s
        self._beats_s.append(now_s)
        self._beat_s = now_s if moving else None
        self._stands = not moving
        if moving:
            self._foreign = False
        elif self._foreign:
            self._command_s = None

    def odd_rate_hz(self) -> float | None:
        """The rate of the heartbeats where it is not the one that `limit_s` comes from.

        None where it is, or where too few came.
        """
        beats_s = list(self._beats_s)
        if len(beats_s) <= JUDGED_BEATS:
            return None
        between_s = median(later - sooner for sooner, later in pairwise(beats_s))
        low, high = ODD_PERIODS
        if between_s <= 0 or low <= between_s / self._period_s <= high:
            return None
        return 1.0 / between_s

    def deadline_s(self) -> float | None:
        """When the present silence becomes a trip; None while the arm stands."""
        known = [time_s for time_s in (self._command_s, self._beat_s) if time_s is not None]
        return min(known) + self.limit_s if known else None

    def check(self, now_s: float) -> Trip | None:
        """Trip if the silence is too long at `now_s`: the arm must be sent zero now.

        The first trip is kept in `first`, as is the last one; another needs a new motion.
        """
        deadline_s = self.deadline_s()
        if deadline_s is None or now_s < deadline_s:
            return None
        heard = now_s - self._heard_s < self._alive_s
        silence_s = now_s - (deadline_s - self.limit_s)
        trip = Trip(CEASED if heard else SILENT, silence_s, now_s)
        self._command_s = self._beat_s = None
        self.trips += 1
        self.first = self.first or trip
        self.last = trip
        return trip

    def reset(self) -> None:
        """Forget the first trip, once a person has seen to its cause."""
        self.first = None
