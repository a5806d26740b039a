"""Processes of the graph are watched, logged and always ended; the wiring leaves no loose end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

from vla_align_ros.demo.graph import Graph, find_free_domain, graph_environment, ros_distro
from vla_align_ros.demo.wiring import demo_nodes, format_parameter
from vla_align_ros.errors import ConfigurationError, SimulationError
from vla_align_ros.share import find_share

ROOT = Path(__file__).resolve().parents[2]
# preexec_fn forks; other tests of this process may have left threads. The child only calls prctl.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n"
)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(path: Path, lines: int) -> list[str]:
    for _ in range(200):
        found = path.read_text().splitlines()
        if len(found) >= lines and found[lines - 1]:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{path} stayed at {path.read_text()!r}")


def test_a_child_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Graph(tmp_path, os.environ) as graph:
        dies = graph.start(
            "dies", [sys.executable, "-c", "print('the cause'); raise SystemExit(3)"]
        )
        lives = graph.start("lives", SLEEP)
        dies.process.wait(60)
        with pytest.raises(SimulationError, match=r"(?s)dies ended too early.*status 3.*the cause"):
            graph.check(may_end=lives)
    assert not is_alive(lives.process.pid)


def test_the_one_that_may_end_may_only_end_well(tmp_path: Path) -> None:
    with Graph(tmp_path, os.environ) as graph:
        good = graph.start("good", [sys.executable, "-c", "pass"])
        good.process.wait(60)
        graph.check(may_end=good)
    with Graph(tmp_path, os.environ) as graph:
        bad = graph.start("bad", [sys.executable, "-c", "raise SystemExit('no policy')"])
        bad.process.wait(60)
        with pytest.raises(SimulationError, match=r"(?s)exit status 1.*no policy"):
            graph.check(may_end=bad)


def test_stop_ends_whole_process_groups_however_stubborn(tmp_path: Path) -> None:
    graph = Graph(tmp_path, os.environ)
    stubborn = graph.start("stubborn", [sys.executable, "-c", STUBBORN])
    # The log starts with the command, which here has as many lines as the script.
    grandchild = int(wait_for(stubborn.log, STUBBORN.count("\n") + 2)[-1])
    graph.stop(patience_s=0.3)
    assert stubborn.process.returncode == -signal.SIGKILL
    for _ in range(40):
        if not is_alive(grandchild):
            break
        time.sleep(0.05)
    assert not is_alive(grandchild)


def test_children_do_not_outlive_a_killed_demonstration(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from vla_align_ros.demo.graph import Graph\n"
        f"graph = Graph(Path({str(tmp_path)!r}), os.environ)\n"
        f"print(graph.start('sleeper', {SLEEP!r}).process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as output:
        child = int(output.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not is_alive(child):
            break
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_domain_in_use_is_left_alone() -> None:
    domain = find_free_domain()
    assert 1 <= domain <= 100
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", 7400 + 250 * domain + 10))
        assert find_free_domain() != domain


def test_the_graph_keeps_to_this_machine_and_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "0")
    monkeypatch.setenv("ROS_STATIC_PEERS", "10.0.0.2")
    monkeypatch.setenv("ROS_DISCOVERY_SERVER", "10.0.0.2:11811")
    environment = graph_environment(find_share(), tmp_path)
    assert "10.0.0.2" not in " ".join(environment.values()), "nor are its peers and servers"
    assert environment["ROS_DOMAIN_ID"] != "0", "a robot's own domain is not taken over"
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert Path(environment["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()


def test_the_sourced_distribution_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DISTRO", "rolling")
    assert ros_distro() == "rolling"
    monkeypatch.delenv("ROS_DISTRO")
    assert ros_distro() in {"jazzy", "kilted"}


def make_nodes(tmp_path: Path) -> dict[str, list[str]]:
    nodes = demo_nodes(bundle=tmp_path / "it's", out=tmp_path, episodes=2, first_seed=5)
    return {node.executable: node.command(ROOT) for node in nodes}


def test_every_node_gets_files_that_exist(tmp_path: Path) -> None:
    for command in make_nodes(tmp_path).values():
        files = [command[k + 1] for k, word in enumerate(command) if word == "--params-file"]
        assert files
        assert all(Path(file).is_file() for file in files)


def test_topics_meet_and_only_the_policy_commands_the_arm(tmp_path: Path) -> None:
    nodes = demo_nodes(bundle=tmp_path, out=tmp_path, episodes=2, first_seed=5)
    users: dict[str, set[str]] = {}
    for node in nodes:
        for target in node.remaps.values():
            users.setdefault(target, set()).add(node.executable)
    assert all(len(names) >= 2 for names in users.values()), users
    # The watchdog sends its one zero there.
    assert users["/arm/delta_twist_cmds"] == {"policy_node", "sim_node", "watchdog_node"}
    assert users["/arm/gripper_commands"] == {"policy_node", "sim_node"}


@pytest.mark.parametrize("value", ["it's", "none", "yes", "007", "a: b", True, False, 3, 0.25])
def test_parameters_keep_their_type_on_the_command_line(value: str | bool | int | float) -> None:
    back = yaml.safe_load(format_parameter(value))
    assert back == value
    assert type(back) is type(value)


def test_a_package_without_its_files_says_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_align_ros.share._share_candidates", lambda: iter([tmp_path]))
    with pytest.raises(ConfigurationError, match="pip install"):
        find_share()


def test_an_installed_package_is_found_by_the_ament_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "share" / "vla_align_ros" / "config"
    config.mkdir(parents=True)
    (config / "sim.yaml").touch()
    monkeypatch.setattr("vla_align_ros.share.__file__", str(tmp_path / "a" / "b.py"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'other'}{os.pathsep}{tmp_path}")
    assert find_share() == config.parent


@pytest.mark.parametrize(
    "scheme", [sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")]
)
def test_an_installed_package_is_found_where_any_pip_puts_it(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / scheme / "share" / "vla_align_ros" / "config"
    config.mkdir(parents=True)
    (config / "sim.yaml").touch()
    monkeypatch.setattr("vla_align_ros.share.__file__", str(tmp_path / "a" / "b.py"))
    monkeypatch.setattr("vla_align_ros.share.sys.prefix", str(tmp_path / "usr"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _, scheme: str(tmp_path / scheme))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert find_share() == config.parent
