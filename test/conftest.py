"""Puts sample_policy on the path of every test below, and keeps property tests off the clock."""

from __future__ import annotations

from hypothesis import settings

# A loaded machine is slow, not wrong; print_blob lets anyone repeat a failure exactly.
settings.register_profile("repository", deadline=None, print_blob=True)
settings.load_profile("repository")
