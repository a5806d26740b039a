"""Engines behind one small seam: numpy in, numpy out; each loads its library only when opened."""

from __future__ import annotations

from vla_align_ros.inference.base import BACKENDS, Backend, check_inputs, open_backend
from vla_align_ros.inference.fake import FakeBackend

__all__ = ["BACKENDS", "Backend", "FakeBackend", "check_inputs", "open_backend"]
