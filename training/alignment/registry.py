"""Finds a variant by its name, so that a misspelt one is answered with the valid ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from vla_align_ros.errors import ConfigurationError

Variant = TypeVar("Variant")


def find_variant(variants: Mapping[str, Variant], name: str, setting: str) -> Variant:
    """Return `variants[name]`; ConfigurationError naming `setting` and the valid names if none."""
    if name not in variants:
        raise ConfigurationError(
            f"No such {setting}",
            got=repr(name),
            expected="one of " + ", ".join(variants),
            fix=f"set {setting} to one of these names",
        )
    return variants[name]
