"""One line of the doctor's report, so that every check says the same four things."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A thing, whether it works here, what was found, what mends it."""

    section: str
    name: str
    ok: bool
    found: str
    fix: str = ""


def judge(section: str, name: str, ok: bool, found: str, fix: str) -> Finding:
    """A finding whose fix is told only where it is needed."""
    return Finding(section, name, ok, found, "" if ok else fix)
