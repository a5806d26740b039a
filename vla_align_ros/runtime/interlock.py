"""What outranks the policy: a person (armed, stopped, dead-man held), and that it is watched."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_align_ros.errors import SafetyError
from vla_align_ros.runtime.stops import Hold, Reason


@dataclass(frozen=True, slots=True)
class InterlockConfig:
    """start_armed: whether the arm may move without being armed first.

    dead_man_s: how long a held dead-man switch is believed, in seconds; 0 asks for no switch, and
    one that is there and says that it is let go still holds the arm.

    watchdog_timeout_s: how long a watchdog's word that it watches is believed; 0 asks for none.
    """

    start_armed: bool = False
    dead_man_s: float = 0.0
    watchdog_timeout_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dead_man_s", "watchdog_timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SafetyError(
                    f"the interlock's {name} cannot be used",
                    got=repr(value),
                    expected="a finite number of seconds, 0 for none",
                    fix=f"correct {name}",
                )


class Interlock:
    """Answers why the arm may not move, whatever the policy says; None if it may.

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
        self._let_go = False  # whether the switch last said that it is not held
        self._watched_s: float | None = None

    @property
    def armed(self) -> bool:
        """Whether the arm was armed and not stopped since."""
        return self._armed

    @property
    def stopped(self) -> Hold | None:
        """The latched stop; None without one."""
        return self._stop

    @property
    def taken_over(self) -> bool:
        """Whether a person drives by other means."""
        return self._takeover is not None

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
        changed = (who is not None) != self.taken_over
        self._takeover = who
        return changed

    def press_dead_man(self, held: bool, now_s: float) -> bool:
        """Take one message of the dead-man switch; True if it was let go."""
        let_go = self._dead_man_s is not None and not held
        self._dead_man_s = now_s if held else None
        self._let_go = not held
        return let_go

    def note_watched(self, now_s: float) -> None:
        """Take one message of the watchdog: it hears this policy."""
        self._watched_s = now_s

    def check(self, now_s: float, read_s: float | None = None) -> Hold | None:
        """Why the arm must not move at `now_s`; None if it may.

        Silence counts until `read_s`, where messages that came later may be unread.
        In order: the stop, not armed, taken over, dead-man switch let go, no watchdog.
        """
        if self._stop is not None:
            return self._stop
        if not self._armed:
            return Hold(Reason.DISARMED, "arm it first")
        if self._takeover is not None:
            return Hold(Reason.TAKEOVER, self._takeover)
        config = self.config
        if config.dead_man_s == 0 and self._let_go:
            return Hold(Reason.DEAD_MAN, "the dead-man switch says that it is let go")
        for reason, what, heard_s, believed_s in (
            (Reason.DEAD_MAN, "dead-man switch held", self._dead_man_s, config.dead_man_s),
            (Reason.UNWATCHED, "watchdog heard", self._watched_s, config.watchdog_timeout_s),
        ):
            age_s = math.inf if heard_s is None else now_s - heard_s
            unread_s = 0.0 if read_s is None else now_s - read_s
            if believed_s > 0 and not (age_s >= 0 and age_s - unread_s <= believed_s):
                since = "" if heard_s is None else f" for {age_s:.2f} s"
                return Hold(reason, f"no {what}{since}")
        return None
