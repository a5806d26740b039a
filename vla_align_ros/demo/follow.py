"""Tells on the terminal what happens while a demonstration runs, from the operator's records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_align_ros.ros.recording import read_json_lines


class Progress:
    """Prints each new event of `out`/events.jsonl once."""

    def __init__(self, out: Path, episodes: int) -> None:
        self._path = out / "events.jsonl"
        self._episodes = episodes
        self._told = 0
        self._current = -1
        self._successes = 0

    def update(self) -> None:
        """Print what is new."""
        events = read_json_lines(self._path)
        for event in events[self._told :]:
            line = self._describe(event)
            if line is not None:
                print(line, flush=True)
        self._told = len(events)

    def _describe(self, event: dict[str, Any]) -> str | None:
        number = event["episode"] + 1
        if event["event"] == "ready":
            return f"graph ready after {event['waited_s']:.1f} s"
        if event["event"] == "instruction":
            said = event["instruction"]
            if event["episode"] == self._current:
                return f"         switched at {event['time_s']:.1f} s: {said}"
            self._current = event["episode"]
            judged = "" if event["judged"] == said else f"   (judged: {event['judged']})"
            return f"[{number:2d}/{self._episodes}]  {said}{judged}"
        if event["event"] == "episode":
            self._successes += event["success"]
            verdict = "success" if event["success"] else str(event["outcome"])
            return (
                f"         {verdict} at {event['time_s']:.1f} s"
                f"   so far {self._successes} of {number}"
            )
        return None
