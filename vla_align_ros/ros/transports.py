"""Keeps a process off Fast DDS's shared memory, where it may have to wait for another process.

A process that is stopped or killed while it holds the lock of a shared-memory port keeps all that
send to that port waiting, one to three seconds (docs/safety.md): not for what has to stop an arm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from rclpy.utilities import get_rmw_implementation_identifier

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.share import CAMERA_PROFILE, PROFILE_VARIABLES, find_share

UDP_PROFILE, UDP_LOCALHOST_PROFILE = "config/fastdds_udp.xml", "config/fastdds_udp_localhost.xml"
RANGE_VARIABLE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
OLD_RANGE_VARIABLE = "ROS_LOCALHOST_ONLY"  # deprecated since Iron, where it still counts
PEERS_VARIABLE = "ROS_STATIC_PEERS"
# Fast DDS reads these from the folder in which a process starts.
FOUND_PROFILES = ("DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml")
SEGMENTS = ("/dev/shm/fastrtps_", "/dev/shm/fastdds_")


def leave_shared_memory(environment: MutableMapping[str, str]) -> None:
    """Change the variables of a process that has no ROS context yet, so that it takes UDP alone.

    Transports that a person chose are left as they are, and so are static peers beside LOCALHOST,
    which no profile of ours can name: `shares_memory` tells then, and where no profile of ours is
    installed. Other middlewares are none of its business.
    """
    if "fastrtps" not in get_rmw_implementation_identifier():
        return
    try:
        share = find_share()
    except ConfigurationError:
        return
    here_alone = (
        environment.get(RANGE_VARIABLE, "").upper() == "LOCALHOST"
        or environment.get(OLD_RANGE_VARIABLE) == "1"
    )
    chosen = _are_chosen(environment, share / CAMERA_PROFILE)
    if chosen or (here_alone and environment.get(PEERS_VARIABLE)):
        return
    if here_alone:
        environment[RANGE_VARIABLE] = "SYSTEM_DEFAULT"
        environment.pop(OLD_RANGE_VARIABLE, None)
    profile = share / (UDP_LOCALHOST_PROFILE if here_alone else UDP_PROFILE)
    environment.update(dict.fromkeys(PROFILE_VARIABLES, str(profile)))


def shares_memory() -> bool:
    """Whether this process has segments of Fast DDS mapped (Linux)."""
    try:
        with open(f"/proc/{os.getpid()}/maps", encoding="utf-8", errors="replace") as maps:
            return any(segment in line for line in maps for segment in SEGMENTS)
    except OSError:
        return False


def _are_chosen(environment: Mapping[str, str], cameras: Path) -> bool:
    """Whether a person chose transports; this package's profile for cameras is no such choice.

    With some of Fast DDS's sets (LARGE_DATA, P2P) UDP alone would not even be heard.
    """
    own = [environment[name] for name in PROFILE_VARIABLES if environment.get(name)]
    return (
        any(not _is_same(Path(path), cameras) for path in own)
        or environment.get("FASTDDS_BUILTIN_TRANSPORTS", "") not in ("", "DEFAULT", "UDPv4")
        or bool(environment.get("ROS2_EASY_MODE"))
        or any(Path(name).exists() for name in FOUND_PROFILES)
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
