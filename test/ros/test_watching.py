"""What is said of a source that does not arrive, or is of no use: once, with what to do first."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from vla_align_ros.ros import watching
from vla_align_ros.ros.watching import REPEAT_LOG_S, SEGMENT_BYTES, SourceWatch, WatchedSource

BEST_EFFORT, RELIABLE = (
    QoSProfile(depth=1, reliability=kind)
    for kind in (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE)
)


class Graph:
    """Stands where a node does: what publishes on its topics, and what it logs; and the time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.publishers: dict[str, list[Any]] = {}
        self.logged: list[str] = []

    def publish(self, topic: str, kind: str = "Image", qos: QoSProfile = BEST_EFFORT) -> None:
        info = SimpleNamespace(topic_type=f"sensor_msgs/msg/{kind}", qos_profile=qos)
        self.publishers.setdefault(topic, []).append(info)

    def get_publishers_info_by_topic(self, topic: str) -> list[Any]:
        return self.publishers.get(topic, [])

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(warning=self.logged.append)

    def watch(self, *sources: WatchedSource) -> SourceWatch:
        return SourceWatch(self, list(sources))  # type: ignore[arg-type]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    graph = Graph()
    clock = SimpleNamespace(monotonic=lambda: graph.now_s)
    monkeypatch.setattr(watching, "time", clock)
    return graph


def pass_time(
    graph: Graph, watch: SourceWatch, seconds: float, source: WatchedSource | None = None
) -> None:
    """So many seconds, in which pictures of 900 KiB come of a source, if one is given."""
    for _ in range(round(30 * seconds)):
        graph.now_s += 1.0 / 30.0
        if source is not None:
            source.arrivals.note(graph.now_s, 900 * 1024)
        watch.check()


def silence(graph: Graph, source: WatchedSource, seconds: float = 2.0) -> str:
    """What is said of a source of which nothing comes."""
    watch = graph.watch(source)
    watch.check()
    graph.now_s += seconds
    watch.check()
    return watch.troubles.get(source.name, "")


def test_a_change_of_troubles_is_told_when_it_comes_and_when_it_goes(graph: Graph) -> None:
    front, wrist = (WatchedSource(name, f"/{name}", Image) for name in ("front", "wrist"))
    graph.publish("/wrist")
    watch = graph.watch(front, wrist)
    assert not watch.check() and watch.troubles == {}
    graph.now_s += 2.0
    assert watch.check() and set(watch.troubles) == {"wrist"}, "nobody publishes the other"
    assert not watch.check(), "and that is known"
    wrist.arrivals.note(graph.now_s, 100)
    assert watch.check() and watch.troubles == {}


def test_a_trouble_is_logged_once_in_a_while_and_another_one_at_once(graph: Graph) -> None:
    front = WatchedSource("front", "/front", Image)
    graph.publish("/front")
    watch = graph.watch(front)
    watch.check()
    graph.now_s += 2.0
    for _ in range(3):
        watch.check()
    assert len(graph.logged) == 1 and graph.logged == [watch.troubles["front"]]
    for _ in range(3):
        front.arrivals.note(graph.now_s)
        front.arrivals.note_use(graph.now_s, "its encoding is odd")
        graph.now_s += 1.0
    watch.check()
    assert graph.logged[1:] == ["front arrives on /front, and is of no use: its encoding is odd"]
    front.arrivals.note_use(graph.now_s, None)
    graph.now_s += REPEAT_LOG_S
    watch.check()
    assert len(graph.logged) == 3


def test_what_came_and_what_was_lost_is_summed_up_by_source(graph: Graph) -> None:
    front = WatchedSource("front", "/front", Image)
    graph.publish("/front")
    graph.publish("/front")
    watch = graph.watch(front)
    for _ in range(10):
        front.arrivals.note(graph.now_s)
    front.arrivals.note_lost(6, graph.now_s)
    watch.check()
    counted = {"rate_hz": 5.0, "received": 10, "lost": 6, "publishers": 2}
    assert watch.summarise() == {"front": {**counted, "topic": "/front"}}
    assert "loses messages on /front (10 arrived, 6 lost)" in watch.troubles["front"]


@pytest.mark.parametrize(
    ("kind", "reliable", "published", "says"),
    [
        (Image, False, [("CompressedImage", BEST_EFFORT)], "expected sensor_msgs/msg/Image"),
        (Image, True, [("Image", RELIABLE), ("Image", BEST_EFFORT)], "take the reliable qos"),
        (Image, True, [("Image", RELIABLE)], "see that its driver runs"),
        (Image, False, [("Image", BEST_EFFORT)], "see that its driver runs"),
    ],
    ids=["another type", "best effort", "reliable", "as asked"],
)
def test_a_source_of_which_nothing_comes_is_advised_by_how_it_is_published(
    graph: Graph, kind: Any, reliable: bool, published: list[Any], says: str
) -> None:
    for name, qos in published:
        graph.publish("/front", name, qos)
    text = silence(graph, WatchedSource("front", "/front", kind, reliable=reliable))
    assert text.startswith("front is published on /front, and nothing arrives: ")
    assert says in text


@pytest.mark.parametrize(
    ("middleware", "kind", "likely", "came", "says"),
    [
        ("rmw_fastrtps_cpp", Image, SEGMENT_BYTES + 1024, 0, "513 KiB do not fit"),
        ("rmw_fastrtps_cpp", Image, SEGMENT_BYTES, 0, "if its messages are larger than 512 KiB"),
        ("rmw_fastrtps_cpp", Image, SEGMENT_BYTES + 1024, 1024, "network and processors"),
        ("rmw_fastrtps_cpp", Image, 0, 900 * 1024, "900 KiB do not fit"),
        ("rmw_fastrtps_cpp", CompressedImage, 0, 0, "network and processors"),
        ("rmw_cyclonedds_cpp", Image, SEGMENT_BYTES + 1024, 0, "network and processors"),
    ],
)
def test_the_shared_memory_of_fast_dds_is_named_where_it_may_be_too_small(
    graph: Graph,
    monkeypatch: pytest.MonkeyPatch,
    middleware: str,
    kind: Any,
    likely: int,
    came: int,
    says: str,
) -> None:
    monkeypatch.setattr(watching, "get_rmw_implementation_identifier", lambda: middleware)
    graph.publish("/front", kind.__name__)
    source = WatchedSource("front", "/front", kind, likely_bytes=likely)
    if came:
        source.arrivals.note(graph.now_s, came)
    assert says in silence(graph, source)


def test_a_topic_that_nobody_ever_published_is_named_once_with_its_type(graph: Graph) -> None:
    watch = graph.watch(WatchedSource("front", "/policy_node/image", Image))
    pass_time(graph, watch, 1.5)
    assert not graph.logged, "a driver may start beside the node"
    pass_time(graph, watch, 60.0)
    (told,) = graph.logged
    assert re.search(r"nobody publishes front on /policy_node/image \(sensor_msgs/msg/Image", told)
    assert "remap" in told
    assert not watch.troubles, "a hold says so; it is no fault"
    assert watch.summarise()["front"]["topic"] == "/policy_node/image"


def test_a_camera_that_was_there_and_left_is_not_looked_for(graph: Graph) -> None:
    source = WatchedSource("front", "/front", Image)
    watch = graph.watch(source)
    graph.publish("/front")
    pass_time(graph, watch, 5.0, source)
    graph.publishers.clear()
    pass_time(graph, watch, 60.0)
    assert not graph.logged


def test_a_large_cameras_driver_that_fell_silent_is_looked_at_first(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "get_rmw_implementation_identifier", lambda: "rmw_fastrtps_cpp")
    source = WatchedSource("front", "/front", Image)
    watch = graph.watch(source)
    graph.publish("/front")
    pass_time(graph, watch, 5.0, source)
    pass_time(graph, watch, 3.0)
    advice = watch.troubles["front"]
    assert advice.index("its driver still runs") < advice.index("do not fit")
