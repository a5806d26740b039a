"""Puts what was measured between the marks of a page."""

from __future__ import annotations

from vla_align_ros.errors import ConfigurationError


def put_between(page: str, begin: str, end: str, text: str) -> str:
    """Replace what stands between two marks; ConfigurationError without them."""
    first, last = page.find(begin), page.find(end)
    if not 0 <= first < last:
        raise ConfigurationError(
            "The page has no place for the tables",
            got="no marks",
            expected=f"a line {begin} and a line {end}",
            fix="write both lines where the tables belong",
        )
    return f"{page[: first + len(begin)]}\n{text}{page[last:]}"
