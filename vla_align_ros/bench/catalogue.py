"""Every fault that is injected: what goes wrong, and when at the latest it can be known."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vla_align_ros.bench.scene import SERVO_TIMEOUT_S, Scene
from vla_align_ros.ros.bench.under_test import STARVED_S

COMMAND_RATE_HZ = 20.0
PERIOD_S = 1.0 / COMMAND_RATE_HZ
WATCHDOG_TOLERANCE_S = 0.02
WATCHDOG_TIMEOUT_S = 0.5
IMAGE_TIMEOUT_S = 0.3
STATE_TIMEOUT_S = 0.3
ACTION_TIMEOUT_S = 0.8
PARAMETERS: Mapping[str, float] = {
    "command_rate_hz": COMMAND_RATE_HZ,
    "image_timeout_s": IMAGE_TIMEOUT_S,
    "state_timeout_s": STATE_TIMEOUT_S,
    "action_timeout_s": ACTION_TIMEOUT_S,
    "watchdog_timeout_s": WATCHDOG_TIMEOUT_S,
}
JUMP_S = 5.0
FLOOD_S, FLOOD_HZ = 2.0, 1000.0
LONG_TEXT_BYTES = 1_000_000
TRANSPORT_S = 0.02  # a message to another process, on a machine that is busy
NO_TEXT = b"put the \xff\xfe\xc3\x28 on the plate"
BAD_VALUES = (
    ("command_rate_hz", 1e6),
    ("image_timeout_s", -1.0),
    ("arm.max_linear_m_s", 99.0),
    ("image_timeout_s", 10.0),
    ("threads", 0),
)

Act = Callable[[Scene], object]
QUIET = ("policy_silent", "controller_timeout")


@dataclass(frozen=True)
class Fault:
    """One fault. `inject` returns what else went wrong; without `lift` the processes are spent.

    `stops` is False where motion must go on; `may_resume` where it may come back by itself, as
    then it is the first stop that counts.
    """

    name: str
    what: str
    act: Act
    detection: float | Callable[[Scene], float] = 0.0
    reasons: tuple[str, ...] = ()
    lift: Act | None = None
    stops: bool = True
    may_resume: bool = False
    sim_time: bool = False
    compressed: bool = False

    def inject(self, scene: Scene) -> list[str]:
        """Do it; returns problems that were seen meanwhile."""
        problems = self.act(scene)
        return list(problems) if isinstance(problems, list) else []

    def detection_s(self, scene: Scene) -> float:
        """When the fault can be known at the latest, in seconds from its injection."""
        return self.detection(scene) if callable(self.detection) else self.detection


def next_plan_s(scene: Scene) -> float:
    """Until an inference that starts after now has ended: two of them, with their pictures.

    From the node's own figures: p99 of the wait for inference, of the inference itself, and of the
    transport of a picture.
    """
    figures = scene.stage.diagnostics
    stages = ("transport", "wait", "prepare", "infer", "decode")
    one_ms = sum(float(figures.get(f"latency_{stage}_p99_ms", 50.0)) for stage in stages)
    return 1.0 / scene.setup.camera_rate_hz + 2e-3 * one_ms


def last_picture_s(scene: Scene) -> float:
    """Until the picture is stale in whose sending the camera dies: the next one, or that after."""
    return 2.0 / scene.setup.camera_rate_hz + IMAGE_TIMEOUT_S


def camera(word: str) -> Act:
    """Tell the camera to do something wrong."""
    return lambda scene: scene.camera.set(word)


def engine(word: str) -> Act:
    """Tell the engine to do something wrong."""
    return lambda scene: scene.engine.set(word)


def state(word: str) -> Act:
    """Publish the robot's state wrongly."""
    return lambda scene: setattr(scene.stage, "state", word)


def kill(*names: str) -> Act:
    """Kill processes at once."""
    return lambda scene: scene.send(signal.SIGKILL, *names)


def pause(*names: str) -> Act:
    """Stop processes, as a debugger or a frozen machine does."""
    return lambda scene: scene.send(signal.SIGSTOP, *names)


def pause_at_command(scene: Scene) -> list[str]:
    """Stop the policy as its next command comes: it may hold locks of the middleware then."""
    seen = len(scene.stage.commands)
    came = scene.stage.wait_for(lambda: len(scene.stage.commands) > seen, 2 * PERIOD_S)
    scene.send(signal.SIGSTOP, "policy")
    moving = came and scene.stage.commands[seen].moving
    return [] if moving else ["no motion was commanded in the moment of the fault"]


def resume(*names: str) -> Act:
    """Let them go on."""
    return lambda scene: scene.send(signal.SIGCONT, *names)


def restart_camera(scene: Scene) -> None:
    """Start a camera in the place of the one that died."""
    scene.camera.set("ok")
    scene.start("camera")


def restart_watchdog(scene: Scene) -> None:
    """Start a watchdog in the place of the one that died."""
    scene.start("watchdog")


def jump(seconds: float) -> Act:
    """Set the simulated clock."""
    return lambda scene: scene.stage.jump(seconds)


def say_again(scene: Scene) -> None:
    """The right words are given again by whoever waits for motion."""


def restart_life(scene: Scene) -> None:
    """Bring an inactive node back."""
    scene.stage.request("activate")


def flood(scene: Scene) -> list[str]:
    """A thousand different instructions a second; then the node must still answer."""
    sent = scene.stage.flood(FLOOD_S, FLOOD_HZ)
    problems = [] if sent > 0.5 * FLOOD_S * FLOOD_HZ else [f"only {sent} instructions were sent"]
    scene.stage.say("")
    scene.stage.wait_for(lambda: scene.stage.status["instruction"] is None, 1.0)
    if scene.stage.status["instruction"] is not None:
        problems.append("the node does not follow the last instruction within a second")
    return problems


def flood_same(scene: Scene) -> list[str]:
    """The same instruction a thousand times a second changes nothing."""
    end_s = time.monotonic() + FLOOD_S
    while time.monotonic() < end_s:
        scene.stage.say(scene.stage.surroundings.instruction)
        scene.stage.spin(1.0 / FLOOD_HZ)
    return []


def set_bad_values(scene: Scene) -> list[str]:
    """Every value out of its range, and every one that is fixed by now, must be refused."""
    taken = [name for name, value in BAD_VALUES if scene.stage.set_parameter(name, value)]
    return [f"took another {name}" for name in taken]


def replace_bundle(scene: Scene) -> list[str]:
    """Other weights under the feet of the node: what was proven goes on."""
    graph = next((scene.bundle / "model").glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[::-1])
    return []


def delete_bundle(scene: Scene) -> list[str]:
    """No bundle any more."""
    shutil.rmtree(scene.bundle)
    return []


def refuse_then_restore(scene: Scene) -> None:
    """The broken bundle must be refused at the next configuration, the whole one taken."""
    for step in ("deactivate", "cleanup"):
        assert scene.stage.request(step), step
    assert not scene.stage.request("configure"), "configured with a broken bundle"
    error = scene.stage.status["error"] or ""
    assert error.startswith("configure failed"), error
    shutil.rmtree(scene.bundle, ignore_errors=True)
    shutil.copytree(scene.original, scene.bundle)
    for step in ("configure", "activate"):
        assert scene.stage.request(step), step


def deactivate(scene: Scene) -> list[str]:
    """A lifecycle manager takes the node down while it moves."""
    return [] if scene.stage.request("deactivate") else ["deactivate was refused"]


IMAGE = ("stale_image",)
STATE = ("stale_state",)
FAULTS = (
    Fault("camera_silent", "camera stops sending", camera("silent"), IMAGE_TIMEOUT_S, IMAGE,
          camera("ok")),
    Fault("camera_killed", "camera process killed", kill("camera"), IMAGE_TIMEOUT_S, IMAGE,
          restart_camera),
    Fault("camera_killed_sending", "camera killed while it sends, to the arm's controller too",
          camera("die"), last_picture_s, (*IMAGE, *QUIET), restart_camera),
    Fault("camera_frozen", "camera repeats one stamp", camera("frozen"), IMAGE_TIMEOUT_S, IMAGE,
          camera("ok")),
    Fault("camera_slow", "camera at one picture a second", camera("slow"), IMAGE_TIMEOUT_S, IMAGE,
          camera("ok"), may_resume=True),
    Fault("image_truncated", "pictures with half of their bytes", camera("truncated"),
          IMAGE_TIMEOUT_S, IMAGE, camera("ok")),
    Fault("image_encoding", "encoding changes to mono16", camera("mono16"), IMAGE_TIMEOUT_S, IMAGE,
          camera("ok")),
    Fault("image_zero_size", "pictures of no size", camera("zero_size"), IMAGE_TIMEOUT_S, IMAGE,
          camera("ok")),
    Fault("image_bgr8", "encoding changes to bgr8: converted", camera("bgr8"), lift=camera("ok"),
          stops=False),
    Fault("image_half_size", "resolution halves: resized as the policy was trained",
          camera("half"), lift=camera("ok"), stops=False),
    Fault("jpeg_garbled", "compressed pictures of random bytes", camera("noise"), next_plan_s,
          ("inference_error",), camera("ok"), compressed=True),
    Fault("state_silent", "robot state stops", state("silent"), STATE_TIMEOUT_S, STATE,
          state("ok")),
    Fault("state_nan", "robot state is NaN", state("nan"), STATE_TIMEOUT_S, STATE, state("ok")),
    Fault("state_wrong_frame", "robot state in another frame", state("wrong_frame"),
          STATE_TIMEOUT_S, STATE, state("ok")),
    Fault("inference_hangs", "inference does not return", engine("hang"), ACTION_TIMEOUT_S,
          ("stale_action", "chunk_exhausted"), engine("ok")),
    Fault("inference_raises", "inference raises", engine("raise"), next_plan_s,
          ("inference_error",), engine("ok")),
    Fault("inference_nan", "inference answers NaN", engine("nan"), next_plan_s, ("non_finite",),
          engine("ok")),
    Fault("inference_absurd", "inference answers a million times too much", engine("absurd"),
          next_plan_s, ("out_of_limits",), engine("ok")),
    Fault("bundle_replaced", "bundle's weights replaced underneath: the proven ones go on, the "
          "next configure refuses", replace_bundle, lift=refuse_then_restore, stops=False),
    Fault("bundle_deleted", "bundle deleted underneath: likewise", delete_bundle,
          lift=refuse_then_restore, stops=False),
    Fault("instruction_flood", "two instructions in turn at 1 kHz for 2 s, then none", flood,
          PERIOD_S + FLOOD_S + TRANSPORT_S, ("planning", "no_instruction"), say_again),
    Fault("instruction_repeated", "the same instruction at 1 kHz: nothing changes", flood_same,
          lift=say_again, stops=False),
    Fault("instruction_long", "an instruction of 1 MB",
          lambda scene: scene.stage.say("a" * LONG_TEXT_BYTES), TRANSPORT_S, ("no_instruction",),
          say_again),
    Fault("instruction_no_text", "an instruction that is not UTF-8",
          lambda scene: scene.stage.say_bytes(NO_TEXT), TRANSPORT_S, ("no_instruction",),
          say_again),
    Fault("parameters", "parameters out of range: refused", set_bad_values, lift=say_again,
          stops=False),
    Fault("emergency_stop", "emergency stop by topic", lambda scene: scene.stage.stop(),
          TRANSPORT_S, ("stopped",), lambda scene: scene.stage.arm()),
    Fault("deactivated", "lifecycle deactivate while moving", deactivate, TRANSPORT_S,
          ("inactive",), restart_life),
    Fault("executor_starved", f"executor blocked for {STARVED_S:g} s", engine("starve"),
          TRANSPORT_S, QUIET, engine("ok"), may_resume=True),
    Fault("clock_back", f"clock jumps {JUMP_S:g} s back", jump(-JUMP_S), TRANSPORT_S,
          ("planning", "stale_image", "stale_state", "chunk_exhausted"), say_again,
          may_resume=True, sim_time=True),
    Fault("clock_forth", f"clock jumps {JUMP_S:g} s forth", jump(JUMP_S), TRANSPORT_S,
          ("planning", "stale_image", "stale_state", "stale_action", "chunk_exhausted"),
          say_again, may_resume=True, sim_time=True),
    Fault("clock_stands", "clock stands still, while everything goes on under its stamp",
          lambda scene: scene.stage.hold_clock(), IMAGE_TIMEOUT_S, IMAGE,
          lambda scene: scene.stage.release_clock(), sim_time=True),
    Fault("node_stopped", "node SIGSTOPped", pause("policy"), TRANSPORT_S, QUIET, resume("policy")),
    Fault("node_stopped_sending", "node SIGSTOPped in the moment of a command", pause_at_command,
          PERIOD_S + TRANSPORT_S, QUIET, resume("policy")),
    Fault("node_killed", "node SIGKILLed", kill("policy"), TRANSPORT_S, QUIET),
    Fault("engine_crashes", "native code of the engine aborts the process", engine("crash"),
          next_plan_s, QUIET),
    Fault("watchdog_stopped", "watchdog SIGSTOPped: the policy does not go on without",
          pause("watchdog"), WATCHDOG_TIMEOUT_S, ("unwatched",), resume("watchdog")),
    Fault("watchdog_killed", "watchdog SIGKILLed: likewise", kill("watchdog"), WATCHDOG_TIMEOUT_S,
          ("unwatched",), restart_watchdog),
    Fault("node_and_watchdog_stopped", "node and watchdog SIGSTOPped: the controller's timeout",
          pause("policy", "watchdog"), SERVO_TIMEOUT_S, ("controller_timeout",),
          resume("policy", "watchdog")),
    Fault("node_and_watchdog_killed", "node and watchdog SIGKILLed: the controller's timeout",
          kill("watchdog", "policy"), SERVO_TIMEOUT_S, ("controller_timeout",)),
)  # fmt: skip
