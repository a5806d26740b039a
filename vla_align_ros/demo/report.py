"""Turns what the operator recorded into report.json and the table that ends a demonstration."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vla_align_ros.machine import find_processor
from vla_align_ros.runtime.metrics import STAGES
from vla_align_ros.runtime.statistics import wilson_interval

SUCCESS_BAR = 0.8  # the shipped policy must reach this rate on fresh episodes
SWAP_BAR = 0.2  # told to fetch the other object, it must do the first one's task less often


@dataclass(frozen=True)
class RunFacts:
    """What is known about a run apart from the operator's records."""

    bundle_id: str
    bundle: str
    seed: int
    first_episode_seed: int
    shift: str
    swap: bool
    ros_distro: str
    started_by: str
    planned_episodes: int
    wall_s: float


def build_report(
    facts: RunFacts,
    episodes: Sequence[dict[str, Any]],
    diagnostics: Sequence[dict[str, Any]],
    ready_s: float,
) -> dict[str, Any]:
    """The content of report.json; `episodes` and `diagnostics` are the operator's JSON lines.

    `ready_s` is the ROS time at which the graph was ready; the stops count from it.

    Rates are in 0..1, latencies in ms, times in seconds. In swap mode `successes` counts the
    object that was *not* named, and `told` the one that was.
    """
    policy = [record for record in diagnostics if "bundle_id" in record["values"]]
    last = policy[-1]["values"] if policy else {}
    successes = sum(episode["success"] for episode in episodes)
    rate = successes / len(episodes) if episodes else 0.0
    complete = len(episodes) == facts.planned_episodes
    told = count_told(episodes)
    language_matters = not facts.swap or rate < SWAP_BAR
    passed = complete and language_matters and told["success_rate"] >= SUCCESS_BAR
    return {
        **asdict(facts),
        "episodes": len(episodes),
        "successes": successes,
        "success_rate": rate,
        "success_interval": list(wilson_interval(successes, len(episodes))),
        "bar": {"told": SUCCESS_BAR, "not_named_below": SWAP_BAR if facts.swap else None},
        "passed": passed,
        "told": told if facts.swap else None,
        "switched": [pick_switched(e) for e in episodes if e["switched_at_s"] is not None],
        "frames": count_frames(episodes, policy),
        "latency_ms": read_latencies(last),
        **summarise_commands(episodes),
        "real_time_factor": min((e["real_time_factor"] for e in episodes), default=None),
        "simulator_late_ms": max((e["tick_late_ms"].get("p99", 0) for e in episodes), default=None),
        "stops": find_stops(policy, ready_s),
        "machine": describe_machine(),
        "version": version("vla_align_ros"),
        "results": list(episodes),
    }


def count_told(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often the instruction that was given was carried out."""
    successes = sum(episode["told_success"] for episode in episodes)
    rate = successes / len(episodes) if episodes else 0.0
    interval = list(wilson_interval(successes, len(episodes)))
    return {"successes": successes, "success_rate": rate, "success_interval": interval}


def pick_switched(episode: Mapping[str, Any]) -> dict[str, Any]:
    """What became of an episode whose instruction changed in the middle."""
    return {
        "episode": episode["episode"],
        "from": episode["original_instruction"],
        "to": episode["judged_instruction"],
        "at_s": episode["switched_at_s"],
        "success": episode["success"],
        "time_s": episode["time_s"],
    }


def count_frames(
    episodes: Sequence[dict[str, Any]], policy: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Count the pictures that the camera sent and those that arrived.

    At the operator: during the episodes. At the policy: from its first to its last diagnostics,
    exact to the picture that was on its way then.
    """
    frames: dict[str, Any] = {
        "sent": sum(episode["frames_sent"] for episode in episodes),
        "received": sum(episode["frames_received"] for episode in episodes),
        "policy": None,
    }
    counted = [
        (record["frames_sent_total"], int(record["values"]["frames_received"]))
        for record in policy
        if record["frames_sent_total"] is not None and "frames_received" in record["values"]
    ]
    if len(counted) > 1:
        (sent_0, received_0), (sent_1, received_1) = counted[0], counted[-1]
        sent = sent_1 - sent_0
        frames["policy"] = {"sent": sent, "received": min(received_1 - received_0, sent)}
    return frames


def find_stops(policy: Sequence[dict[str, Any]], ready_s: float) -> list[dict[str, Any]]:
    """Every stop of a moving arm, once, in order; `time_s` counts from when the graph was ready.

    Each diagnostics message repeats the latest stops, so none is lost between two of them.
    """
    found: dict[tuple[float, str], dict[str, Any]] = {}
    for record in policy:
        for stop in json.loads(record["values"].get("stops", "[]")):
            found[stop["time_s"], stop["reason"]] = stop
    return [
        {**stop, "time_s": round(time_s - ready_s, 2)}
        for (time_s, _), stop in sorted(found.items())
    ]


def read_latencies(policy: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """{stage: {"p50", "p99"}} in ms of the stages that the policy node reports."""
    latencies = {}
    for stage in STAGES:
        p50, p99 = (policy.get(f"latency_{stage}_{quantile}_ms") for quantile in ("p50", "p99"))
        if p50 is not None and p99 is not None:
            latencies[stage] = {"p50": float(p50), "p99": float(p99)}
    return latencies


def summarise_commands(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Commands as the arm received them: rate over all episodes, the worst episode's jitter."""
    measured = [e["commands"] for e in episodes if "command_rate_hz" in e["commands"]]
    accepted = sum(e["commands"]["accepted"] for e in episodes)
    seconds = sum(c["accepted"] / c["command_rate_hz"] for c in measured)
    jitters = [c["command_jitter_p99_ms"] for c in measured]
    refused: dict[str, int] = {}
    for episode in episodes:
        for key, value in episode["commands"].items():
            if key.startswith("refused_"):
                refused[key[8:]] = refused.get(key[8:], 0) + value
    rate = sum(c["accepted"] for c in measured) / seconds if seconds else 0.0
    return {
        "command_rate_hz": round(rate, 2),
        "command_jitter_p99_ms": max(jitters, default=None),
        "commands": {
            "accepted": accepted,
            "expired": sum(e["commands"]["expired"] for e in episodes),
            "refused": refused,
        },
    }


def describe_machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "cpu": find_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Write the report so that a reader never sees half of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
