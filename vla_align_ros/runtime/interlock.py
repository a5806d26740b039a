"""What a person decides: armed, stopped, taken over, dead-man held. It outranks the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.stops import Hold, Reason


@dataclass(frozen=True, slots=True)
class InterlockConfig:
    """start_armed: whether the arm may move without being armed first.

    dead_man_s: how long a held dead-man switch is believed, in seconds; 0 asks for no switch.
    """

    start_armed: bool = False
    dead_man_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.dead_man_s) and self.dead_man_s >= 0):
            raise SafetyError(
                "the dead-man's time cannot be used",
                got=repr(self.dead_man_s),
                expected="a finite number of seconds, 0 for none",
                fix="correct dead_man_s",
            )


class Interlock:
    """Answers why a person does not let the arm move; None if nothing stands against it.

    A stop is latched: it stays, with its first cause, until `reset`, and leaves the arm disarmed.
    A stop and a takeover outlive whatever is loaded and started meanwhile: there is one interlock
    for as long as there is an arm to move. Times are seconds on a monotonic clock. Callers use one
    thread.
    """

    def __init__(self, config: InterlockConfig) -> None:
        self.config = config
        self._armed = config.start_armed
        self._stop: Hold | None = None
        self._takeover: str | None = None
        self._dead_man_s: float | None = None

    @property
    def armed(self) -> bool:
        """Whether the arm was armed and not stopped since."""
        return self._armed

    @property
    def stopped(self) -> Hold | None:
        """The latched stop; None without one."""
        return self._stop

    def arm(self) -> None:
        """Let the arm move; SafetyError while a stop is latched."""
        if self._stop is not None:
            raise SafetyError(
                "the arm cannot be armed",
                got=f"a latched stop: {self._stop}",
                expected="no stop",
                fix="see that the arm is safe, reset the stop, then arm",
            )
        self._armed = True

    def disarm(self) -> None:
        """Do not let the arm move until it is armed again."""
        self._armed = False

    def forget_arming(self) -> None:
        """Disarm, unless it starts armed: the next policy to be loaded may be another."""
        self._armed = self._armed and self.config.start_armed

    def stop(self, cause: Hold) -> bool:
        """Latch a stop and disarm; False if one was latched before, whose cause is kept."""
        self._armed = False
        if self._stop is not None:
            return False
        self._stop = cause
        return True

    def reset(self) -> bool:
        """Release the latched stop; the arm stays disarmed. False if there was none."""
        had, self._stop = self._stop is not None, None
        return had

    def take_over(self, who: str | None) -> bool:
        """Suspend the policy while a person drives (`who` names the device); None gives back.

        True if that is a change.
        """
        changed = (who is None) != (self._takeover is None)
        self._takeover = who
        return changed

    def press_dead_man(self, held: bool, now_s: float) -> bool:
        """Take one message of the dead-man switch; True if it was let go."""
        let_go = self._dead_man_s is not None and not held
        self._dead_man_s = now_s if held else None
        return let_go

    def check(self, now_s: float) -> Hold | None:
        """Why the arm must not move at `now_s`: the stop, not armed, taken over, switch let go."""
        if self._stop is not None:
            return self._stop
        if not self._armed:
            return Hold(Reason.DISARMED, "arm it first")
        if self._takeover is not None:
            return Hold(Reason.TAKEOVER, self._takeover)
        if self.config.dead_man_s > 0:
            return self._check_dead_man(now_s)
        return None

    def _check_dead_man(self, now_s: float) -> Hold | None:
        if self._dead_man_s is None:
            return Hold(Reason.DEAD_MAN, "the dead-man switch is not held")
        age_s = now_s - self._dead_man_s
        if not 0 <= age_s <= self.config.dead_man_s:
            return Hold(Reason.DEAD_MAN, f"the dead-man switch was last held {age_s:.2f} s ago")
        return None
