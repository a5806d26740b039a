"""Endurance: the policy node at full rate, its memory and latency sampled from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_align_ros.bench.scene import PRIORITY, Scene, Setup
from vla_align_ros.errors import SimulationError

SAMPLE_S = 5.0
WARM_S = 60.0  # buffers of percentiles fill and the allocator settles within
GROWTH_MIB = 5.0
SLOWER = 1.25  # latency of the last third over that of the first
DIAGNOSTICS_S = 1.5
STOPS = "stops_"  # of /diagnostics, before a reason
PAGE_MIB = 4096 / 2**20
SETUP = Setup(
    width=640,
    height=480,
    count_frames=True,
    executable="policy_node",
    parameters={"thread_priority": PRIORITY},
)


def read_rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB, from /proc."""
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * PAGE_MIB


def soak(
    bundle: Path, out: Path, seconds: float, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run for `seconds`; {"ok", "samples", "rss_growth_mib", "latency_ratio", "reasons", counts}.

    640x480 at 30 Hz, planning on every picture; `parameters` of the result are what the node was
    given beside its files. `ok` if from a warm start memory grows by less
    than `GROWTH_MIB` (by a straight line through the samples), the latency of the last third is
    within `SLOWER` of the first third's (the medians of each sample's own mean), and nothing died
    or stopped the arm.
    """
    samples: list[dict[str, Any]] = []
    with Scene(bundle, out / "scene", SETUP) as scene:
        scene.stage.spin(DIAGNOSTICS_S)  # so that stops before this one are known
        start_s = time.monotonic()
        frames, before = scene.stage.frames_sent, _count_stops(scene)
        while (elapsed_s := time.monotonic() - start_s) < seconds:
            scene.stage.spin(min(SAMPLE_S, max(0.05, seconds - elapsed_s)))
            samples.append(_sample(scene, time.monotonic() - start_s))
            if len(samples) % 12 == 0:
                tell(str(samples[-1]))
        sent, after = scene.stage.frames_sent - frames, _count_stops(scene)
        for child in scene.children.values():
            if child.process.poll() is not None:
                raise child.blame("died", got="an end", expected="a process that goes on")
    reasons = {r: n - before.get(r, 0) for r, n in after.items() if n > before.get(r, 0)}
    judged = _judge(samples)
    judged["ok"] = judged["ok"] and not reasons
    counts = {"frames_sent": sent, "stops": sum(reasons.values()), "reasons": reasons}
    return {**judged, "parameters": dict(SETUP.parameters), **counts}


def _count_stops(scene: Scene) -> dict[str, int]:
    """Stops of the safety gate so far, by reason."""
    return {
        key.removeprefix(STOPS): int(value)
        for key, value in scene.stage.diagnostics.items()
        if key.startswith(STOPS)
    }


def _sample(scene: Scene, time_s: float) -> dict[str, Any]:
    figures = scene.stage.diagnostics
    return {
        "time_s": round(time_s, 1),
        "rss_mib": round(read_rss_mib(scene.children["policy"].process.pid), 2),
        "total_ms_sum": float(figures.get("total_latency_sum_ms", 0.0)),
        "plans": int(figures.get("total_latency_count", 0)),
        "commands_sent": int(figures.get("commands_sent", 0)),
        "frames_received": int(figures.get("frames_received", 0)),
    }


def _latencies_ms(samples: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Mean latency from stamp to command of the plans between each sample and the next.

    Not the node's own percentiles: their window holds minutes of plans and would hide a slowing.
    """
    sums = np.diff([float(sample["total_ms_sum"]) for sample in samples])
    counts = np.diff([int(sample["plans"]) for sample in samples])
    return np.asarray(sums[counts > 0] / counts[counts > 0], np.float64)


def _judge(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    warm_s = min(WARM_S, samples[-1]["time_s"] / 3.0) if samples else 0.0
    warm = [sample for sample in samples if sample["time_s"] >= warm_s]
    if len(warm) < 3:
        raise SimulationError(
            "The soak is too short",
            got=f"{len(warm)} samples",
            expected="at least 3 after the warm start",
            fix="run it for longer: --minutes",
        )
    times = np.array([sample["time_s"] for sample in warm])
    memory = np.array([sample["rss_mib"] for sample in warm])
    slope = float(np.polyfit(times, memory, 1)[0])
    growth = slope * float(times[-1] - times[0])
    latency = _latencies_ms(warm)
    third = max(1, len(latency) // 3)
    first, last = float(np.median(latency[:third])), float(np.median(latency[-third:]))
    ratio = last / first if first > 0 else float("inf")
    return {
        "ok": growth < GROWTH_MIB and ratio < SLOWER,
        "rss_growth_mib": round(growth, 3),
        "rss_slope_mib_per_hour": round(3600.0 * slope, 2),
        "latency_ratio": round(ratio, 3),
        "total_ms": [round(value, 2) for value in latency],
        "limits": {"rss_growth_mib": GROWTH_MIB, "latency_ratio": SLOWER},
        "samples": list(samples),
    }
