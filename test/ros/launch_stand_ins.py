"""Stand-ins for ROS 2's launch, which has no wheel: what a launch file would start, as values."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from ros_graph import ROOT


@dataclass
class Started:
    """An action of a launch file, with the words that it was made of."""

    words: tuple[Any, ...]
    settings: dict[str, Any]

    def __init__(self, *words: Any, **settings: Any) -> None:
        self.words, self.settings = words, settings
        self.name = words[0] if words else settings.get("name")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that are given one by one, the last one of a name."""
        given = self.settings["parameters"]
        return {k: v for item in given if isinstance(item, dict) for k, v in item.items()}


class Launcher:
    """Runs `start` of launch/<file>, with its arguments' defaults and what is given."""

    def __init__(self, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._values: dict[str, str] = {}
        values = self._values

        class Configuration:
            def __init__(self, name: str) -> None:
                self._name = name

            def perform(self, context: object) -> str:
                return values[self._name]

        for name, members in {
            "ament_index_python": {},
            "ament_index_python.packages": {"get_package_share_directory": lambda _: str(ROOT)},
            "launch": {"LaunchDescription": Started},
            "launch.actions": dict.fromkeys(
                ("DeclareLaunchArgument", "EmitEvent", "OpaqueFunction", "RegisterEventHandler"),
                Started,
            ),
            "launch.event_handlers": {"OnProcessExit": Started},
            "launch.events": {"Shutdown": Started},
            "launch.substitutions": {"LaunchConfiguration": Configuration},
            "launch_ros": {},
            # Without LifecycleNode: it would make a node of the launch process, which has no keys.
            "launch_ros.actions": dict.fromkeys(("ComposableNodeContainer", "Node"), Started),
            "launch_ros.descriptions": {"ComposableNode": Started},
        }.items():
            module = ModuleType(name)
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("launch_file", ROOT / "launch" / file)
        assert spec is not None and spec.loader is not None
        self._file = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._file)

    def start(self, **given: str) -> dict[str, Started]:
        """What is started, by its executable."""
        arguments = self._declared()
        self._values.update({item.name: item.settings["default_value"] for item in arguments})
        assert given.keys() <= self._values.keys(), "no such argument"
        self._values.update(given)
        return {
            item.settings["executable"]: item
            for item in self._file.start(None)
            if "executable" in item.settings
        }

    def describe(self, name: str) -> str:
        """What `ros2 launch --show-args` tells of an argument."""
        (argument,) = (item for item in self._declared() if item.name == name)
        return str(argument.settings["description"])

    def _declared(self) -> list[Started]:
        description = self._file.generate_launch_description().words[0]
        return [item for item in description if "default_value" in item.settings]
