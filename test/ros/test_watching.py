"""What a source's watch says: what is wrong with it, and what to look at first."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from vla_align_ros.ros import watching
from vla_align_ros.ros.watching import SourceWatch, WatchedSource

PICTURE_BYTES = 640 * 480 * 3
CAMERA = SimpleNamespace(
    topic_type="sensor_msgs/msg/Image",
    qos_profile=QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
)


class Graph:
    """A node that sees `publishers` on every topic and keeps what is logged."""

    def __init__(self) -> None:
        self.publishers: list[SimpleNamespace] = []
        self.logged: list[str] = []

    def get_publishers_info_by_topic(self, topic: str) -> list[SimpleNamespace]:
        return self.publishers

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(warning=self.logged.append)


class Bench:
    """A watch of one camera, and time that stands until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr(watching, "time", clock)
        monkeypatch.setattr(watching, "get_rmw_implementation_identifier", lambda: "rmw_fastrtps")
        self.graph = Graph()
        self.source = WatchedSource("front", "/policy_node/image", Image)
        self.watch = SourceWatch(self.graph, [self.source])  # type: ignore[arg-type]

    def go_on(self, seconds: float, *, rate_hz: float = 0.0) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 1.0 / (rate_hz or 4.0)
            if rate_hz:
                self.source.arrivals.note(self.now_s, PICTURE_BYTES)
            self.watch.check()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_a_topic_that_nobody_ever_published_is_named_once_with_its_type(bench: Bench) -> None:
    bench.go_on(1.5)
    assert not bench.graph.logged, "a driver may start beside the node"
    bench.go_on(60.0)
    (told,) = bench.graph.logged
    assert re.search(r"nobody publishes front on /policy_node/image \(sensor_msgs/msg/Image", told)
    assert "remap" in told
    assert not bench.watch.troubles, "a hold says so; it is no fault"
    assert bench.watch.summarise()["front"]["topic"] == "/policy_node/image"


def test_a_camera_that_was_there_and_left_is_not_looked_for(bench: Bench) -> None:
    bench.graph.publishers = [CAMERA]
    bench.go_on(5.0, rate_hz=30.0)
    bench.graph.publishers = []
    bench.go_on(60.0)
    assert not bench.graph.logged


def test_a_large_cameras_driver_that_fell_silent_is_looked_at_first(bench: Bench) -> None:
    bench.graph.publishers = [CAMERA]
    bench.go_on(5.0, rate_hz=30.0)
    bench.go_on(3.0)
    advice = bench.watch.troubles["front"]
    assert advice.index("its driver still runs") < advice.index("do not fit")


def test_large_pictures_of_which_none_came_do_not_fit(bench: Bench) -> None:
    bench.graph.publishers = [CAMERA]
    bench.source.likely_bytes = PICTURE_BYTES
    bench.go_on(3.0)
    assert "nothing arrives: its messages of 900 KiB do not fit" in bench.watch.troubles["front"]
