"""The parts of the network by name, for freezing and for learning rates."""

from __future__ import annotations

from collections.abc import Iterable

from vla_align_ros.errors import ConfigurationError

GROUPS = ("vision", "projector", "llm", "state", "head", "grounding")

_GROUP_OF_PART = {
    "vision": "vision",
    "projector": "projector",
    "visual_positions": "projector",
    "llm": "llm",
    "state_encoder": "state",
    "action_head": "head",
    "action_queries": "head",
    "grounding": "grounding",
}


def group_of(name: str) -> str:
    """Return the group of a parameter by its name in the model."""
    return _GROUP_OF_PART[name.split(".", 1)[0]]


def check_groups(groups: Iterable[str]) -> set[str]:
    """Return the groups as a set; ConfigurationError if one has an unknown name."""
    chosen = set(groups)
    if unknown := chosen - set(GROUPS):
        raise ConfigurationError(
            got=f"parameter groups {sorted(unknown)}",
            expected=f"some of {', '.join(GROUPS)}",
            fix="correct the frozen groups",
        )
    return chosen
