"""The parts of the network by name, for freezing and for learning rates."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

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
    "committed": "head",
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


def group_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return every parameter of a network once, by group; empty groups are left out."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(group_of(name), []).append((name, parameter))
    return groups


def freeze_groups(model: nn.Module, groups: Iterable[str]) -> None:
    """Stop gradients to the named groups and let the others train."""
    frozen = check_groups(groups)
    for group, members in group_parameters(model).items():
        for _, parameter in members:
            parameter.requires_grad_(group not in frozen)
