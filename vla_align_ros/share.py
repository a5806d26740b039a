"""Where the package's own files lie (config/, launch/, bundles/): checkout, colcon or pip."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from vla_align_ros.errors import ConfigurationError

PACKAGE = "vla_align_ros"
# Of Fast DDS: until Jazzy (Fast DDS 2), and from Kilted on (Fast DDS 3).
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
CAMERA_PROFILE = "config/fastdds_shm.xml"
DISTRO_OF_RCLPY = {"3": "humble", "7": "jazzy", "9": "kilted"}  # by the first number of its version


def find_share() -> Path:
    """The folder with config/, launch/ and bundles/: of a checkout, colcon or pip."""
    for folder in _share_candidates():
        if os.path.isfile(folder / "config" / "sim.yaml"):  # no error where one may not look
            return folder
    raise ConfigurationError(
        "The configuration files are not installed",
        got="no config/sim.yaml in " + ", ".join(str(f) for f in _share_candidates()),
        expected="a checkout, a sourced colcon workspace or an installed package",
        fix="pip install . in the repository",
    )


def tell_path(name: str) -> str:
    """A shipped file as a person would write it, also where it is not installed."""
    try:
        return str(find_share() / name)
    except ConfigurationError:
        return f"<share of {PACKAGE}>/{name}"


def _share_candidates() -> Iterator[Path]:
    yield Path(__file__).resolve().parents[1]
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        yield Path(prefix) / "share" / PACKAGE
    # Debian's own pip installs below /usr/local, `pip install --user` below the home.
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    prefixes = (sysconfig.get_path("data", scheme) for scheme in schemes)
    for prefix in dict.fromkeys((sys.prefix, *prefixes)):
        yield Path(prefix) / "share" / PACKAGE
