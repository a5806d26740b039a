"""The person in front of the robot, as a node: says what to do, watches, and writes it all down."""

from __future__ import annotations

import json
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_align_ros.errors import ConfigurationError, SimulationError
from vla_align_ros.ros.messages import image_to_rgb, stamp_to_s
from vla_align_ros.ros.recording import EpisodeRecord, JsonLines
from vla_align_ros.ros.referee import EpisodeReferee
from vla_align_ros.ros.running import run_node
from vla_align_ros.ros.sim_params import read_operator_parameters

LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
HISTORY = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
STILL_S = 0.6  # from "no instruction" to the reset: the policy sends its zero and falls silent
RESEND_RESET_S = 1.0
ARM_AGAIN_S = 2.0  # a server is seen before its answers find the way
LAST_DIAGNOSTICS_S = 1.5  # the policy's last stop is in the diagnostics of the next second
NO_INSTRUCTION = ""


class OperatorNode(Node):
    """Runs the episodes of a `Plan` over topics alone and records them in `out_dir`.

    Arms the policy once, by the service ~/arm (SetBool). Publishes ~/instruction (String; empty
    means: hold still) and ~/reset_episode (String, JSON);
    subscribes to ~/score (String, JSON), ~/image and /diagnostics. It never publishes a motion.
    Writes events.jsonl and diagnostics.jsonl as things happen, episodes.jsonl and
    episodes/NNN.mp4 after each episode. `finished` is True once all is recorded.
    """

    def __init__(self) -> None:
        super().__init__("operator_node")
        self._settings = read_operator_parameters(self)
        self._plan, self._out = self._settings.plan, self._settings.out
        self.finished = False
        self._events = JsonLines(self._out / "events.jsonl")
        self._episodes = JsonLines(self._out / "episodes.jsonl")
        self._diagnostics = JsonLines(self._out / "diagnostics.jsonl")
        self._index = 0
        self._phase = "waiting"
        self._phase_since_s = self._started_s = time.monotonic()
        self._referee: EpisodeReferee | None = None
        self._record: EpisodeRecord | None = None
        self._policy_state = "silent"
        self._policy_error: str | None = None
        self._frames_sent_total: int | None = None
        self._last_score_s = self._started_s
        self._instruction = self.create_publisher(String, "~/instruction", RELIABLE)
        self._arm = self.create_client(SetBool, "~/arm")
        self._arming: Any = None
        self._arming_s = float("-inf")
        self._reset = self.create_publisher(String, "~/reset_episode", RELIABLE)
        self.create_subscription(String, "~/score", self._on_score, HISTORY)
        self.create_subscription(Image, "~/image", self._on_image, LATEST)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, HISTORY)
        self.create_timer(0.05, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # -- what arrives -----------------------------------------------------------------------------

    def _on_score(self, message: String) -> None:
        self._last_score_s = time.monotonic()
        score = json.loads(message.data)
        self._frames_sent_total = score.get("frames_sent_total", self._frames_sent_total)
        if score["id"] != self._identity():
            return
        if score["error"] is not None:
            raise SimulationError(
                f"The simulator refused episode {self._index}",
                got=score["error"],
                expected="an acknowledged reset",
                fix="see the simulator's message",
            )
        if self._phase == "resetting":
            self._begin(score)
        else:
            self._follow(score)

    def _on_image(self, message: Image) -> None:
        record = self._record
        stamp_s = stamp_to_s(message.header.stamp)
        if record is None or not record.wants(stamp_s):
            return
        record.add(image_to_rgb(message), stamp_s)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if "bundle_id" in values:
                self._policy_state = values["state"]
                self._policy_error = values["error"] if values["error"] != "null" else None
            self._diagnostics.append(
                {
                    "wall_s": self._wall_s(),
                    "stamp_s": stamp_to_s(message.header.stamp),
                    "episode": self._index if self._phase == "running" else None,
                    "frames_sent_total": self._frames_sent_total,
                    "level": int.from_bytes(status.level, "little"),
                    "name": status.name,
                    "message": status.message,
                    "values": values,
                }
            )

    # -- the course of an episode -----------------------------------------------------------------

    def _on_timer(self) -> None:
        now_s = time.monotonic()
        in_phase_s = now_s - self._phase_since_s
        if self._phase == "waiting":
            self._wait_for_the_others(in_phase_s)
        elif self._phase == "still" and in_phase_s > STILL_S:
            self._go_on()
        elif self._phase == "resetting" and in_phase_s > RESEND_RESET_S:
            self._phase_since_s = now_s
            self._request_reset()
        elif self._phase == "listening":
            self.finished = in_phase_s > LAST_DIAGNOSTICS_S
        silence_s = now_s - self._last_score_s
        if self._phase != "waiting" and silence_s > self._settings.silence_timeout_s:
            raise SimulationError(
                "The simulator fell silent",
                got=f"no ~/score for {silence_s:.1f} s",
                expected=f"one within {self._settings.silence_timeout_s} s",
                fix="see the log of sim_node",
            )

    def _wait_for_the_others(self, waited_s: float) -> None:
        simulator = self._reset.get_subscription_count() > 0
        policy = self._instruction.get_subscription_count() > 0 and self._policy_state == "active"
        if simulator and policy and self._armed():
            stamp_s = stamp_to_s(self.get_clock().now().to_msg())
            self._event("ready", waited_s=round(waited_s, 2), stamp_s=stamp_s)
            self._last_score_s = time.monotonic()
            self._hold_still()
        elif self._policy_error is not None:
            raise ConfigurationError(
                "The policy node refuses to start",
                got=self._policy_error,
                expected="an active node",
                fix="mend what it says",
            )
        elif waited_s > self._settings.ready_timeout_s:
            raise ConfigurationError(
                "The graph is not complete",
                got=f"simulator {'there' if simulator else 'missing'}, policy "
                f"{self._policy_state} with {self._instruction.get_subscription_count()} listeners"
                f"{', without an answer of ~/arm' if simulator and policy else ''}",
                expected="sim_node there, policy_node active and armed",
                fix="see the logs of both nodes; check remaps and ROS_DOMAIN_ID",
            )

    def _armed(self) -> bool:
        """Whether the policy's node has let itself be armed; asks again if no answer comes."""
        if self._arming is None or not self._arming.done():
            self._ask_to_arm()
            return False
        answer = self._arming.result()
        if not answer.success:
            raise ConfigurationError(
                "The policy node refuses to be armed",
                got=answer.message,
                expected="an armed node",
                fix="mend what it says",
            )
        return True

    def _ask_to_arm(self) -> None:
        now_s = time.monotonic()
        if now_s - self._arming_s < ARM_AGAIN_S or not self._arm.service_is_ready():
            return
        if self._arming is not None:
            self._arm.remove_pending_request(self._arming)
        self._arming_s = now_s
        self._arming = self._arm.call_async(SetBool.Request(data=True))

    def _hold_still(self) -> None:
        self._instruction.publish(String(data=NO_INSTRUCTION))
        self._enter("still")

    def _request_reset(self) -> None:
        seed = self._plan.first_seed + self._index
        request = {"id": self._identity(), "seed": seed, "shift": self._plan.shift}
        self._reset.publish(String(data=json.dumps(request)))

    def _begin(self, score: dict[str, Any]) -> None:
        self._referee = EpisodeReferee(self._plan, self._index)
        path = self._out / "episodes" / f"{self._index:03d}.mp4"
        self._record = EpisodeRecord(path, rate_hz=self._settings.film_rate_hz, begin=score)
        self._enter("running")
        self._say(self._referee.begin(score), self._referee, self._record)

    def _follow(self, score: dict[str, Any]) -> None:
        referee, record = self._referee, self._record
        if referee is None or record is None:
            return
        instruction = referee.update(score)
        if instruction is not None:
            self._say(instruction, referee, record)
        if referee.outcome is not None:
            self._hold_still()
            result = referee.result()
            record.end(score, result)
            told = {key: result[key] for key in ("outcome", "success", "time_s")}
            self._event("episode", **told)
            self._referee = None

    def _go_on(self) -> None:
        """Once the arm is still: file the episode that ended, and ask for the next one."""
        if self._record is not None:
            self._episodes.append(self._record.finish(self._out))
            self._record = None
            self._index += 1
        if self._index == self._plan.episodes:
            self._enter("listening")
        else:
            self._enter("resetting")
            self._request_reset()

    def _say(self, instruction: str, referee: EpisodeReferee, record: EpisodeRecord) -> None:
        self._instruction.publish(String(data=instruction))
        spoken = record.say(instruction, referee.score["time_s"])
        self._event("instruction", **spoken, judged=referee.judged)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._phase_since_s = time.monotonic()

    def _event(self, name: str, **fields: Any) -> None:
        wall_s = self._wall_s()
        self._events.append({"event": name, "wall_s": wall_s, "episode": self._index, **fields})

    def _wall_s(self) -> float:
        return round(time.monotonic() - self._started_s, 3)

    def _identity(self) -> str:
        return f"{self._started_s:.6f}/{self._index}"

    def destroy_node(self) -> None:
        """Finish the files, then leave the graph."""
        if self._record is not None:
            self._record.close()
        for file in (self._events, self._episodes, self._diagnostics):
            file.close()
        super().destroy_node()


def main(arguments: list[str] | None = None) -> None:
    """Run the plan, then end; SystemExit with a message where the graph does not play along."""
    if not run_node(OperatorNode, finished=lambda node: node.finished, arguments=arguments):
        raise SystemExit("operator_node: interrupted before the last episode")


if __name__ == "__main__":
    main()
