"""Runs policy_node as a process and drives it over its topics, as a robot would."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_policy
from geometry_msgs.msg import TwistStamped
from ros_graph import ACTIVATE, CONFIGURE, DEACTIVATE, WIDOWX, Probe, values_of
from tiny_policy import CARROT, PLATE, predict

Start = Callable[..., subprocess.Popen[str]]
StartPolicy = Callable[..., subprocess.Popen[str]]
MEAN = 128 / 255
PATIENT = ("-p", "image_timeout_s:=5.0", "-p", "state_timeout_s:=5.0")
PERIOD_S = 1 / tiny_policy.RATE_HZ


@pytest.fixture
def start_policy(start_node: Start, tiny_bundle: Path) -> StartPolicy:
    def start(
        *extra: str, bundle: Path = tiny_bundle, autostart: bool = True
    ) -> subprocess.Popen[str]:
        files = ["--params-file", str(WIDOWX), "-p", f"bundle:={bundle}"]
        flags = ["-p", "start_armed:=true", "-p", f"autostart:={'true' if autostart else 'false'}"]
        return start_node("policy_node", *files, *flags, *extra)

    return start


def twist_for(instruction: str, step: int = 0, mean: float = MEAN) -> np.ndarray:
    return predict(mean, instruction, step)[:6] / PERIOD_S


def is_for(
    message: TwistStamped,
    instruction: str,
    *,
    plus: tuple[float, ...] = (0.0,) * 6,
    axes: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
) -> bool:
    """Whether a twist is one of the policy's for the grey picture, these words and any step."""
    candidates = [twist_for(instruction, k) + plus for k in range(tiny_policy.HORIZON)]
    got = np.array(values_of(message))
    return any(np.allclose(got[list(axes)], c[list(axes)], atol=1e-3) for c in candidates)


def stamp_of(message: TwistStamped) -> float:
    return float(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)


def test_moves_by_picture_and_words_and_holds_when_either_ends(
    probe: Probe, start_policy: StartPolicy
) -> None:
    process = start_policy("-p", "image_timeout_s:=0.5", "-p", "replan_period_s:=0.0")
    probe.wait_for_state("active")
    probe.grey = 128
    probe.spin(0.3)
    assert not probe.twists, "moved without an instruction"
    probe.wait_for_hold("no_instruction")

    probe.say("  Take the CARROT. ")
    probe.wait_for_motion()
    probe.twists.clear()
    assert probe.wait_for(lambda: len(probe.moving()) >= 20)
    for message in probe.moving():
        assert message.header.frame_id == "base_link"
        assert is_for(message, CARROT)
    assert np.median([abs(s - stamp_of(m)) for s, m in probe.twists]) < 0.1, "stale stamps"
    np.testing.assert_allclose(probe.grippers[-1].data, [MEAN], atol=1e-6)
    chunk = probe.chunks[-1]
    assert [(dim.label, dim.size) for dim in chunk.layout.dim] == [("step", 4), ("dim", 7)]
    expected = np.stack([predict(MEAN, CARROT, k) for k in range(4)])
    np.testing.assert_allclose(np.reshape(chunk.data, (4, 7)), expected, atol=1e-6)

    probe.say(PLATE)
    assert probe.wait_for(lambda: probe.latest("instruction") == PLATE)
    probe.wait_for_motion()
    assert is_for(probe.moving()[-1], PLATE)

    probe.grey = None
    probe.wait_for_hold("stale_image")
    probe.twists.clear()
    probe.spin(0.5)
    assert len(probe.twists) <= 1, "a holding arm must be left in silence"
    assert not probe.moving()
    assert probe.latest("last_stop")["reason"] == "stale_image"

    probe.grey = 128
    probe.wait_for_motion()
    probe.say("")
    probe.wait_for_hold("no_instruction")

    probe.diagnostics.clear()
    assert probe.wait_for(lambda: len(probe.diagnostics) > 0)
    values = probe.diagnostics[-1]
    for stage in ("transport", "wait", "prepare", "infer", "decode", "total"):
        p50, p99 = (float(values[f"latency_{stage}_{p}_ms"]) for p in ("p50", "p99"))
        assert 0 <= p50 <= p99, stage
    assert 2 < float(values["command_rate_hz"]) < 25  # 20; less on a machine that is busy
    assert 0 < int(values["frames_received"]) <= probe.frames_sent
    assert int(values["inference_count"]) > 10
    assert values["state"] == "active"
    assert len(values["bundle_id"]) == 64
    reasons = [stop["reason"] for stop in json.loads(values["stops"])]
    assert reasons[-2:] == ["stale_image", "no_instruction"]
    assert process.poll() is None


def test_walks_through_a_chunk_and_not_past_its_end(
    probe: Probe, start_policy: StartPolicy
) -> None:
    start_policy(*PATIENT)
    probe.wait_for_state("active")
    probe.say(CARROT)
    assert probe.wait_for(lambda: probe.latest("instruction") == CARROT)
    length_s = tiny_policy.HORIZON * PERIOD_S
    probe.grey, stamp_s = 128, 0.0
    for _ in range(5):  # a best-effort picture may be lost
        stamp_s, probe.grey = probe.publish_frame(), None
        if probe.wait_for(lambda: bool(probe.twists), 2 * length_s):
            break
        probe.grey = 128
    probe.wait_for_hold("chunk_exhausted")
    probe.spin(0.2)
    *commands, last = (message for _, message in probe.twists)
    steps = []
    for message in commands:
        sent_s = stamp_of(message)
        assert sent_s < stamp_s + length_s
        steps.append(int((sent_s - stamp_s) / PERIOD_S))
        candidates = [twist_for(CARROT, k) for k in (steps[-1], steps[-1] + 1)]
        errors = [np.abs(candidate - values_of(message)).max() for candidate in candidates]
        assert min(errors) < 1e-6, f"not the action for {sent_s - stamp_s:.3f} s"
    assert steps == sorted(steps)
    assert not any(values_of(last)), "the chunk did not end with a zero"


def test_holds_on_an_output_it_must_not_execute_and_recovers(
    probe: Probe, start_policy: StartPolicy
) -> None:
    start_policy(*PATIENT)
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    for grey, reason in ((255, "non_finite"), (0, "out_of_limits")):
        probe.grey = grey
        probe.wait_for_hold(reason)
        probe.twists.clear()
        probe.spin(0.3)
        assert not probe.moving()
        assert probe.latest("last_stop")["reason"] == reason
        probe.grey = 128
        probe.wait_for_hold(None)


def test_a_policy_with_state_waits_for_every_part_of_it(
    probe: Probe, start_policy: StartPolicy, tiny_state_bundle: Path
) -> None:
    start_policy(bundle=tiny_state_bundle)
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_hold("stale_state")
    probe.finger_m = 0.022
    probe.wait_for_motion()
    state_sum = 0.3 + 0.0 + 0.2 + 0.5
    assert is_for(probe.moving()[-1], CARROT, plus=(0.01 * state_sum / PERIOD_S, 0, 0, 0, 0, 0))

    probe.pose_frame = "world"
    probe.wait_for_hold("stale_state")


def test_slides_along_the_workspace(probe: Probe, start_policy: StartPolicy) -> None:
    start_policy()
    probe.wait_for_state("active")
    probe.pose = (0.3, 0.0, 0.42)
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    assert is_for(probe.moving()[-1], CARROT, axes=(0, 1, 3, 4, 5))
    assert values_of(probe.moving()[-1])[2] == pytest.approx(0.0, abs=1e-6)


def test_a_bundle_tightens_the_robots_limits_and_cannot_loosen_them(
    probe: Probe, start_policy: StartPolicy, tmp_path: Path
) -> None:
    limits = {"max_linear_m_s": 0.06, "max_angular_rad_s": 50.0}
    start_policy(bundle=tiny_policy.write_tiny_bundle(tmp_path, limits=limits))
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    assert probe.wait_for(lambda: len(probe.moving()) >= 10)
    speeds = [np.linalg.norm(values_of(message)[:3]) for message in probe.moving()]
    assert np.linalg.norm(twist_for(CARROT)[:3]) > 0.06, "the policy itself is faster"
    np.testing.assert_allclose(speeds, 0.06, atol=1e-9)


def test_reads_compressed_images(probe: Probe, start_policy: StartPolicy) -> None:
    start_policy("-p", "image_transport:=compressed")
    probe.compressed = True
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    assert is_for(probe.moving()[-1], CARROT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_process_leaves_a_zero_behind(
    probe: Probe, start_policy: StartPolicy, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # tests may run under nohup
    process = start_policy()
    signal.signal(number, before)
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    process.send_signal(number)
    assert probe.wait_for(lambda: process.poll() is not None, 30.0)
    probe.spin(0.1)
    assert process.returncode == 0, process.communicate()[0]
    assert not any(values_of(probe.twists[-1][1]))
    assert probe.latest("state") == "finalized"


@pytest.mark.parametrize(
    ("settings", "least", "most"), [((), 5, 9), (("-p", "replan_period_s:=0.0"), 15, 80)]
)
def test_plans_every_two_actions_unless_told_otherwise(
    probe: Probe, start_policy: StartPolicy, settings: tuple[str, ...], least: int, most: int
) -> None:
    """Pictures come at 25 Hz, the policy's actions at 5 Hz."""
    start_policy(*settings)
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    probe.chunks.clear()
    probe.spin(3.0)
    assert least <= len(probe.chunks) <= most


@pytest.mark.parametrize(("strategy", "goes_on"), [("rtc", True), ("newest", False)])
def test_a_plan_goes_on_from_the_one_before_by_real_time_chunking(
    probe: Probe, start_policy: StartPolicy, tmp_path: Path, strategy: str, goes_on: bool
) -> None:
    """A plan rises by 0.01 m in its first action, then ever faster; told, it keeps its pace."""
    bundle = tiny_policy.write_tiny_bundle(tmp_path, committed=2)
    start_policy("-p", f"chunk_strategy:={strategy}", *PATIENT, bundle=bundle)
    probe.wait_for_state("active")
    probe.grey = 128
    probe.say(CARROT)
    assert probe.wait_for(lambda: len(probe.chunks) >= 2)
    probe.chunks.clear()
    assert probe.wait_for(lambda: len(probe.chunks) >= 4)
    first_rises_m = [chunk.data[2] for chunk in probe.chunks]
    if goes_on:
        assert min(first_rises_m) > 0.019, "what the plan before has for this time"
    else:
        np.testing.assert_allclose(first_rises_m, 0.01, atol=1e-6)


def test_answers_requests_and_survives_those_that_are_not_allowed(
    probe: Probe, start_policy: StartPolicy
) -> None:
    process = start_policy(autostart=False)
    probe.wait_for_services()
    assert not probe.request(ACTIVATE)
    assert probe.request(CONFIGURE)
    assert not probe.request(CONFIGURE)
    assert probe.request(ACTIVATE)
    probe.grey = 128
    probe.say(CARROT)
    probe.wait_for_motion()
    assert probe.request(DEACTIVATE)
    probe.wait_for_state("inactive")
    probe.spin(0.1)
    assert not any(values_of(probe.twists[-1][1]))
    assert process.poll() is None


def test_tells_why_it_does_not_start(
    probe: Probe, start_policy: StartPolicy, tmp_path: Path
) -> None:
    process = start_policy(bundle=tmp_path / "nowhere")
    assert probe.wait_for(lambda: bool(probe.latest("error")), 90.0), probe.status
    assert "configure failed: " in probe.latest("error")
    assert "nowhere" in probe.latest("error")
    assert process.poll() is None


@pytest.mark.parametrize("setting", ["image_timeout_s:=5", "command_rate_hz:=5000.0"])
def test_a_start_value_that_cannot_be_is_one_line_not_a_traceback(
    start_policy: StartPolicy, setting: str
) -> None:
    process = start_policy("-p", setting)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert output.startswith(f"node: parameter {setting.partition(':')[0]} cannot be used")
    assert "Traceback" not in output
