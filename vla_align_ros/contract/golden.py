"""The golden samples of a bundle: raw observations with the actions of training's own model."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.npz import Layout, count_bytes, read_arrays, read_layout
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import BundleError

MAX_GOLDEN_BYTES = 1 << 30


def check_golden_layout(layout: Layout, spec: PolicySpec) -> int:
    """Check names, shapes and dtypes of golden arrays; return the number of samples.

    Expected: ``image_<camera>`` (N, H, W, 3) uint8 each, ``state`` (N, D) float32 if the policy has
    one, ``instruction`` (N,) str, ``reference_actions`` (N, horizon, 7) float64, N from 1; if it
    takes committed actions ``committed`` (N, C, 7) float64, and ``committed_count`` (N,) int64 of
    how many of them each sample tells.

    Raises:
        BundleError: if an array is missing, superfluous or of another form.
    """
    wanted = {f"image_{camera.name}" for camera in spec.cameras} | {
        "instruction",
        "reference_actions",
    }
    if spec.state is not None:
        wanted.add("state")
    if spec.action.committed:
        wanted |= {"committed", "committed_count"}
    if set(layout) != wanted:
        raise BundleError(
            "golden samples have the wrong arrays", got=sorted(layout), expected=sorted(wanted)
        )
    total = count_bytes(layout)
    if total > MAX_GOLDEN_BYTES:
        raise BundleError(
            "golden samples are too large",
            got=f"{total} bytes",
            expected=f"up to {MAX_GOLDEN_BYTES}",
        )
    count = layout["reference_actions"][0][0] if layout["reference_actions"][0] else 0
    for name, (shape, dtype) in layout.items():
        if name.startswith("image_"):
            valid = dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and 0 not in shape
            expected = f"uint8 ({count}, H, W, 3)"
        elif name == "instruction":
            valid, expected = dtype.kind == "U" and len(shape) == 1, f"unicode text ({count},)"
        elif name == "state":
            dim = spec.state.dim if spec.state is not None else 0
            valid, expected = (
                dtype == np.float32 and shape[1:] == (dim,),
                f"float32 ({count}, {dim})",
            )
        elif name == "committed_count":
            valid, expected = dtype == np.int64 and len(shape) == 1, f"int64 ({count},)"
        else:
            steps = spec.action.committed if name == "committed" else spec.action.horizon
            tail = (steps, spec.action.dim)
            valid, expected = (
                dtype == np.float64 and shape[1:] == tail,
                f"float64 (N, {tail[0]}, {tail[1]})",
            )
        if not valid or not shape or shape[0] != count or count < 1:
            raise BundleError(
                f"golden array {name!r} has the wrong form",
                got=f"{dtype} {shape}",
                expected=expected,
            )
    return count


def read_golden_layout(path: Path) -> Layout:
    """Read only the headers of an .npz file: {name: (shape, dtype)}; nothing is unpickled.

    Raises:
        BundleError: if it is no .npz file, or an array would need pickle.
    """
    try:
        return read_layout(path)
    except Exception as cause:
        raise _refuse(cause) from cause


def read_golden(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all golden arrays, with pickle disabled; BundleError if that cannot be done."""
    try:
        return read_arrays(path)
    except Exception as cause:
        raise _refuse(cause) from cause


def pack_golden(arrays: Mapping[str, npt.ArrayLike], spec: PolicySpec) -> bytes:
    """Check golden arrays and return the bytes of an .npz file, the same for the same arrays."""
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    check_golden_layout({name: (value.shape, value.dtype) for name, value in plain.items()}, spec)
    buffer = io.BytesIO()
    # The layout has no objects, so nothing is pickled (`allow_pickle=False` came with numpy 2.1).
    ordered: dict[str, Any] = {name: plain[name] for name in sorted(plain)}
    np.savez_compressed(buffer, **ordered)
    return buffer.getvalue()


def iterate_observations(
    arrays: Mapping[str, npt.NDArray[Any]], spec: PolicySpec
) -> Iterator[Observation]:
    """Give each golden sample as the observation that a robot would have made, stamped 0 s."""
    for index, instruction in enumerate(arrays["instruction"]):
        committed = None
        if spec.action.committed:
            committed = arrays["committed"][index][: max(0, arrays["committed_count"][index])]
        yield Observation(
            images={camera.name: arrays[f"image_{camera.name}"][index] for camera in spec.cameras},
            state=None if spec.state is None else arrays["state"][index],
            instruction=str(instruction),
            stamp_s=0.0,
            committed=committed,
        )


def _refuse(cause: Exception) -> BundleError:
    return BundleError(
        "golden samples cannot be read",
        got=cause,
        expected="an .npz file of plain arrays, without pickle",
    )
