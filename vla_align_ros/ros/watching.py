"""Notices a source that is published and does not arrive, and says what to set."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier

from vla_align_ros.runtime.arrivals import Arrivals, Trouble
from vla_align_ros.share import CAMERA_PROFILE, PROFILE_VARIABLES, tell_path

CHECK_PERIOD_S = 0.25
REPEAT_LOG_S = 30.0
ABSENCE_S = 2.0  # drivers start beside the node
SEGMENT_BYTES = 512 * 1024  # Fast DDS's default shared-memory segment, which is the writer's


@dataclass(slots=True)
class WatchedSource:
    """A subscription of the node: what it is called, its topic and type, and what arrives.

    `likely_bytes` is the size that a message should have before one has been seen.
    """

    name: str
    topic: str
    kind: Any
    reliable: bool = False
    likely_bytes: int = 0
    arrivals: Arrivals = field(default_factory=Arrivals)


class SourceWatch:
    """Judges every source of one configuration; `check` it four times a second."""

    def __init__(self, node: Node, sources: list[WatchedSource]) -> None:
        self._node = node
        self._sources = sources
        self._logged_s: dict[tuple[str, Trouble], float] = {}
        self._begun_s = time.monotonic()
        self._missed: set[str] = set()  # those of which it was told that nobody publishes them
        self.troubles: dict[str, str] = {}
        """By source, what is wrong and what to do about it."""

    def check(self) -> bool:
        """Look at all sources now; True if others than before are in trouble."""
        now_s = time.monotonic()
        before = set(self.troubles)
        self.troubles = {}
        for source in self._sources:
            infos = self._node.get_publishers_info_by_topic(source.topic)
            source.arrivals.note_publishers(len(infos), now_s)
            if not infos and now_s - self._begun_s >= ABSENCE_S:
                self._tell_absence(source)
            trouble = source.arrivals.find_trouble(now_s)
            if trouble is None:
                continue
            text = _describe(source, trouble)
            if trouble is not Trouble.USELESS:  # that says itself what to mend
                text += f": {_advise(source, infos, trouble)}"
            self.troubles[source.name] = text
            if now_s - self._logged_s.get((source.name, trouble), -REPEAT_LOG_S) >= REPEAT_LOG_S:
                self._logged_s[source.name, trouble] = now_s
                self._node.get_logger().warning(text)
        return set(self.troubles) != before

    def _tell_absence(self, source: WatchedSource) -> None:
        """Log once that nobody ever published a source: no fault, and easily a topic's name."""
        if source.arrivals.received or source.name in self._missed:
            return
        self._missed.add(source.name)
        self._node.get_logger().warning(
            f"nobody publishes {source.name} on {source.topic} ({_name_of(source.kind)}); start "
            "its driver, or remap the topic to it"
        )

    def summarise(self) -> dict[str, dict[str, float | int | str]]:
        """By source: topic, rate_hz (of two seconds), received, lost, publishers."""
        now_s = time.monotonic()
        return {
            source.name: {
                "topic": source.topic,
                "rate_hz": round(source.arrivals.rate_hz(now_s), 2),
                "received": source.arrivals.received,
                "lost": source.arrivals.lost,
                "publishers": source.arrivals.publishers,
            }
            for source in self._sources
        }


def _describe(source: WatchedSource, trouble: Trouble) -> str:
    arrivals = source.arrivals
    if trouble is Trouble.SILENT:
        return f"{source.name} is published on {source.topic}, and nothing arrives"
    if trouble is Trouble.USELESS:
        return f"{source.name} arrives on {source.topic}, and is of no use: {arrivals.useless}"
    return (
        f"{source.name} loses messages on {source.topic} "
        f"({arrivals.received} arrived, {arrivals.lost} lost)"
    )


def _name_of(kind: Any) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def _advise(source: WatchedSource, publishers: list[Any], trouble: Trouble) -> str:
    wanted = _name_of(source.kind)
    other = sorted({info.topic_type for info in publishers} - {wanted})
    if other:
        return (
            f"its type is {', '.join(other)}, expected {wanted}; "
            "remap the right topic, or change image_transport"
        )
    best_effort = any(
        info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for info in publishers
    )
    if source.reliable and best_effort:
        return "it is published as best effort; take the reliable qos_override off this node"
    size = source.arrivals.largest_bytes or source.likely_bytes
    if "fastrtps" in get_rmw_implementation_identifier():
        profile = (
            f"start the CAMERA's process with {PROFILE_VARIABLES[0]}={tell_path(CAMERA_PROFILE)} "
            f"({PROFILE_VARIABLES[1]} from Kilted on), or use image_transport:=compressed"
        )
        if size > SEGMENT_BYTES:
            fit = f"its messages of {size // 1024} KiB do not fit Fast DDS's shared memory"
            if trouble is Trouble.SILENT and source.arrivals.received > source.arrivals.lost:
                return f"see that its driver still runs; else {fit} of 512 KiB: {profile}"
            return f"{fit} of 512 KiB; {profile}"
        if source.arrivals.received == 0 and source.kind.__name__ == "Image":
            return f"see that its driver runs; if its messages are larger than 512 KiB, {profile}"
    return "see that its driver runs, and that network and processors keep up with its rate"
