"""Sight on a running policy_node: shown to who subscribes, warned of, and a hold where asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy
from diagnostic_msgs.msg import DiagnosticStatus
from ros_graph import BEST_EFFORT, RELIABLE, WIDOWX, Probe
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray
from tiny_policy import CARROT

from vla_align_ros.ros.messages import image_to_rgb

Start = Callable[..., subprocess.Popen[str]]
FAMILIAR, STRANGE = 128, 200


@pytest.fixture(scope="module")
def sight_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy.write_tiny_bundle(tmp_path_factory.mktemp("sight"), sight=True)


@pytest.fixture
def start(start_node: Start) -> Start:
    def start(bundle: Path, *words: str) -> subprocess.Popen[str]:
        return start_node(
            *("policy_node", "--params-file", str(WIDOWX), "-p", f"bundle:={bundle}"),
            *("-p", "start_armed:=true", "-p", "autostart:=true", "-p", "sight_rate_hz:=5.0"),
            *("-p", "image_timeout_s:=5.0", "-p", "state_timeout_s:=5.0", *words),
        )

    return start


def latest(probe: Probe, key: str) -> str | None:
    return probe.diagnostics[-1].get(key) if probe.diagnostics else None


def test_sight_is_silent_until_somebody_looks_and_then_shows_map_and_distance(
    probe: Probe, start: Start, sight_bundle: Path
) -> None:
    start(sight_bundle)
    probe.wait_for_state("active")
    probe.grey = FAMILIAR
    probe.say(CARROT)
    probe.wait_for_motion()
    assert probe.wait_for(lambda: latest(probe, "sight") == "idle: nobody subscribes")
    assert latest(probe, "sight_readings") == "0"

    seen: list[Any] = []
    distances: list[Any] = []
    name = "/policy_node/sight"
    probe.node.create_subscription(Image, f"{name}/attention", seen.append, BEST_EFFORT)
    subscription = probe.node.create_subscription(
        Float64MultiArray, f"{name}/familiarity", distances.append, RELIABLE
    )
    assert probe.wait_for(lambda: len(seen) >= 3 and len(distances) >= 3)
    assert distances[-1].data[0] == pytest.approx(0.0, abs=1e-3)
    assert distances[-1].data[1] == 3.0
    pixels = image_to_rgb(seen[-1])
    assert pixels.shape == (240, 320, 3), "the camera's 48 x 64, enlarged"
    assert np.ptp(pixels) > 0

    probe.grey = STRANGE
    assert probe.wait_for(lambda: latest(probe, "unfamiliar") == "true")
    level, text = probe.verdicts[-1]
    assert level == int.from_bytes(DiagnosticStatus.WARN, "little")
    assert "unlike those of the training" in text
    assert probe.latest("moving") is True, "reported, and no more"

    probe.node.destroy_subscription(subscription)
    assert probe.wait_for(lambda: latest(probe, "sight") == "watching")


def test_an_unfamiliar_scene_holds_where_that_is_asked_for(
    probe: Probe, start: Start, sight_bundle: Path
) -> None:
    start(sight_bundle, "-p", "unfamiliar_scene:=hold")
    probe.wait_for_state("active")
    probe.grey = FAMILIAR
    probe.say(CARROT)
    probe.wait_for_motion()
    probe.grey = STRANGE
    probe.wait_for_hold("unfamiliar_scene", 5.0)
    assert probe.latest("last_stop")["reason"] == "unfamiliar_scene"
    probe.grey = FAMILIAR
    probe.wait_for_motion()


@pytest.mark.parametrize("asked", ["warn", "hold"])
def test_a_bundle_without_sight_cannot_be_asked_for_it(
    probe: Probe, start: Start, tiny_bundle: Path, asked: str
) -> None:
    start(tiny_bundle, "-p", f"unfamiliar_scene:={asked}")
    assert probe.wait_for(lambda: probe.latest("error") is not None, 60.0)
    assert probe.latest("state") == "unconfigured"
    assert "vla-align sight fit" in probe.latest("error")


def test_a_bundle_without_sight_says_so_and_works(
    probe: Probe, start: Start, tiny_bundle: Path
) -> None:
    start(tiny_bundle)
    probe.wait_for_state("active")
    probe.grey = STRANGE
    probe.node.create_subscription(
        Image, "/policy_node/sight/attention", lambda message: None, BEST_EFFORT
    )
    probe.say(CARROT)
    probe.wait_for_motion()
    assert probe.wait_for(lambda: latest(probe, "sight") is not None)
    assert str(latest(probe, "sight")).startswith("none: the bundle has no sight graph")
    assert "unfamiliar" not in json.dumps(probe.diagnostics[-1])
