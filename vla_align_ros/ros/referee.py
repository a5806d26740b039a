"""The operator's rules, without ROS: what to say when, and when an episode is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vla_align_ros.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Plan:
    """Which episodes to run and how to judge them; times in the simulator's seconds.

    Episode `index` uses seed `first_seed + index`. The instruction is switched once, after
    `switch_after_s`, in episode `switch_episode` (the last one if there are fewer; -1 for never)
    and in every `switch_every`-th one (0 for none). With `swap` the policy is told the other
    object from the start while success is judged on the first, and nothing is switched.
    """

    episodes: int
    first_seed: int
    shift: str = "none"
    swap: bool = False
    episode_timeout_s: float = 16.0
    switch_episode: int = 1
    switch_every: int = 0
    switch_after_s: float = 2.0

    def switches(self, index: int) -> bool:
        """Whether the instruction changes in the middle of episode `index` (counted from 0)."""
        if self.swap:
            return False
        designated = min(self.switch_episode, self.episodes - 1)
        periodic = self.switch_every > 0 and (index + 1) % self.switch_every == 0
        return index == designated or periodic


def other_task(score: dict[str, Any]) -> dict[str, Any]:
    """The task of the same scene that names another object and, where possible, the same vessel."""
    original = next(task for task in score["tasks"] if task["instruction"] == score["instruction"])
    others = [task for task in score["tasks"] if task["object"] != original["object"]]
    if not others:
        raise ConfigurationError(
            "The scene has no second object to name",
            got=f"tasks {[task['instruction'] for task in score['tasks']]}",
            expected="tasks for two objects or more",
            fix="choose another shift, or switch_episode -1 without --swap",
        )
    same_vessel = [task for task in others if task["receptacle"] == original["receptacle"]]
    chosen: dict[str, Any] = (same_vessel or others)[0]
    return chosen


@dataclass(slots=True)
class EpisodeReferee:
    """Follows one episode by the simulator's scores.

    `told` is the instruction the policy has now; `judged` the one whose success counts. The two
    differ only in swap mode. Call `begin` with the acknowledged score, then `update` with each.
    """

    plan: Plan
    index: int
    told: str = ""
    judged: str = ""
    switched_at_s: float | None = None
    time_limit_s: float = 0.0
    outcome: str | None = None
    score: dict[str, Any] = field(default_factory=dict)

    def begin(self, score: dict[str, Any]) -> str:
        """The instruction to publish first."""
        self.score = score
        self.judged = str(score["instruction"])
        self.told = str(other_task(score)["instruction"]) if self.plan.swap else self.judged
        self.time_limit_s = float(score["time_s"]) + self.plan.episode_timeout_s
        return self.told

    def update(self, score: dict[str, Any]) -> str | None:
        """Take a score; returns an instruction to publish now, or None. May set `outcome`."""
        self.score = score
        time_s = float(score["time_s"])
        if self._switch_is_due(time_s):
            self.told = self.judged = str(other_task(score)["instruction"])
            self.switched_at_s = time_s
            self.time_limit_s = time_s + self.plan.episode_timeout_s
            return self.told
        if not self._switch_is_pending():
            if self.succeeded(self.judged):
                self.outcome = "success"
            elif self.succeeded(self.told):
                self.outcome = "other_task_done"
        if self.outcome is None and time_s >= self.time_limit_s:
            self.outcome = "timeout"
        return None

    def succeeded(self, instruction: str) -> bool:
        """Whether the latest score shows the task of `instruction` done."""
        return any(
            task["succeeded"] for task in self.score["tasks"] if task["instruction"] == instruction
        )

    def result(self) -> dict[str, Any]:
        """The episode as a record for episodes.jsonl."""
        original = str(self.score["instruction"])
        return {
            "episode": self.index,
            "seed": self.score["seed"],
            "shift": self.score["shift"],
            "original_instruction": original,
            "told_instruction": self.told,
            "judged_instruction": self.judged,
            "swapped": self.plan.swap,
            "switched_at_s": self.switched_at_s,
            "outcome": self.outcome,
            "success": self.succeeded(self.judged),
            "told_success": self.succeeded(self.told),
            "original_success": self.succeeded(original),
            "time_s": self.score["time_s"],
            "frames_sent": self.score["frames_sent"],
            "real_time_factor": self.score["real_time_factor"],
            "skipped_ticks": self.score["skipped_ticks"],
            "commands": self.score["commands"],
            "tick_late_ms": self.score["tick_late_ms"],
            "render_ms": self.score["render_ms"],
        }

    def _switch_is_pending(self) -> bool:
        return self.plan.switches(self.index) and self.switched_at_s is None

    def _switch_is_due(self, time_s: float) -> bool:
        return self._switch_is_pending() and time_s >= self.plan.switch_after_s
