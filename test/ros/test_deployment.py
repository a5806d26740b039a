"""Files for a robot's computer, held against the nodes that they start: SROS2, Foxglove, more."""

from __future__ import annotations

import configparser
import json
import os
import posixpath
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from ros_graph import ROOT, WIDOWX, Probe

Start = Callable[..., subprocess.Popen[str]]
Names = dict[tuple[str, str], set[str]]
CONFIG = ROOT / "config"
# What a policy has only with other settings: another transport, arm or gripper.
OTHER_SETTINGS = {"image/compressed", "target_pose", "target_frame", "ee_pose", "joint_states"}
# The middleware's own; not every version has each.
PLUMBING = {"/rosout", "/parameter_events", "/clock"}
PLUMBING_SERVICES = ("/get_type_description",)


@pytest.fixture
def probe(ros: None, start_node: Start, tiny_state_bundle: Path) -> Iterator[Probe]:
    """A probe beside an inactive policy, its watchdog and a joystick's node."""
    policy = "/policy_node"
    arm = ("--params-file", str(WIDOWX))
    start_node("policy_node", *arm, "-p", f"bundle:={tiny_state_bundle}", "-p", "autostart:=true")
    start_node(
        *("watchdog_node", *arm, "-r", f"~/delta_twist_cmds:={policy}/delta_twist_cmds"),
        *("-r", f"~/heartbeat:={policy}/heartbeat"),
        *("-r", f"~/emergency_stop:={policy}/emergency_stop"),
        *("-r", f"~/watched:={policy}/watched", "-p", "stop_policy:=true"),
    )
    start_node("operating.joystick_stop")
    probe = Probe()
    probe.wait_for_state("active")
    yield probe
    probe.close()


def read_allowed(node: str, namespace: str = "/") -> Names:
    """What config/sros2 allows a node: full names by (kind, direction).

    With a namespace in place of ns="/"; names are completed as sros2 does (permissions.xsl).
    """
    root = ElementTree.parse(CONFIG / "sros2" / "policy.xml").getroot()
    profiles = [p for p in root.iter("profile") if p.attrib["node"] == node]
    assert len(profiles) == 1, node
    allowed: Names = {}
    for rule in profiles[0]:
        for way, verdict in rule.attrib.items():
            assert verdict == "ALLOW"
            written = [re.sub(r"^~/", f"{node}/", str(item.text)) for item in rule]
            names = {posixpath.join(namespace, name) for name in written}
            allowed.setdefault((rule.tag, way), set()).update(names)
    return allowed


def find_real(probe: Probe, node: str, namespace: str = "/") -> Names:
    """What a running node has, by the graph's own account so far."""
    asks: dict[tuple[str, str], Any] = {
        ("topics", "publish"): probe.node.get_publisher_names_and_types_by_node,
        ("topics", "subscribe"): probe.node.get_subscriber_names_and_types_by_node,
        ("services", "reply"): probe.node.get_service_names_and_types_by_node,
    }
    if (node, namespace) not in probe.node.get_node_names_and_namespaces():
        return {key: set() for key in asks}
    return {key: {name for name, _ in ask(node, namespace)} for key, ask in asks.items()}


def find_spare(allowed: Names, real: Names) -> Names:
    """What is allowed but not there, without what other settings or middleware would have."""
    other = PLUMBING | {f"/policy_node/{name}" for name in OTHER_SETTINGS}
    spare = {key: allowed.get(key, set()) - names - other for key, names in real.items()}
    return {
        key: kept
        for key, names in spare.items()
        if (kept := {name for name in names if not name.endswith(PLUMBING_SERVICES)})
    }


def test_the_security_policy_allows_each_node_what_it_does_and_no_more(probe: Probe) -> None:
    for node in ("policy_node", "watchdog_node", "joystick_stop"):
        allowed = read_allowed(node)
        # Discovery takes its time: a node's name arrives before its topics.
        probe.wait_for(
            lambda node=node, allowed=allowed: not find_spare(allowed, find_real(probe, node))
        )
        probe.spin(1.0)
        real = find_real(probe, node)
        assert not find_spare(allowed, real), f"{node} is allowed for nothing"
        for key, names in real.items():
            denied = names - allowed.get(key, set())
            assert not denied, f"{node} {key}: {sorted(denied)} would be denied"


def test_the_security_policy_serves_an_arm_in_a_namespace(ros: None, start_node: Start) -> None:
    start_node(
        *("watchdog_node", "--params-file", str(WIDOWX), "-r", "__ns:=/left"),
        *("-r", "~/delta_twist_cmds:=policy_node/delta_twist_cmds"),
        *("-r", "~/heartbeat:=policy_node/heartbeat", "-r", "~/watched:=policy_node/watched"),
    )
    start_node("operating.joystick_stop", "-r", "__ns:=/left", "-p", "use_sim_time:=true")
    probe = Probe()
    for node, last in (("watchdog_node", "/diagnostics"), ("joystick_stop", "/clock")):
        allowed = read_allowed(node, "/left")
        assert probe.wait_for(
            lambda node=node, last=last: any(
                last in names for names in find_real(probe, node, "/left").values()
            )
        )
        probe.spin(1.0)
        for key, names in find_real(probe, node, "/left").items():
            denied = names - allowed.get(key, set())
            assert not denied, f"{node} {key}: {sorted(denied)} would be denied"
    probe.close()


def topic_names(probe: Probe) -> set[str]:
    return {name for name, _ in probe.node.get_topic_names_and_types()}


def service_names(probe: Probe) -> set[str]:
    return {name for name, _ in probe.node.get_service_names_and_types()}


def read_layout() -> dict[str, Any]:
    layout: dict[str, Any] = json.loads((CONFIG / "foxglove" / "policy.json").read_text())
    return layout


def place(node: Any, width: float, height: float) -> Iterator[tuple[str, float, float]]:
    """Each panel with its width and height, where the whole layout has those."""
    if isinstance(node, str):
        yield node, width, height
        return
    share = node["splitPercentage"] / 100
    for part, child in ((share, "first"), (1 - share, "second")):
        if node["direction"] == "row":
            yield from place(node[child], part * width, height)
        else:
            yield from place(node[child], width, part * height)


def test_the_foxglove_layout_shows_topics_that_exist(probe: Probe) -> None:
    layout = read_layout()
    configs = layout["configById"]
    assert sorted(name for name, _, _ in place(layout["layout"], 1, 1)) == sorted(configs)
    for name, config in configs.items():
        shown = [config.get(key) for key in ("topicPath", "topicToRender", "topicName")]
        shown.append(config.get("imageMode", {}).get("imageTopic"))
        shown += [path["value"].split(".")[0] for path in config.get("paths", [])]
        topics = {topic for topic in shown if topic is not None}
        assert probe.wait_for(lambda topics=topics: topics <= topic_names(probe)), (name, topics)
        service = config.get("serviceName")
        assert service is None or probe.wait_for(
            lambda service=service: service in service_names(probe)
        ), (name, service)
        for key in ("value", "requestPayload"):
            assert key not in config or isinstance(json.loads(config[key]), dict)


def test_the_foxglove_layout_opens_on_diagnostics_that_are_published(probe: Probe) -> None:
    """A panel of one node's diagnostics stays empty where it has no name and no hardware."""
    heard: set[tuple[str, str]] = set()
    probe.node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda message: heard.update((s.hardware_id, s.name) for s in message.status),
        10,
    )
    configs = read_layout()["configById"]
    panels = [c for name, c in configs.items() if name.startswith("DiagnosticStatusPanel!")]
    assert panels
    for panel in panels:
        wanted = (panel["selectedHardwareId"], panel["selectedName"])
        assert probe.wait_for(lambda wanted=wanted: wanted in heard), (wanted, heard)


def test_the_foxglove_layout_names_its_panels_for_both_viewers() -> None:
    """Foxglove and Lichtblick each have a key of their own for a panel's title."""
    for name, config in read_layout()["configById"].items():
        titles = [config.get(f"{viewer}PanelTitle") for viewer in ("foxglove", "lichtblick")]
        assert titles[0] == titles[1], name
        assert titles[0] or name.startswith("Diagnostic"), f"{name} has no title"


def test_the_foxglove_layout_leaves_room_for_its_buttons() -> None:
    """Lichtblick cuts off a button that does not fit, and scrolls to none.

    In pixels, measured there: what it leaves to the panels of a window of 1366 x 768 beside its
    sidebar, and the least height that each kind of panel needs for a whole button.
    """
    layout = read_layout()
    configs = layout["configById"]
    for name, width, height in place(layout["layout"], 1092, 724):
        if name.startswith("CallService!"):
            needed = 262
        elif name.startswith("Publish!"):
            needed = 140 if configs[name]["advancedView"] else 87
        else:
            continue
        assert height >= needed, f"{name}: {height:.0f} px high, needs {needed}"
        assert width >= 120, f"{name}: {width:.0f} px wide"


def read_launch_arguments() -> set[str]:
    text = (ROOT / "launch" / "policy.launch.py").read_text()
    body = text[text.index("declared = [") : text.index("return [\n        DeclareLaunchArgument")]
    return set(re.findall(r'^\s+\(\s*"(\w+)",', body, flags=re.MULTILINE))


def test_the_deployed_arguments_are_those_of_the_launch_file() -> None:
    known = read_launch_arguments()
    nav2 = {"namespace", "use_sim_time", "params_file", "autostart", "use_respawn", "log_level"}
    assert nav2 | {"robot", "arm", "bundle", "camera"} <= known
    for name in ("arm.env", "vla-policy@.service", "Dockerfile", "../sros2/policy.xml"):
        text = (CONFIG / "deploy" / name).read_text()
        used = set(re.findall(r"\b(\w+):=", text))
        assert used <= known, f"{name}: {sorted(used - known)}"


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    entrypoint = tmp_path / "entrypoint"
    shutil.copy(CONFIG / "deploy" / "entrypoint", entrypoint)
    unit = tmp_path / "vla-policy@.service"
    text = (CONFIG / "deploy" / "vla-policy@.service").read_text()
    unit.write_text(re.sub(r"/opt/vla/install/\S+/entrypoint", str(entrypoint), text))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "vla-policy" not in done.stderr, done.stderr


def read_unit() -> dict[str, str]:
    """The [Service] section of the unit; of a name that comes more than once, the last value."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(CONFIG / "deploy" / "vla-policy@.service")
    return dict(unit["Service"])


def test_the_unit_can_write_the_nodes_parameters_on_a_read_only_system() -> None:
    """ROS's launch puts each node's parameters into a temporary file."""
    service = read_unit()
    assert service["ProtectSystem"] == "strict"
    assert service.get("PrivateTmp") == "true"


def test_the_entrypoint_becomes_what_it_is_told_to_be(tmp_path: Path) -> None:
    """In a shell whose ROS 2 and workspace are two files that set a variable each."""
    script = (CONFIG / "deploy" / "entrypoint").read_text()
    assert os.access(CONFIG / "deploy" / "entrypoint", os.X_OK)
    for folder, name in (("ros/jazzy", "setup.bash"), ("ws/install", "setup.bash")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(f"export SEEN=$SEEN:{folder}\n")
    (tmp_path / "entrypoint").write_text(script.replace("/opt/ros", str(tmp_path / "ros")))
    done = subprocess.run(
        ["bash", str(tmp_path / "entrypoint"), "bash", "-c", "echo $SEEN"],
        env={"PATH": os.environ["PATH"], "VLA_WORKSPACE": str(tmp_path / "ws")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == ":ros/jazzy:ws/install", done.stderr


def test_the_image_installs_the_ranges_of_the_package() -> None:
    text = (CONFIG / "deploy" / "Dockerfile").read_text()
    base = re.search(r"^BASE = \[(.*?)\]", (ROOT / "setup.py").read_text(), re.S | re.M)
    assert base is not None
    for wanted in re.findall(r'"([^"]+)"', base.group(1)):
        assert wanted.startswith("numpy") or f'"{wanted}"' in text, wanted
    for source in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (ROOT / source).exists()


def test_stopping_the_container_lets_every_node_send_its_zero() -> None:
    """By SIGINT, to the launch itself: it passes on no SIGTERM, and at a terminal no SIGINT."""
    text = (CONFIG / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"^STOPSIGNAL (\S+)$", text, re.M) == ["SIGINT"]
    assert re.search(r'^ENTRYPOINT \["[^ ]*/entrypoint"\]$', text, re.M), "not below a shell"
    assert (CONFIG / "deploy" / "entrypoint").read_text().endswith('exec "$@"\n')
    shown = re.findall(r"ros2 launch (\S+) vla_align_ros", text)
    (command,) = re.findall(r"^CMD (.*)$", text, re.M)
    assert ["ros2", "launch", *shown] == json.loads(command)[:3]
    assert shown == ["--noninteractive"]
