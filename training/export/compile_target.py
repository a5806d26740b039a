"""Which GPU an engine is built for, and with which library: asked for by name, or found here."""

from __future__ import annotations

from dataclasses import dataclass

from vla_align_ros.contract.engines import AHEAD_OF_TIME
from vla_align_ros.errors import BackendError, ConfigurationError
from vla_align_ros.inference.tensorrt.device import describe_device
from vla_align_ros.inference.tensorrt.library import (
    MODULES,
    RTX,
    TENSORRT,
    Library,
    find_library,
    installed_libraries,
)

DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Target:
    """What to build for.

    Attributes:
        name: folder of the engines, the GPU's architecture, such as "sm89". library: that builds.
        device: name of the GPU here if the engine is built on it, else "".
    """

    name: str
    library: Library
    device: str = ""


def parse_targets(text: str) -> list[str]:
    """Split "sm86,sm89" or "device" into targets, in order, each once.

    Raises:
        ConfigurationError: if one is no target, or none is named.
    """
    names = list(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    wrong = [name for name in names if name != DEVICE and name not in AHEAD_OF_TIME]
    if wrong or not names:
        raise ConfigurationError(
            "TensorRT target is unknown",
            got=", ".join(wrong) or repr(text),
            expected=f"{DEVICE}, or some of {', '.join(AHEAD_OF_TIME)}",
            fix=f"for any other GPU give --target {DEVICE} on the machine that has it",
        )
    return names


def resolve_targets(text: str) -> tuple[Target, ...]:
    """Find what each target of a comma-separated list needs (see `resolve_target`).

    Raises:
        ConfigurationError: also if two would be one folder of engines, the GPU here being named.
    """
    targets = tuple(resolve_target(name) for name in parse_targets(text))
    names = [target.name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            "TensorRT target is named twice",
            got=f"{text}, where {DEVICE} is {', '.join(twice)}",
            expected="each architecture once: its engines lie in one folder",
            fix=f"--target {DEVICE}, or the name alone",
        )
    return targets


def resolve_target(name: str) -> Target:
    """Find the library, and for "device" the GPU, that a target needs.

    An architecture by name is TensorRT-RTX's, and needs no GPU. For "device" the full TensorRT is
    taken where it is installed, else TensorRT-RTX.

    Raises:
        ConfigurationError: if the name is no target. BackendError: if the library is missing, or
            there is no GPU, or the library does not build for it.
    """
    (name,) = parse_targets(name)
    if name != DEVICE:
        return Target(name, find_library(RTX))
    device = describe_device()
    full = TENSORRT in installed_libraries()
    library = find_library(TENSORRT if full else RTX)
    if library.name == RTX and device.architecture not in AHEAD_OF_TIME:
        raise BackendError(
            f"{library.title} does not build for this GPU",
            got=f"{device.name} ({device.architecture})",
            expected=" or ".join(AHEAD_OF_TIME),
            fix="install the full TensorRT: " + " or ".join(MODULES[TENSORRT]),
        )
    return Target(device.architecture, library, device.name)
