"""Which proofs count as passed."""

from __future__ import annotations

from typing import Any

import pytest

from vla_align_ros.runtime.table import is_proved


@pytest.mark.parametrize(
    ("proof", "proved"),
    [
        ({"ok": True}, True),
        ({"ok": True, "behaviour": None}, True),
        ({"ok": True, "behaviour": {"ok": True}}, True),
        ({"ok": True, "behaviour": {"ok": False}}, False),
        ({"ok": True, "behaviour": {}}, False),
        ({"ok": True, "behaviour": "passed"}, False),
        ({"ok": True, "behaviour": []}, False),
        ({"ok": False, "behaviour": {"ok": True}}, False),
        ({}, False),
    ],
)
def test_a_proof_counts_when_every_gate_says_so(proof: dict[str, Any], proved: bool) -> None:
    assert is_proved(proof) is proved
