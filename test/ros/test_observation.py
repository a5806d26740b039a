"""What policy_node sees: several cameras of one instant, and cameras that do not get through."""

from __future__ import annotations

import array
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_policy
from camera_process import RATE_HZ
from ros_graph import BEST_EFFORT, ROOT, WIDOWX, Probe, values_of
from sensor_msgs.msg import Image
from tiny_policy import CARROT, predict

PROFILE = ROOT / "config" / "fastdds_shm.xml"
PERIOD_S = 1 / tiny_policy.RATE_HZ
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_policy(start_node: Start, tiny_bundle: Path) -> Start:
    def start(*extra: str, bundle: Path = tiny_bundle) -> subprocess.Popen[str]:
        words = ["--params-file", str(WIDOWX), "-p", f"bundle:={bundle}"]
        words += ["-p", "autostart:=true", "-p", "start_armed:=true"]
        return start_node("policy_node", *words, *extra)

    return start


@pytest.fixture
def start_camera() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def start(topic: str, seconds: float, profile: Path | None) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if "DEFAULT_PROFILES_FILE" not in k}
        if profile is not None:
            for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
                environment[name] = str(profile)
        command = [sys.executable, str(Path(__file__).with_name("camera_process.py"))]
        process = subprocess.Popen(
            [*command, topic, str(seconds)], stdout=subprocess.PIPE, text=True, env=environment
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "seen\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def sources_of(probe: Probe) -> dict[str, dict[str, float]]:
    return json.loads(probe.diagnostics[-1].get("sources", "{}")) if probe.diagnostics else {}


# -- several cameras ---------------------------------------------------------------------------
class Wrist:
    """A second camera, which sends with every picture of the probe's."""

    def __init__(self, probe: Probe, *, grey: int, late_s: float = 0.0) -> None:
        self.grey, self.late_s, self.on = grey, late_s, True
        self._probe = probe
        self._image = probe.node.create_publisher(Image, "/wrist/image", BEST_EFFORT)
        self._publish, probe.publish_frame = probe.publish_frame, self.publish_frame  # type: ignore[method-assign]

    def publish_frame(self) -> float:
        stamp_s = self._publish()
        if self.on:
            picture = np.full((16, 16, 3), self.grey, np.uint8)
            image = Image(height=16, width=16, encoding="rgb8", step=48)
            image.data = array.array("B", picture.tobytes())
            late_s = stamp_s - self.late_s
            image.header.stamp.sec = int(late_s)
            image.header.stamp.nanosec = int(1e9 * (late_s % 1.0))
            self._image.publish(image)
        return stamp_s


@pytest.fixture(scope="module")
def two_camera_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return tiny_policy.write_tiny_bundle(folder, cameras=("front", "wrist"))


REMAPS = ("-r", "~/front/image:=/policy_node/image", "-r", "~/wrist/image:=/wrist/image")


def test_two_cameras_are_seen_together_and_either_one_can_hold(
    probe: Probe, start_policy: Start, two_camera_bundle: Path
) -> None:
    start_policy(*REMAPS, bundle=two_camera_bundle)
    wrist = Wrist(probe, grey=64)
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    mean = (128 + 64) / 2 / 255
    expected = [predict(mean, CARROT, k)[:6] / PERIOD_S for k in range(tiny_policy.HORIZON)]
    got = values_of(probe.moving()[-1])
    assert any(np.allclose(got, twist, atol=1e-3) for twist in expected), "both are in the mean"

    wrist.on = False
    probe.wait_for_hold("stale_image")
    assert "wrist" in probe.latest("last_stop")["detail"]
    probe.twists.clear()
    probe.spin(0.3)
    assert not probe.twists
    wrist.on = True
    probe.wait_for_motion()

    probe.diagnostics.clear()
    assert probe.wait_for(lambda: set(sources_of(probe)) >= {"front", "wrist"})
    for name in ("front", "wrist"):
        source = sources_of(probe)[name]
        assert 0.0 <= source["age_ms"] < 500.0
        assert source["rate_hz"] > 5.0
        assert source["received"] > 5 and source["publishers"] == 1


def test_a_camera_is_told_apart_from_the_part_of_the_robot_whose_name_it_has(
    probe: Probe, start_policy: Start, tmp_path: Path
) -> None:
    bundle = tiny_policy.write_tiny_bundle(tmp_path, cameras=("gripper", "pose"))
    start_policy("-r", "~/pose/image:=/wrist/image", bundle=bundle)
    Wrist(probe, grey=64)
    probe.wait_for_state("active")
    probe.pose, probe.grey = None, 128
    assert probe.wait_for(lambda: bool(sources_of(probe).get("camera pose", {}).get("received")))
    sources = sources_of(probe)
    assert {name: source["topic"] for name, source in sources.items()} == {
        "camera gripper": "/policy_node/gripper/image",
        "camera pose": "/wrist/image",
        "pose": "/policy_node/ee_pose",
    }
    assert 0.0 <= sources["camera pose"]["age_ms"] < 500.0 and "age_ms" not in sources["pose"]


def test_pictures_of_two_instants_are_not_used_together(
    probe: Probe, start_policy: Start, two_camera_bundle: Path
) -> None:
    start_policy(
        *REMAPS, "-p", "sync_tolerance_s:=0.008", "-p", "image_timeout_s:=1.0",
        bundle=two_camera_bundle,
    )  # fmt: skip
    wrist = Wrist(probe, grey=64, late_s=0.02)  # half a period of the probe's cameras
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_hold("unsynchronised")
    assert not probe.moving()
    wrist.late_s = 0.0
    probe.wait_for_motion()


# -- cameras that do not get through -----------------------------------------------------------
def trouble_within(probe: Probe, start_s: float, seconds: float, source: str = "front") -> str:
    """The first text of `troubles` that diagnostics bring by then; empty if none does."""

    def text() -> str:
        troubles: dict[str, str] = {}
        for values in probe.diagnostics:
            troubles.update(json.loads(values.get("troubles", "{}")))
        return troubles.get(source, "")

    probe.wait_for(lambda: bool(text()), seconds - (time.monotonic() - start_s))
    return text()


def test_large_pictures_that_get_lost_are_noticed_within_two_seconds(
    probe: Probe, start_policy: Start, start_camera: Start
) -> None:
    process = start_policy("-r", "~/image:=/big/image")
    probe.wait_for_state("active")
    start_camera("/big/image", 4.0, None)
    text = trouble_within(probe, time.monotonic(), 2.0)
    assert "512 KiB" in text
    assert "900 KiB" in text or "(0 arrived" in text, "their size is known once one has come"
    assert f"FASTRTPS_DEFAULT_PROFILES_FILE={PROFILE}" in text
    assert probe.verdicts[-1][0] == 1 and str(PROFILE) in probe.verdicts[-1][1]
    process.send_signal(2)
    output = process.communicate(timeout=30)[0]
    assert output.count(str(PROFILE)) == 1, "said once in the log, not in a flood"


def test_the_shipped_profile_on_the_camera_brings_the_pictures_through(
    probe: Probe, start_policy: Start, start_camera: Start
) -> None:
    start_policy("-r", "~/image:=/big/image")
    probe.wait_for_state("active")
    seconds = 4.0
    start_camera("/big/image", seconds, PROFILE)
    probe.diagnostics.clear()
    probe.spin(seconds - 0.2)
    source = sources_of(probe)["front"]
    sent = source["received"] + source["lost"]
    assert sent >= 0.5 * RATE_HZ * (seconds - 1.5), source
    assert source["lost"] <= 0.05 * sent, source
    troubles = [json.loads(values["troubles"]) for values in probe.diagnostics]
    assert not any("front" in trouble for trouble in troubles), troubles


def test_pictures_of_the_wrong_type_are_named(probe: Probe, start_policy: Start) -> None:
    start_policy("-r", "~/image:=/policy_node/image/compressed")
    probe.compressed, probe.grey = True, 128
    probe.wait_for_state("active")
    text = trouble_within(probe, time.monotonic(), 3.0)
    assert "sensor_msgs/msg/CompressedImage" in text
    assert "expected sensor_msgs/msg/Image" in text
    probe.say(CARROT)
    probe.wait_for_hold("stale_image")


def test_joints_and_a_pose_that_tell_nothing_are_named_with_what_to_mend(
    probe: Probe, start_policy: Start, tiny_state_bundle: Path
) -> None:
    start_policy("-p", "arm.gripper.joint:=left_finger", bundle=tiny_state_bundle)
    probe.finger_m, probe.pose_frame = 0.02, "world"
    probe.wait_for_state("active")
    probe.grey = 128
    text = trouble_within(probe, time.monotonic(), 5.0, "joints")
    assert "joint_states names left_carriage_joint and not left_finger" in text
    text = trouble_within(probe, time.monotonic(), 2.0, "pose")
    assert "wrong frame" in text and "world" in text
    assert sources_of(probe)["joints"]["lost"] == 0


def test_a_camera_that_was_switched_off_is_no_trouble_but_a_hold(
    probe: Probe, start_policy: Start
) -> None:
    start_policy("-r", "~/image:=/nobody/image")
    probe.wait_for_state("active")
    probe.say(CARROT)
    probe.wait_for_hold("stale_image")
    assert not trouble_within(probe, time.monotonic(), 2.5)
    assert sources_of(probe)["front"]["publishers"] == 0
