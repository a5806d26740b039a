"""Golden samples: plain arrays of exactly the policy's form, never a pickle."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_policy import HORIZON, INSTRUCTIONS, make_golden, make_processor, make_spec

from vla_align_ros.contract import golden
from vla_align_ros.errors import BundleError


@pytest.fixture
def processor():
    return make_processor()


def test_arrays_come_back_bit_for_bit_and_the_file_is_the_same_each_time(tmp_path, processor):
    arrays = make_golden(processor)
    content = golden.pack_golden(arrays, processor.spec)
    assert content == golden.pack_golden(dict(reversed(arrays.items())), processor.spec)
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    back = golden.read_golden(path)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert golden.check_golden_layout(golden.read_golden_layout(path), processor.spec) == 3


def test_samples_come_back_as_observations(processor):
    arrays = make_golden(processor)
    seen = list(golden.iterate_observations(arrays, processor.spec))
    assert [one.instruction for one in seen] == [INSTRUCTIONS[i % 2] for i in range(3)]
    np.testing.assert_array_equal(seen[2].images["front"], arrays["image_front"][2])
    np.testing.assert_array_equal(seen[2].state, arrays["state"][2])


def test_committed_actions_come_back_as_many_as_each_sample_tells(processor):
    spec = make_spec(committed=2)
    arrays = make_golden(processor)
    with pytest.raises(BundleError, match="wrong arrays"):
        golden.pack_golden(arrays, spec)
    arrays["committed"] = np.random.default_rng(0).normal(size=(3, 2, 7))
    arrays["committed_count"] = np.array([0, 2, 1])
    golden.pack_golden(arrays, spec)
    seen = list(golden.iterate_observations(arrays, spec))
    assert [len(one.committed) for one in seen] == [0, 2, 1]
    np.testing.assert_array_equal(seen[2].committed, arrays["committed"][2, :1])
    for name, wrong in (("committed", np.zeros((3, 3, 7))), ("committed_count", np.zeros(3))):
        with pytest.raises(BundleError, match=f"'{name}' has the wrong form"):
            golden.pack_golden({**arrays, name: wrong}, spec)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image_front", lambda a: a.astype(np.float32)),
        ("image_front", lambda a: a[..., :1]),
        ("image_front", lambda a: a[:1]),
        ("state", lambda a: a.astype(np.float64)),
        ("state", lambda a: a[:, :3]),
        ("instruction", lambda a: a.astype(object)),
        ("instruction", lambda a: np.array([b"x"] * 3)),
        ("instruction", lambda a: a[0]),
        ("reference_actions", lambda a: a.astype(np.float32)),
        ("reference_actions", lambda a: a[:, : HORIZON - 1]),
        ("reference_actions", lambda a: a[0, 0, 0]),
        ("reference_actions", lambda a: a[:0]),
    ],
)
def test_arrays_of_another_form_are_refused(processor, name, change):
    arrays = make_golden(processor)
    arrays[name] = change(arrays[name])
    with pytest.raises(BundleError, match="expected"):
        golden.pack_golden(arrays, processor.spec)


@pytest.mark.parametrize("name", ["image_front", "state", "instruction", "reference_actions"])
def test_missing_and_superfluous_arrays_are_refused(processor, name):
    arrays = make_golden(processor)
    with pytest.raises(BundleError, match="wrong arrays"):
        golden.pack_golden({**arrays, "other": np.zeros(3)}, processor.spec)
    del arrays[name]
    with pytest.raises(BundleError, match="wrong arrays"):
        golden.pack_golden(arrays, processor.spec)


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickled_array_is_refused_and_never_unpickled(tmp_path):
    touched = tmp_path / "touched"
    path = tmp_path / "golden.npz"
    np.savez(path, instruction=np.array([Trap(touched)], dtype=object))
    for read in (golden.read_golden, golden.read_golden_layout):
        with pytest.raises(BundleError, match="without pickle"):
            read(path)
    assert not touched.exists()
    np.load(path, allow_pickle=True)["instruction"]
    assert touched.exists(), "the trap itself must work, or this test proves nothing"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip", b"\x80\x04K\x01."])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    for read in (golden.read_golden, golden.read_golden_layout):
        with pytest.raises(BundleError, match="golden samples cannot be read"):
            read(path)


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state.npy", b"import os")
    with pytest.raises(BundleError, match="golden samples cannot be read"):
        golden.read_golden_layout(path)
    with zipfile.ZipFile(path, "w") as archive:
        stream = io.BytesIO()
        np.save(stream, np.zeros(3))
        archive.writestr("../state", stream.getvalue())
    with pytest.raises(BundleError, match="golden samples cannot be read"):
        golden.read_golden_layout(path)


def test_an_array_too_large_for_memory_is_refused_by_its_header(processor):
    layout = {name: (a.shape, a.dtype) for name, a in make_golden(processor).items()}
    layout["image_front"] = ((3, 10**6, 10**6, 3), np.dtype(np.uint8))
    with pytest.raises(BundleError, match="too large"):
        golden.check_golden_layout(layout, processor.spec)


def test_a_negative_extent_does_not_hide_a_large_array(tmp_path):
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape in (("state", (10**9, 7)), ("image_front", (-(10**9), 7))):
            header = io.BytesIO()
            facts = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, facts)
            archive.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(BundleError, match=r"image_front.npy has the shape \(-1000000000, 7\)"):
        golden.read_golden_layout(path)


def test_a_header_that_would_fill_the_memory_is_refused_unread(tmp_path):
    path, size = tmp_path / "golden.npz", 64 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state.npy", b"\x93NUMPY\2\0" + struct.pack("<I", size) + bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="no array of a known format"):
            golden.read_golden_layout(path)
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4), st.booleans())
def test_whatever_stands_in_the_file_only_bundle_errors_come_out(
    tmp_path, processor, place, odd, compressed
):
    path = tmp_path / "golden.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, state=np.zeros((2, 7), np.float32))
    content = bytearray(path.read_bytes())
    index = int(place * len(content))
    content[index : index + len(odd)] = odd
    path.write_bytes(content)
    for read in (golden.read_golden_layout, golden.read_golden):
        try:
            read(path)
        except BundleError as error:
            assert "cannot be read" in str(error)
