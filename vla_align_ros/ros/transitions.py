"""Makes lifecycle transitions speak: rclpy swallows errors and dies of illegal requests."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from vla_align_ros.errors import VlaAlignError
from vla_align_ros.ros.reporting import Reporter

Result = TransitionCallbackReturn


class Reporting(Protocol):
    """A lifecycle node with a reporter."""

    reporter: Reporter

    def get_logger(self) -> Any:
        """Return the node's logger."""
        ...


def transition(
    target: str, *, refusal: Any = Result.FAILURE
) -> Callable[[Callable[[Any, LifecycleState], None]], Callable[[Any, LifecycleState], Any]]:
    """Wrap a transition's method: whatever it raises is logged once and answered.

    A deliberate refusal (VlaAlignError) answers `refusal`, anything else ERROR. `target` is the
    state that success leads to, for `~/status`.
    """

    def decorate(
        method: Callable[[Any, LifecycleState], None],
    ) -> Callable[[Any, LifecycleState], Any]:
        name = method.__name__.removeprefix("on_")

        @functools.wraps(method)
        def run(self: Reporting, state: LifecycleState) -> Any:
            result = Result.SUCCESS
            try:
                method(self, state)
                self.reporter.state, self.reporter.error = target, None
            except VlaAlignError as error:
                result = refusal
                self.reporter.error = f"{name} failed: {error}"
                self.get_logger().error(self.reporter.error)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # rclpy swallows it, and dies of a panic of Rust's
                result = Result.ERROR
                self.reporter.error = f"{name} failed: {type(error).__name__}: {error}"
                self.get_logger().error(f"{self.reporter.error}\n{traceback.format_exc()}")
            self.reporter.report()
            return result

        return run

    return decorate


def answer_illegal_requests(node: LifecycleNode) -> None:
    """Answer a transition that is not allowed now with success=False; rclpy would die of it."""
    service = node._service_change_state
    inner = service.callback

    def answer(request: Any, response: Any) -> Any:
        try:
            return inner(request, response)
        except Exception as error:  # rclpy raises an RCLError of a private module
            wanted = request.transition.label or request.transition.id
            node.get_logger().error(f"transition {wanted} refused: {error}")
            response.success = False
            return response

    service.callback = answer
