"""Tells people and programs what the node does: status, diagnostics, and a log without floods."""

from __future__ import annotations

import json
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from vla_align_ros.ros.messages import make_diagnostics
from vla_align_ros.runtime.interlock import Interlock
from vla_align_ros.runtime.runner import PolicyRunner
from vla_align_ros.runtime.stops import Hold, Reason

QUIET = (Reason.INACTIVE, Reason.NO_INSTRUCTION, Reason.PLANNING)
GRAVE = (Reason.INFERENCE_ERROR, Reason.NON_FINITE, Reason.OUT_OF_LIMITS)
REPEAT_LOG_S = 2.0
STOPS_SHOWN = 50


class Reporter:
    """Publishes `~/status` when something changes and `/diagnostics` when asked, in every state.

    `~/status` (String, reliable, transient local, depth 1) is one JSON object: state, moving,
    hold_reason, hold_detail, instruction, bundle_id, arm, stop_count, last_stop ({reason, detail,
    time_s} with the first cause, or null), latched_stop (how a person stopped it, in every state,
    or null), error (of the last failed transition, or null).

    `/diagnostics` carries the same as key-values, and every figure of `Metrics.snapshot`:
    frames_received, inference_count, plans_refused, commands_sent, latency_<stage>_p50_ms and
    _p99_ms, command_rate_hz, command_jitter_p50_ms and _p99_ms, camera_rate_hz, image_age_ms,
    `stops` (JSON list of the latest stops), `rival_publishers`, `sources` (JSON, by camera, pose
    and joints: topic, age_ms, rate_hz, received, lost, publishers) and `troubles` (JSON: what to
    set where a source is published and does not arrive or is of no use, or the gripper's action
    fails), `sight` (in words), sight_readings, sight_errors, familiarity_distance,
    familiarity_threshold, unfamiliar. Keys stay; one without samples is absent.
    """

    def __init__(self, node: LifecycleNode, interlock: Interlock) -> None:
        latched = QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._node = node
        self._interlock = interlock
        self._status = node.create_publisher(String, "~/status", latched)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._sent: dict[str, Any] = {}
        self._logged_s: dict[str, float] = {}
        self._rivals: list[str] = []
        self._reason: Reason | None = Reason.INACTIVE
        self.runner: PolicyRunner | None = None
        self.state = "unconfigured"
        self.bundle_id = ""
        self.arm = ""
        self.error: str | None = None

    def log_fault(self, hold: Hold, error: BaseException) -> None:
        """Log what inference raised; callable from the inference thread."""
        if self._due_to_log(f"fault:{hold.reason}"):
            self._node.get_logger().error(f"inference failed, the arm holds: {error}")

    def report(self) -> None:
        """Log a change of the hold's reason, and publish the status if it changed."""
        hold = self._hold()
        reason = None if hold is None else hold.reason
        if reason != self._reason:
            self._log_change(hold)
            self._reason = reason
        status = self._summary()
        # The detail counts ages and would change on every tick.
        known = {key: value for key, value in status.items() if key != "hold_detail"}
        if known != self._sent:
            self._sent = known
            self._status.publish(String(data=json.dumps(status)))

    def flush(self, timeout_s: float) -> None:
        """Wait until every listener has acknowledged the last status, at most so long."""
        self._status.wait_for_all_acked(Duration(seconds=timeout_s))

    def diagnose(self, extra: dict[str, Any]) -> None:
        """Publish diagnostics; `extra` adds key-values."""
        hold = self._hold()
        values = {**self._summary(), **extra}
        if self.runner is not None:
            values.update(self.runner.metrics.snapshot())
            ages_s = self.runner.ages_s()
            values.update({f"{k}_ms": 1e3 * age for k, age in ages_s.items() if age is not None})
            stops = list(self.runner.stops.stops)[-STOPS_SHOWN:]
            values["stops"] = [_describe_stop(stop) for stop in stops]
            for name, age_s in self.runner.observer.ages_by_source().items():
                if name in values.get("sources", {}) and age_s is not None:
                    values["sources"][name]["age_ms"] = round(1e3 * age_s, 1)
        level, text = self._judge(hold)
        self._log_rivals(extra.get("rival_publishers", []))
        if extra.get("rival_publishers"):
            level = max(level, DiagnosticStatus.WARN)
            text += "; another node publishes commands too: " + ", ".join(extra["rival_publishers"])
        if extra.get("unfamiliar"):
            level = max(level, DiagnosticStatus.WARN)
            text += "; the scene is unlike those of the training"
        for trouble in extra.get("troubles", {}).values():
            level = max(level, DiagnosticStatus.WARN)
            text += f"; {trouble}"
        name = f"{self._node.get_fully_qualified_name().lstrip('/')}: policy"
        stamp = self._node.get_clock().now().to_msg()
        self._diagnostics.publish(make_diagnostics(name, self.arm, level, text, values, stamp))

    def _hold(self) -> Hold | None:
        return Hold(Reason.INACTIVE) if self.runner is None else self.runner.hold

    def _summary(self) -> dict[str, Any]:
        hold = self._hold()
        stops = self.runner.stops if self.runner is not None else None
        latched = self._interlock.stopped
        return {
            "state": self.state,
            "moving": hold is None,
            "hold_reason": None if hold is None else hold.reason.value,
            "hold_detail": None if hold is None else hold.detail,
            "instruction": None if self.runner is None else self.runner.instruction,
            "bundle_id": self.bundle_id,
            "arm": self.arm,
            "stop_count": 0 if stops is None else stops.total,
            "last_stop": _describe_stop(stops.stops[-1]) if stops and stops.stops else None,
            "latched_stop": None if latched is None else latched.detail,
            "error": self.error,
        }

    def _judge(self, hold: Hold | None) -> tuple[bytes, str]:
        if self.error is not None:
            return DiagnosticStatus.ERROR, self.error
        if hold is None:
            return DiagnosticStatus.OK, "moving"
        if hold.reason is Reason.INACTIVE:
            return DiagnosticStatus.OK, self.state
        if hold.reason in GRAVE:
            return DiagnosticStatus.ERROR, f"hold: {hold}"
        overdue = self.runner is not None and self.runner.plan_overdue
        quiet = hold.reason in QUIET and not overdue
        return DiagnosticStatus.OK if quiet else DiagnosticStatus.WARN, f"hold: {hold}"

    def _log_change(self, hold: Hold | None) -> None:
        if hold is not None and hold.reason is Reason.INACTIVE:
            return  # every transition is told by the lifecycle itself
        stops = hold is not None and self._reason is None  # each of them has its line
        if not self._due_to_log("moving" if hold is None else hold.reason.value) and not stops:
            return
        logger = self._node.get_logger()
        if hold is None:
            instruction = self.runner.instruction if self.runner is not None else None
            logger.info(f"moving: {instruction}")
        elif hold.reason in QUIET:
            logger.info(f"hold: {hold}")
        else:
            logger.warning(f"hold: {hold}")

    def _log_rivals(self, topics: list[str]) -> None:
        if topics and topics != self._rivals:
            self._node.get_logger().warning(
                f"another node publishes commands too, on {', '.join(topics)}: two masters move "
                "one arm; end the other"
            )
        self._rivals = topics

    def _due_to_log(self, what: str) -> bool:
        now_s = time.monotonic()
        if now_s - self._logged_s.get(what, float("-inf")) < REPEAT_LOG_S:
            return False
        self._logged_s[what] = now_s
        return True


def _describe_stop(stop: Any) -> dict[str, Any]:
    return {"reason": stop.reason.value, "detail": stop.detail, "time_s": stop.time_s}
