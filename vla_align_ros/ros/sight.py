"""Shows people what the policy sees: attention over the picture, and how familiar the scene is."""

from __future__ import annotations

import array
import time
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray, MultiArrayDimension

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.sight import GRAPH
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.ros.messages import s_to_stamp
from vla_align_ros.ros.params import PolicyParameters
from vla_align_ros.runtime.heatmap import cut, overlay
from vla_align_ros.runtime.sight import NO_GRAPH, SightGraph, SightLoop, SightReading, Wants

LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
SHOWN_PX = 240  # height of the published picture
REPEAT_LOG_S = 10.0


class SightTopics:
    """The topics of sight for one configuration; `loop` is None where the bundle has no such graph.

    `~/sight/attention` (Image, rgb8, best effort): the pictures of all cameras side by side, with
    the relative attention of the last prompt token laid over what the model sees of them.
    `~/sight/familiarity` (Float64MultiArray, reliable): distance, threshold. Both exist in any
    case, so that a tool finds them.

    Raises ConfigurationError where `unfamiliar_scene` asks for what the bundle cannot do.
    """

    def __init__(self, node: Node, bundle: Bundle, parameters: PolicyParameters) -> None:
        self._node = node
        self._crop = bundle.processor.image_transform.crop_box
        self._always = parameters.unfamiliar_scene != "report"
        self._logged_s = float("-inf")
        has_graph = GRAPH in bundle.manifest["graphs"]
        if self._always and not has_graph:
            raise ConfigurationError(
                "the bundle cannot tell how familiar a scene is",
                got=f"unfamiliar_scene {parameters.unfamiliar_scene}; {NO_GRAPH}",
                expected="a bundle with a sight graph, or unfamiliar_scene report",
                fix="vla-align sight fit RUN, export again; or set unfamiliar_scene to report",
            )
        self._attention = node.create_publisher(Image, "~/sight/attention", LATEST)
        self._familiarity = node.create_publisher(
            Float64MultiArray, "~/sight/familiarity", RELIABLE
        )
        self.loop: SightLoop | None = None
        if not has_graph:
            node.get_logger().info(f"~/sight stays silent: {NO_GRAPH}")
            return
        self.loop = SightLoop(
            lambda: SightGraph(bundle),
            self._wants,
            period_s=1.0 / parameters.sight_rate_hz,
            steady=time.monotonic,
            insist=parameters.unfamiliar_scene == "hold",
            on_reading=self._publish,
            on_error=self._log_error,
        )

    def destroy(self) -> None:
        """End the loop and leave the graph."""
        if self.loop is not None:
            self.loop.close()
        for publisher in (self._attention, self._familiarity):
            self._node.destroy_publisher(publisher)

    def summarise(self) -> dict[str, Any]:
        """For diagnostics: `sight` in words, and the newest reading's figures."""
        if self.loop is None:
            return {"sight": f"none: {NO_GRAPH}"}
        reading = self.loop.newest
        summary: dict[str, Any] = {
            "sight": "idle: nobody subscribes" if reading is None else "watching",
            "sight_readings": self.loop.readings,
            "sight_errors": self.loop.errors,
        }
        if reading is not None:
            summary["familiarity_distance"] = reading.distance
            summary["familiarity_threshold"] = reading.threshold
            summary["unfamiliar"] = reading.unfamiliar
        return summary

    def _wants(self) -> Wants:
        heard = self._familiarity.get_subscription_count() > 0
        return Wants(self._always or heard, self._attention.get_subscription_count() > 0)

    def _publish(self, reading: SightReading) -> None:
        """Publish a reading, in the loop's thread."""
        message = Float64MultiArray(data=[reading.distance, reading.threshold])
        message.layout.dim = [
            MultiArrayDimension(label="distance, threshold", size=2, stride=2),
        ]
        self._familiarity.publish(message)
        if reading.maps is not None:
            self._attention.publish(self._draw(reading))

    def _draw(self, reading: SightReading) -> Image:
        pictures = []
        for camera, weights in (reading.maps or {}).items():
            picture = reading.observation.images[camera]
            height, width = picture.shape[:2]
            seen = cut(picture, self._crop(width, height))
            shown = round(SHOWN_PX * seen.shape[1] / seen.shape[0])
            pictures.append(overlay(seen, weights, shown, SHOWN_PX))
        pixels = np.ascontiguousarray(np.concatenate(pictures, axis=1))
        height, width = pixels.shape[:2]
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.header.stamp = s_to_stamp(reading.observation.stamp_s)
        message.data = array.array("B", pixels.tobytes())
        return message

    def _log_error(self, error: BaseException) -> None:
        if time.monotonic() - self._logged_s > REPEAT_LOG_S:
            self._logged_s = time.monotonic()
            self._node.get_logger().error(f"sight failed, the policy goes on: {error}")
