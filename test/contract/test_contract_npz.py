"""Archives of arrays are judged by their headers: what they would take is known before it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_align_ros.contract.npz import count_bytes, read_arrays, read_layout


def test_what_all_arrays_take_together_is_told_by_their_headers(tmp_path: Path) -> None:
    path = tmp_path / "any.npz"
    np.savez_compressed(
        path,
        square=np.zeros((300, 300)),
        number=np.int16(3),
        words=np.array(["a", "words"]),
        none=np.zeros((0, 9)),
    )
    taken = sum(array.nbytes for array in read_arrays(path).values())
    assert count_bytes(read_layout(path)) == taken == 300 * 300 * 8 + 2 + 2 * 5 * 4
