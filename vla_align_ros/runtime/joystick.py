"""What the buttons of a joystick mean: stop, dead-man, and that a lost joystick is a stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hand:
    """What follows: why to stop (None: no stop), and the dead-man's state (None: say nothing).

    `again`: the stop was told before, and its cause lasts.
    """

    stop: str | None = None
    dead_man: bool | None = None
    again: bool = False


class Joystick:
    """Buttons in, decisions out; times are monotonic seconds.

    A stop is told for as long as its button is pressed, so that none can arm a policy beneath a
    mushroom button that latches, and once for each loss. A button that the joystick does not have
    counts as pressed for the stop and as released for the dead-man: a wrong number must not leave
    an arm without its stop.
    """

    def __init__(
        self, stop_button: int, dead_man_button: int | None = None, loss_s: float = 0.5
    ) -> None:
        self._stop_button = stop_button
        self._dead_man_button = dead_man_button
        self._loss_s = loss_s
        self._pressed = False
        self._last_s: float | None = None

    def take(self, buttons: Sequence[int], now_s: float) -> Hand:
        """Take the state of all buttons."""
        self._last_s = now_s
        missing = self._stop_button >= len(buttons)
        pressed = missing or bool(buttons[self._stop_button])
        again, self._pressed = pressed and self._pressed, pressed
        stop = None
        if pressed:
            stop = f"button {self._stop_button}" + (" does not exist" if missing else "")
        dead_man = None
        if self._dead_man_button is not None:
            held = self._dead_man_button < len(buttons)
            dead_man = held and bool(buttons[self._dead_man_button])
        return Hand(stop, dead_man, again)

    def check(self, now_s: float) -> Hand:
        """Notice a joystick that was there and fell silent."""
        if self._loss_s <= 0 or self._last_s is None or now_s - self._last_s <= self._loss_s:
            return Hand()
        self._last_s = None
        dead_man = None if self._dead_man_button is None else False
        return Hand(f"the joystick is silent for more than {self._loss_s:g} s", dead_man)
