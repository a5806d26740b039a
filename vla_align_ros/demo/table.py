"""The figures of a report in words: the same rows for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

REAL_TIME = 0.95  # below this the arm moved slower than commanded, and the figures say little


def headline(report: Mapping[str, Any]) -> str:
    """The result in one line."""
    verdict = "passed" if report["passed"] else "missed"
    result = report["told"] if report["swap"] else report
    rate = describe_rate(result, report["episodes"])
    return f"{rate}; bar {describe_bar(report)}: {verdict}"


def describe_rate(result: Mapping[str, Any], episodes: int) -> str:
    """Successes of episodes, the rate and its 95 % Wilson interval."""
    low, high = result["success_interval"]
    return (
        f"{result['successes']} of {episodes} = {result['success_rate']:.0%} "
        f"(95 % interval {low:.0%} to {high:.0%})"
    )


def describe_bar(report: Mapping[str, Any]) -> str:
    """What had to be reached."""
    named = f">= {report['bar']['told']:.0%}"
    if report["swap"]:
        return f"{named} on the object named, < {report['bar']['not_named_below']:.0%} on the other"
    return named


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of every figure but the latencies."""
    frames, commands = report["frames"], report["commands"]
    name = "success on the object not named" if report["swap"] else "success"
    rows = [(name, describe_rate(report, report["episodes"]))]
    if report["told"] is not None:
        rows.append(
            ("success on the object named", describe_rate(report["told"], report["episodes"]))
        )
    for switched in report["switched"]:
        rows.append((f"switched in episode {switched['episode'] + 1}", describe_switch(switched)))
    policy = frames["policy"]
    jitter = report["command_jitter_p99_ms"]
    refused = ", ".join(f"{n} {reason}" for reason, n in commands["refused"].items()) or "none"
    rows += [
        (
            "camera frames",
            f"operator received {frames['received']} of {frames['sent']}"
            + (f", policy {policy['received']} of {policy['sent']}" if policy else ""),
        ),
        (
            "commands",
            f"{report['command_rate_hz']:.1f} Hz on arrival"
            + (f", jitter p99 {jitter:.1f} ms" if jitter is not None else "")
            + f"; {commands['accepted']} executed, refused: {refused}",
        ),
        ("stops", describe_stops(report["stops"])),
        ("simulator", describe_simulator(report)),
        ("policy", f"{report['bundle_id'][:12]} ({report['bundle']})"),
        ("ROS 2", f"{report['ros_distro']}, started by {report['started_by']}"),
        ("machine", f"{report['machine']['cpu']}, {report['machine']['cores']} cores"),
        ("time", f"{report['wall_s']:.0f} s for the graph"),
    ]
    return rows


def describe_switch(switched: Mapping[str, Any]) -> str:
    """What the instruction changed to, when, and whether the new task was done."""
    verdict = "success" if switched["success"] else "no success"
    return (
        f"{switched['from']} -> {switched['to']} at {switched['at_s']:.1f} s: "
        f"{verdict} after {switched['time_s']:.1f} s"
    )


def describe_stops(stops: Sequence[Mapping[str, Any]]) -> str:
    """How often the policy held the arm, by reason."""
    counts = Counter(stop["reason"] for stop in stops)
    return ", ".join(f"{reason} x{count}" for reason, count in counts.most_common()) or "none"


def describe_simulator(report: Mapping[str, Any]) -> str:
    """Whether the simulated robot kept up with real time."""
    if report["real_time_factor"] is None:
        return "no episode"
    text = (
        f"real-time factor {report['real_time_factor']:.3f} or better, "
        f"control loop late by {report['simulator_late_ms']:.0f} ms at most (p99)"
    )
    if report["real_time_factor"] < REAL_TIME:
        text += "; the machine was too busy for real time: run again with nothing else running"
    return text


def print_table(report: Mapping[str, Any]) -> None:
    """The report on the terminal."""
    rows = summary_rows(report)
    width = max(len(what) for what, _ in rows)
    print()
    for what, value in rows:
        print(f"  {what:<{width}}  {value}")
    if report["latency_ms"]:
        print(f"\n  {'latency (ms)':<{width}}  {'p50':>8} {'p99':>8}")
        for stage, quantiles in report["latency_ms"].items():
            print(f"  {stage:<{width}}  {quantiles['p50']:8.1f} {quantiles['p99']:8.1f}")
    print(f"\n  {headline(report)}")
