"""The memory that the page tells for OpenVLA-7B follows from its published shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.dry_run import read_published_tensors
from training.export.compile_memory import reckon_memory

PAGE = Path(__file__).resolve().parents[2] / "docs/export.md"


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_the_page_tells_what_the_shapes_say(precision):
    memory = reckon_memory(read_published_tensors(), precision, rows=300, row_values=32 * 32 * 128)
    parts = (memory.vision, memory.language, memory.chunk, memory.cache, memory.tokens)
    row = f"| {precision} | " + " | ".join(f"{part / 1e9:.1f}" for part in parts) + " |"
    assert row in PAGE.read_text().splitlines()


def test_a_small_model_is_added_up_by_hand():
    shapes = {
        "language_model.q_proj.weight": (8, 256),
        "language_model.embed_tokens.weight": (10, 256),
        "language_model.norm.weight": (256,),
        "projector.fc1.weight": (4, 8),
    }
    int4 = reckon_memory(shapes, "int4", block=128)
    assert int4.language == 8 * 256 * 0.5 + 8 * 2 * 2 + (2560 + 256) * 2
    assert int4.vision == 32 * 0.5 + 32 * 2 / 128
    fp32 = reckon_memory(shapes, "fp32", rows=3, row_values=5)
    assert fp32.language == 4 * (8 * 256 + 2560 + 256) and fp32.cache == 2 * 4 * 15
    assert fp32.tokens == fp32.vision + 2 * fp32.language + fp32.cache
    assert fp32.chunk == fp32.vision + fp32.language
