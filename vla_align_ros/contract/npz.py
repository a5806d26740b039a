"""Archives of plain arrays, judged by their headers before anything is unpacked or allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

_VERSION = (1, 0)  # of others a header may have 4 GiB, which numpy reads before it looks at them


def read_layout(path: Path) -> Layout:
    """Read only the headers of an .npz file: {name: (shape, dtype)}; nothing is unpickled.

    ValueError, or whatever hostile bytes make these parsers raise, if it is none of plain arrays.
    """
    layout = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                if version != _VERSION or not member.endswith(".npy"):
                    raise ValueError(f"{member} is no array of a known format")
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype.hasobject:
                raise ValueError(f"{member} holds pickled objects")
            if any(extent < 0 for extent in shape):
                raise ValueError(f"{member} has the shape {shape}")
            layout[member.removesuffix(".npy")] = (shape, dtype)
    return layout


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an .npz file, with pickle disabled; raises as ``read_layout`` does."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def count_bytes(layout: Layout) -> int:
    """Return how much memory the arrays take."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
