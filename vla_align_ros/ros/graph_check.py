"""Looks at the running graph for `vla-align doctor`: policies, cameras, controllers; JSON out."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from typing import Any

import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import (
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.validate_full_topic_name import validate_full_topic_name
from sensor_msgs.msg import CompressedImage, Image

from vla_align_ros.ros.arms.base import leave_watchdogs
from vla_align_ros.ros.messages import stamp_to_s
from vla_align_ros.ros.operating.client import JOINED, Patience, PolicyClient, find_policies
from vla_align_ros.ros.watching import CHECK_PERIOD_S, SourceWatch, WatchedSource

SECTION = "graph"
DISCOVERY_S = 2.0
LONGEST_DISCOVERY_S = 6.0  # a busy machine sees a graph bit by bit
SETTLE_S = 1.0
CLOCK = "/clock"
ATTENTION = "/sight/attention"  # a policy's own picture, which is no camera's
LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PICTURES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
COMMANDS = ("geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/PoseStamped")
POLICY = "policy_node"
WATCHED = ("/watched", "std_msgs/msg/Empty")  # what a watchdog answers on, whatever it is called

Row = dict[str, Any]
Topics = list[tuple[str, str]]


def row(name: str, ok: bool, found: str, fix: str = "") -> Row:
    """One finding, as `commands.findings.Finding` takes it."""
    return {"section": SECTION, "name": name, "ok": ok, "found": found, "fix": "" if ok else fix}


class GraphCheck:
    """Asks the graph; each method returns findings."""

    def __init__(self, node: Node, seconds: float) -> None:
        self._node = node
        self._seconds = seconds
        self._patience = Patience(node)

    def look(self, args: argparse.Namespace) -> list[Row]:
        """Everything that was asked for; without any, every policy with what belongs to it."""
        node = self._node
        self._patience.wait(lambda: False, DISCOVERY_S)
        asked = bool(args.policy or args.camera or args.commands)
        rows: list[Row] = []
        policies, cameras, commands = (
            _take_valid(names, rows) for names in (args.policy, args.camera, args.commands)
        )
        if not asked:  # a graph is not seen all at once
            self._patience.wait(lambda: bool(find_policies(node)), LONGEST_DISCOVERY_S)
            policies = find_policies(node)
        for name in policies:
            state = self._check_policy(name, rows)
            heard, sent = self._topics_of(name, joined=state in JOINED)
            cameras += [topic for topic, kind in heard if kind in PICTURES]
            commands += [topic for topic, kind in sent if kind in COMMANDS]
        if not (policies or asked):
            found = "none runs here; --camera and --commands look without one"
            rows.append(row("policies", True, found))
        self._patience.wait(lambda: self._all_connected(cameras, commands), LONGEST_DISCOVERY_S)
        if self._takers(CLOCK) & {*policies}:
            rows += self._follow_clock()
        rows += self._check_cameras(list(dict.fromkeys(cameras)))
        rows += [self._check_controller(topic) for topic in dict.fromkeys(commands)]
        return rows

    def _all_connected(self, cameras: list[str], commands: list[str]) -> bool:
        """Whether every topic has its other end: a graph is not seen all at once."""
        return all(map(self._node.count_publishers, cameras)) and all(
            self._takers(topic) for topic in commands
        )

    def _takers(self, topic: str) -> set[str]:
        return self._name_ends(self._node.get_subscriptions_info_by_topic(topic))

    def _name_ends(self, infos: list[Any]) -> set[str]:
        """Full names of the nodes at these ends of a topic, without watchdogs."""
        return {_full_name(info) for info in self._leave_watchdogs(infos)}

    def _leave_watchdogs(self, infos: list[Any]) -> list[Any]:
        """The ends that are no watchdog's, by its name or by what it answers on."""
        node = self._node
        answering = (
            end
            for topic, types in node.get_topic_names_and_types()
            if topic.endswith(WATCHED[0]) and WATCHED[1] in types
            for end in node.get_publishers_info_by_topic(topic)
        )
        return leave_watchdogs(infos, answering)

    def _follow_clock(self) -> list[Row]:
        """Take the time from where the policies take it, by which their cameras stamp."""
        self._node.set_parameters([Parameter("use_sim_time", value=True)])
        if self._node.count_publishers(CLOCK):
            return []
        fix = "start what publishes it, or take use_sim_time from the policy"
        return [row(CLOCK, False, "nobody publishes the time that the policy takes", fix)]

    def _check_policy(self, name: str, rows: list[Row]) -> str:
        """Add what it says of itself to `rows`; returns its lifecycle state, "" if unheard."""
        client = PolicyClient(self._node, name)
        heard = self._patience.wait(lambda: bool(client.status), self._seconds)
        state = str(client.status.get("state", ""))
        ok = heard and client.status.get("error") is None and state != "finalized"
        fix = "start it, or mend what its error says"
        rows.append(row(name, ok, client.describe().removeprefix(f"{name}: "), fix))
        if heard and not self._node.count_publishers(name + WATCHED[0]):
            rows.append(
                row("watchdog", False, f"none watches {name}", "launch with watchdog:=true")
            )
        return state

    def _topics_of(self, name: str, *, joined: bool) -> tuple[Topics, Topics]:
        """What a node subscribes to and publishes, once that no longer grows.

        A policy that has `joined` its topics has a camera's and a controller's among them.
        """
        end_s = time.monotonic() + LONGEST_DISCOVERY_S
        known: tuple[Topics, Topics] = ([], [])
        while time.monotonic() < end_s:
            found = self._read_topics(name)
            heard, sent = ({kind for _, kind in topics} for topics in found)
            if joined:
                heard, sent = heard & PICTURES.keys(), sent & {*COMMANDS}
            if found == known and heard and sent:
                break
            known = found
            self._patience.wait(lambda: False, SETTLE_S)
        return known

    def _read_topics(self, name: str) -> tuple[Topics, Topics]:
        """What is subscribed to and published under a node's name, by all who have it.

        The graph, asked for a node by its name, answers for one of them.
        """
        node = self._node
        heard, sent = (
            sorted(
                (topic, types[0])
                for topic, types in node.get_topic_names_and_types()
                if name in map(_full_name, ends(topic))
            )
            for ends in (node.get_subscriptions_info_by_topic, node.get_publishers_info_by_topic)
        )
        return heard, sent

    def _check_cameras(self, topics: list[str]) -> list[Row]:
        kinds = dict(self._node.get_topic_names_and_types())
        sources: list[WatchedSource] = []
        newest: dict[str, Any] = {}
        rows = []
        for topic in topics:
            kind = next((k for k in kinds.get(topic, []) if k in PICTURES), None)
            if kind is None or not self._node.count_publishers(topic):
                others = [
                    name
                    for name, types in kinds.items()
                    if set(types) & set(PICTURES) and not name.endswith(ATTENTION)
                ]
                there = [name for name in others if self._node.count_publishers(name)]
                fix = f"start the driver; with pictures here: {', '.join(there) or 'no topic'}"
                rows.append(row(topic, False, "nobody publishes pictures", fix))
                continue
            sources.append(self._listen(topic, PICTURES[kind], newest))
        watch = SourceWatch(self._node, sources)
        end_s = time.monotonic() + self._seconds
        while sources and time.monotonic() < end_s:
            self._patience.wait(lambda: False, CHECK_PERIOD_S)
            watch.check()
        return rows + [self._judge_camera(source, watch, newest) for source in sources]

    def _listen(self, topic: str, kind: Any, newest: dict[str, Any]) -> WatchedSource:
        source = WatchedSource(topic, topic, kind)

        def receive(message: Any) -> None:
            newest[topic] = message
            source.arrivals.note(time.monotonic(), len(message.data))

        self._node.create_subscription(kind, topic, receive, LATEST)
        return source

    def _judge_camera(self, source: WatchedSource, watch: SourceWatch, newest: Any) -> Row:
        trouble = watch.troubles.get(source.name)
        message = newest.get(source.topic)
        if trouble is not None or message is None:
            return row(source.topic, False, trouble or "nothing arrived")
        age_ms = 1e3 * (self._node.get_clock().now().nanoseconds * 1e-9 - self._stamp_s(message))
        raw = source.kind is Image
        size = f"{message.width}x{message.height} {message.encoding}" if raw else message.format
        found = f"{source.arrivals.rate_hz(time.monotonic()):.1f} Hz, {size}"
        if self._stamp_s(message) == 0.0:
            fix = "set the driver's stamps: without them a plan is placed by its arrival"
            return row(source.topic, False, f"{found}, unstamped", fix)
        ok = -50.0 < age_ms < 500.0
        fix = "synchronise the clocks (chrony, PTP), or mend the driver's stamps"
        return row(source.topic, ok, f"{found}, last one {age_ms:.0f} ms old", fix)

    def _stamp_s(self, message: Any) -> float:
        return stamp_to_s(message.header.stamp)

    def _check_controller(self, topic: str) -> Row:
        takers = self._takers(topic)
        infos = self._node.get_publishers_info_by_topic(topic)
        givers = self._name_ends(infos)
        policies = sorted(givers & {*find_policies(self._node)} or _named_as_policies(givers))
        rivals = sorted(givers - {*policies[:1]})
        if not takers:
            fix = f"start the controller, or remap the node's command topic to it (now {topic})"
            return row(topic, False, "no controller listens", fix)
        found = f"{', '.join(sorted(takers))} listens"
        if refused := self._explain_misfit(topic, infos):
            fix = "let the controller subscribe reliable or best effort, and volatile"
            return row(topic, False, f"{found}, and is sent nothing: {refused}", fix)
        names = Counter(_full_name(info) for info in infos)
        if twice := sorted(name for name in givers if names[name] > 1):
            fix = (
                "end all but one of that name: each takes the instruction and the arming of both "
                "(a killed one is seen for 20 s)"
            )
            found = f"{found}; {', '.join(twice)} publishes more than once"
            return row(topic, False, found, fix)
        if rivals:
            fix = "one publisher a command topic: stop the others"
            beside = f" beside {policies[0]}" if policies else ""
            return row(topic, False, f"{found}; {', '.join(rivals)} publishes{beside}", fix)
        return row(topic, True, found)

    def _explain_misfit(self, topic: str, givers: list[Any]) -> str:
        """Why no subscription of another than a watchdog fits a publisher; "" if one does."""
        takers = self._leave_watchdogs(self._node.get_subscriptions_info_by_topic(topic))
        found = [
            qos_check_compatible(giver.qos_profile, taker.qos_profile)
            for giver in self._leave_watchdogs(givers)
            for taker in takers
        ]
        if not found or any(fit != QoSCompatibility.ERROR for fit, _ in found):
            return ""
        return str(found[0][1]).removeprefix("ERROR: ").strip(" ;")


def _take_valid(names: list[str], rows: list[Row]) -> list[str]:
    """The full names among what was asked for; of what is none a finding is added to `rows`."""
    valid = []
    for given in names:
        name = given if given.startswith("/") else f"/{given}"
        try:
            validate_full_topic_name(name)
        except NameValidationException as error:
            why = str(error).splitlines()[0].rstrip(":")
            rows.append(row(name, False, why, "correct the name"))
        else:
            valid.append(name)
    return valid


def _full_name(info: Any) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def _named_as_policies(names: set[str]) -> set[str]:
    return {name for name in names if name.rpartition("/")[2] == POLICY}


def main() -> None:
    """Print the findings as one line of JSON."""
    parser = argparse.ArgumentParser()
    for name in ("policy", "camera", "commands"):
        parser.add_argument(f"--{name}", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    rclpy.init()
    node = rclpy.create_node("doctor")
    try:
        print(json.dumps(GraphCheck(node, args.seconds).look(args)), flush=True)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
