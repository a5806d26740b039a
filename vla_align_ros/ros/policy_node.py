"""The lifecycle node that moves an arm by camera and instruction: wires topics to the runner."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState
from std_msgs.msg import Bool, Float64MultiArray

from vla_align_ros.contract.observation import ActionChunk
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.arms import Arm, make_arm
from vla_align_ros.ros.arms.base import check_alone
from vla_align_ros.ros.authority import Authority
from vla_align_ros.ros.inputs import RELIABLE, Inputs
from vla_align_ros.ros.messages import make_chunk
from vla_align_ros.ros.params import (
    PolicyParameters,
    declare_parameters,
    find_misspelt,
    read_interlock,
    read_parameters,
    refuse_changes,
    refuse_unknown_arm,
)
from vla_align_ros.ros.reporting import Reporter
from vla_align_ros.ros.running import run_node
from vla_align_ros.ros.sight import SightTopics
from vla_align_ros.ros.transitions import Result, answer_illegal_requests, transition
from vla_align_ros.ros.watching import CHECK_PERIOD_S, SourceWatch
from vla_align_ros.runtime.interlock import Interlock
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import require_proof
from vla_align_ros.runtime.runner import PolicyRunner
from vla_align_ros.runtime.safety import SafetyGate
from vla_align_ros.runtime.stops import DECIDED

DIAGNOSTICS_PERIOD_S = 1.0
AUTOSTART_DELAY_S = 0.05
FLUSH_S = 0.1  # how long the last zero and the last status may take to be acknowledged


class PolicyNode(LifecycleNode):
    """Lifecycle node `policy_node`.

    Subscribes, once configured: `~/image` (Image) or `~/image/compressed` (CompressedImage), or
    those below `~/<camera>` if the policy has several, all best effort, depth 1; `~/instruction`
    (String, reliable, volatile, depth 1; a blank one withdraws it); where the policy or the
    workspace needs them `~/ee_pose` (PoseStamped in the command frame) and `~/joint_states`
    (JointState). `Authority` offers what arms, stops and suspends it. Publishes the commands that
    the arm's controllers take (see `arms`), `~/action_chunk` (see `make_chunk`), `~/heartbeat`
    (Bool on every tick of the command timer: whether a command was sent), `~/sight` (see
    `SightTopics`), `~/status` and `/diagnostics` (see `Reporter`). Nothing moves the arm but an
    active, armed node with an instruction, fresh inputs and a plan.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("policy_node", **options)
        declare_parameters(self)
        refuse_unknown_arm(self)
        for told in find_misspelt(self):
            self.get_logger().warning(told)
        self.add_on_set_parameters_callback(
            lambda parameters: refuse_changes(parameters, configured=self._runner is not None)
        )
        self._settings: PolicyParameters | None = None
        self._policy: Policy | None = None
        self._runner: PolicyRunner | None = None
        self._arm: Arm | None = None
        self._inputs: Inputs | None = None
        self._watch: SourceWatch | None = None
        self._sight: SightTopics | None = None
        self._chunks: Any = None
        self._command_timer: Any = None
        # Not ROS time: a simulated clock that stops must not stop the timer that stops the arm.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        # One for the node's life: what a person decided outlives every transition.
        self._interlock = Interlock(read_interlock(self))
        self.reporter = Reporter(self, self._interlock)
        self.reporter.report()
        self._heartbeat = self.create_publisher(Bool, "~/heartbeat", RELIABLE)
        self._authority = Authority(self, self._interlock, self._on_decision)
        self._plan_ready = self.create_guard_condition(self._on_plan)
        answer_illegal_requests(self)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._on_diagnostics, clock=self._steady)
        self.create_timer(CHECK_PERIOD_S, self._on_check, clock=self._steady)
        self._autostart_timer: Any = None
        if self.get_parameter("autostart").value:
            self._autostart_timer = self.create_timer(
                AUTOSTART_DELAY_S, self._on_autostart, clock=self._steady
            )

    def destroy_node(self) -> None:
        """Shut down first, wherever the node is in its life: the arm gets its zero."""
        if self.reporter.state != "finalized":
            self.trigger_shutdown()
            self.reporter.flush(FLUSH_S)
        super().destroy_node()

    @transition("inactive")
    def on_configure(self, state: LifecycleState) -> None:
        """Load, verify and warm up the bundle; join the graph."""
        try:
            self._configure(read_parameters(self))
        except BaseException:
            self._release()
            raise

    @transition("active")
    def on_activate(self, state: LifecycleState) -> None:
        """Start inference and the command timer; the arm stands until there is a plan."""
        if self._runner is None or self._settings is None:
            raise ConfigurationError("node is not configured", fix="configure it first")
        if self._arm is not None:
            check_alone(self._arm)
        self._runner.activate()
        super().on_activate(state)
        self._command_timer = self.create_timer(
            1.0 / self._settings.command_rate_hz, self._on_tick, clock=self._steady
        )

    @transition("inactive", refusal=Result.ERROR)
    def on_deactivate(self, state: LifecycleState) -> None:
        """Send zero, stop inference, forget everything planned."""
        self._stand_still()
        super().on_deactivate(state)

    @transition("unconfigured", refusal=Result.ERROR)
    def on_cleanup(self, state: LifecycleState) -> None:
        """Free the policy and leave the graph."""
        self._release()

    @transition("finalized", refusal=Result.ERROR)
    def on_shutdown(self, state: LifecycleState) -> None:
        """Stand still, then free everything."""
        self._stand_still()
        self._release()

    def on_error(self, state: LifecycleState) -> Any:
        """Stand still and free everything; the node is unconfigured again, its error kept."""
        error = self.reporter.error
        result = self._recover(state)
        self.reporter.error = self.reporter.error or error
        self.reporter.report()
        return result

    @transition("unconfigured")
    def _recover(self, state: LifecycleState) -> None:
        self._stand_still()
        self._release()

    def _configure(self, parameters: PolicyParameters) -> None:
        policy = Policy.open(
            Path(os.path.expanduser(parameters.bundle)).absolute(),
            parameters.backend,
            threads=parameters.threads,
        )
        self._policy = policy
        frame = policy.spec.action.frame
        if frame != parameters.arm.command_frame:
            raise ConfigurationError(
                "the policy acts in another frame than the arm is commanded in",
                got=f"arm.command_frame {parameters.arm.command_frame}",
                expected=frame,
                fix="use the robot file that the policy was trained for",
            )
        if not parameters.allow_unproven:
            self._require_proof(policy)
        policy.warm_up()
        self._sight = SightTopics(self, policy.bundle, parameters)
        limits = parameters.limits.tighten(policy.bundle.limits)
        self._runner = PolicyRunner(
            policy,
            SafetyGate(
                limits, parameters.timeouts, command_period_s=parameters.arm.command_period_s
            ),
            clock=self._now_s,
            replan_period_s=parameters.find_replan_period_s(policy.spec.action),
            sync_tolerance_s=parameters.sync_tolerance_s,
            pose_needed=parameters.arm.needs_pose,
            strategy=parameters.make_strategy(),
            interlock=self._interlock,
            sight=self._sight.loop,
            on_chunk=self._on_chunk,
            on_fault=self.reporter.log_fault,
        )
        self._settings = parameters
        self._chunks = self.create_lifecycle_publisher(
            Float64MultiArray, "~/action_chunk", RELIABLE
        )
        self._arm = make_arm(self, parameters.arm, limits, self._runner.fresh_pose)
        self._inputs = Inputs(self, self._runner, parameters)
        self._watch = SourceWatch(self, self._inputs.sources)
        self.reporter.runner = self._runner
        self._authority.open()
        self.reporter.bundle_id = policy.bundle_id
        self.reporter.arm = parameters.arm.name
        # Python's collector stops every thread while it looks at all objects: 24 ms for the 55000
        # of a configured node, more beside torch. These are here to stay: it need not look again.
        gc.collect()
        gc.freeze()
        self.get_logger().info(
            f"bundle {policy.bundle_id[:12]} ready on {parameters.backend}: "
            f"{policy.spec.action.horizon} steps at {policy.spec.action.rate_hz:g} Hz in {frame}"
        )

    def _require_proof(self, policy: Policy) -> None:
        begun_s = time.monotonic()
        proof, made = require_proof(policy)
        if made:
            self.get_logger().info(
                "the bundle's proof is from elsewhere, or by other limits: replayed "
                f"{proof['samples']} golden samples on {proof['runs_on']} in "
                f"{time.monotonic() - begun_s:.1f} s, within their limits; `vla-align verify` "
                "keeps such a proof"
            )

    def _stand_still(self) -> None:
        """Send zero and stop inference, if the node was commanding the arm."""
        if self._command_timer is None:
            return
        self.destroy_timer(self._command_timer)
        self._command_timer = None
        if self._arm is not None:
            self._arm.stop(self.get_clock().now().to_msg())
            self._arm.halt_gripper()
        self._heartbeat.publish(Bool(data=False))
        if self._runner is not None and not self._runner.deactivate():
            self.get_logger().error("inference does not return; its result will be discarded")
        if self._arm is not None:
            self._arm.flush(FLUSH_S)

    def _release(self) -> None:
        gc.unfreeze()
        if self._inputs is not None:
            self._inputs.destroy()
        if self._arm is not None:
            self._arm.destroy()
        if self._chunks is not None:
            self.destroy_lifecycle_publisher(self._chunks)
        if self._sight is not None:
            self._sight.destroy()
        if self._policy is not None and not (self._runner is not None and self._runner.infers):
            self._policy.close()  # an inference that hangs keeps its engine
        self._inputs = self._watch = self._sight = self._arm = self._chunks = self._policy = None
        self._runner = self._settings = None
        self._authority.close()
        self.reporter.runner = None
        self.reporter.bundle_id = ""

    def _on_tick(self) -> None:
        if self._runner is None or self._arm is None or self._command_timer is None:
            return
        stamp = self.get_clock().now().to_msg()
        step = self._runner.tick()
        # Told before it is done, so that a death in between cannot leave a motion unwatched.
        self._heartbeat.publish(Bool(data=step.command is not None))
        if step.command is not None:
            self._arm.send(step.command, stamp)
        elif step.stop:
            self._arm.stop(stamp)
        if step.hold is not None and step.hold.reason in DECIDED:
            self._arm.halt_gripper()  # also where the arm stood before for another reason
        self.reporter.report()

    def _on_decision(self) -> None:
        """Act on what a person decided; it is told in every state."""
        self._check_rivals()
        self._on_tick()
        self.reporter.report()

    def _on_chunk(self, chunk: ActionChunk) -> None:
        """Take a plan, in the inference thread."""
        if self._settings is not None and self._settings.command_on_plan:
            self._plan_ready.trigger()
        self._chunks.publish(make_chunk(chunk))

    def _on_plan(self) -> None:
        """Send the first command of a new plan now; the timer's next tick is a period later."""
        if self._command_timer is not None:
            self._command_timer.reset()
            self._on_tick()

    def _on_check(self) -> None:
        self._check_rivals()
        if self._watch is not None and self._watch.check():
            self._on_diagnostics()

    def _check_rivals(self) -> None:
        """Stop for good beside another publisher to which the arm's controller would not listen.

        Not while a person drives, who may well do so on this topic: then nothing is sent, and the
        decision that ends it asks again before anything moves.
        """
        if self._command_timer is None or self._arm is None:
            return
        if self._interlock.taken_over or self._interlock.stopped is not None:
            return
        if rivals := self._arm.contested():
            self._authority.stop(f"because another node publishes on {', '.join(rivals)}")

    def _on_diagnostics(self) -> None:
        arm = self._arm
        values: dict[str, Any] = {"rival_publishers": [] if arm is None else arm.rivals()}
        if self._watch is not None:
            troubles = {**self._watch.troubles, **({} if arm is None else arm.troubles())}
            values.update(sources=self._watch.summarise(), troubles=troubles)
        if self._sight is not None:
            values.update(self._sight.summarise())
        self.reporter.diagnose(values)

    def _on_autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.reporter.state != "unconfigured" or self.reporter.error is not None:
            return  # somebody manages the node
        if self.trigger_configure() == Result.SUCCESS:
            self.trigger_activate()

    def _now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)


def main(arguments: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM; the arm gets its zero before the process ends."""
    run_node(
        PolicyNode,
        finished=lambda node: node.reporter.state == "finalized",
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
