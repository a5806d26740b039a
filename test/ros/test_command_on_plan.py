"""The first command of a new plan need not wait for the command timer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ros_graph import WIDOWX, Probe
from tiny_policy import CARROT

SLOW_HZ = 5.0
SECONDS = 2.0


@pytest.mark.parametrize(("on_plan", "least", "most"), [("false", 0.5, 1.2), ("true", 1.6, 10.0)])
def test_a_slow_timer_does_not_delay_a_new_plan(
    probe: Probe,
    start_node: Callable[..., subprocess.Popen[str]],
    tiny_bundle: Path,
    on_plan: str,
    least: float,
    most: float,
) -> None:
    """With a plan for every picture (25 Hz) and a 5 Hz timer, the rate tells who sends."""
    start_node(
        "policy_node",
        *("--params-file", str(WIDOWX), "-p", f"bundle:={tiny_bundle}"),
        *("-p", "start_armed:=true", "-p", "autostart:=true", "-p", "replan_period_s:=0.0"),
        *("-p", f"command_rate_hz:={SLOW_HZ}", "-p", f"command_on_plan:={on_plan}"),
    )
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    probe.twists.clear()
    probe.spin(SECONDS)
    assert least <= len(probe.moving()) / (SLOW_HZ * SECONDS) <= most
