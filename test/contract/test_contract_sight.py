"""Statistics of familiar scenes: the distance is Mahalanobis', and a file is refused when wrong."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_policy import make_golden, make_graph, make_processor

from vla_align_ros.contract import manifest as manifest_module
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.contract.files import hash_file
from vla_align_ros.contract.sight import (
    SIGHT_NAME,
    SightStatistics,
    check_sight_file,
    pack_sight,
    read_sight,
)
from vla_align_ros.errors import BundleError, ContractError


def make_statistics(width: int = 3, seed: int = 0, **changes: Any) -> SightStatistics:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(width, width))
    values: dict[str, Any] = {
        "mean": rng.normal(size=width),
        "covariance": root @ root.T + np.eye(width),
        "threshold": 2.5,
        "quantile": 0.99,
        "neutral": "Describe the scene briefly.",
        "place": "layer_2",
        "fitted": 100,
        "calibrated": 20,
    }
    return SightStatistics(**{**values, **changes})


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 1000))
def test_the_distance_is_that_of_the_inverse_covariance(width: int, tokens: int, seed: int) -> None:
    statistics = make_statistics(width, seed)
    seen = np.random.default_rng(seed + 1).normal(size=(tokens, width))
    offset = seen.mean(0) - statistics.mean
    expected = np.sqrt(offset @ np.linalg.inv(statistics.covariance) @ offset)
    assert statistics.distance(seen) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_file_gives_back_what_was_packed_byte_for_byte(tmp_path: Path) -> None:
    statistics = make_statistics()
    (tmp_path / SIGHT_NAME).write_bytes(pack_sight(statistics))
    back = read_sight(tmp_path / SIGHT_NAME)
    assert pack_sight(back) == pack_sight(statistics)
    assert back.threshold == 2.5 and back.neutral == statistics.neutral and back.weights == ""
    (tmp_path / SIGHT_NAME).write_bytes(pack_sight(make_statistics(weights="0c1d")))
    assert read_sight(tmp_path / SIGHT_NAME).weights == "0c1d"
    np.testing.assert_array_equal(back.covariance, statistics.covariance)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros((3, 1))},
        {"mean": np.zeros(2)},
        {"mean": np.array([0, 0, np.nan])},
        {"covariance": -np.eye(3)},
        {"covariance": np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])},
        {"covariance": np.zeros((3, 3))},
        {"threshold": 0.0},
        {"threshold": np.inf},
        {"quantile": 1.5},
        {"neutral": ""},
    ],
)
def test_values_that_tell_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        make_statistics(**changes)


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(ContractError, match=r"\(N, 3\)"):
        make_statistics().distance(np.zeros((5, 4)))


@pytest.mark.parametrize("content", [b"", b"no archive", "pickle", "lacks", "shape"])
def test_a_hostile_file_is_refused_and_nothing_is_unpickled(content: Any, tmp_path: Path) -> None:
    path = tmp_path / SIGHT_NAME
    arrays = {
        name: np.asarray(getattr(make_statistics(), name))
        for name in ("mean", "covariance", "threshold", "quantile", "neutral", "place")
    }
    arrays.update(fitted=np.asarray(1), calibrated=np.asarray(1))
    if content == "pickle":
        arrays["place"] = np.array({"a": 1}, dtype=object)
    if content == "lacks":
        del arrays["threshold"]
    if content == "shape":
        arrays["threshold"] = np.zeros(2)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **arrays)
    with pytest.raises(BundleError, match="statistics of sight"):
        read_sight(path)


def write_headers(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A small file whose headers tell of more than it holds."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("mean", "covariance", "threshold", "quantile", "fitted", "calibrated"):
            facts = {"descr": "<f8", "fortran_order": False, "shape": shapes.get(name, ())}
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, facts)
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(8))
        for name in ("neutral", "place"):
            header = io.BytesIO()
            np.save(header, np.asarray("grey"))
            archive.writestr(f"{name}.npy", header.getvalue())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"mean": (60_000,), "covariance": (60_000, 60_000)}, "at most"),
        ({"mean": (3,), "covariance": (60_000, 60_000)}, "a mean of"),
        ({"mean": (-3,), "covariance": (-3, -3)}, "has the shape"),
    ],
)
def test_statistics_that_would_fill_the_memory_are_refused_by_their_headers(
    shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / SIGHT_NAME
    write_headers(path, shapes)
    for read in (check_sight_file, read_sight):
        with pytest.raises(BundleError, match=message):
            read(path)


def test_a_bundle_with_such_statistics_does_not_open(tmp_path: Path) -> None:
    bundle = write(tmp_path, graph=True, statistics=True)
    write_headers(bundle.path / SIGHT_NAME, {"mean": (3,), "covariance": (60_000, 60_000)})
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    sha256, size = hash_file(bundle.path / SIGHT_NAME)
    manifest["files"][SIGHT_NAME] = {"sha256": sha256, "bytes": size}
    manifest["id"] = manifest_module._compute_id(manifest["files"])
    manifest["manifest_sha256"] = manifest_module._hash_manifest(manifest)
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="statistics of sight"):
        Bundle.open(bundle.path)


def write(folder: Path, *, graph: bool, statistics: bool) -> Bundle:
    processor = make_processor()
    policy = make_graph(folder / "policy.onnx")
    return write_bundle(
        folder / "bundle",
        processor=processor,
        graphs={"policy": policy, **({"sight": policy} if graph else {})},
        golden=make_golden(processor),
        provenance={"precision": "fp32"},
        sight=make_statistics() if statistics else None,
    )


def test_a_bundle_carries_graph_and_statistics_under_its_hashes(tmp_path: Path) -> None:
    bundle = write(tmp_path, graph=True, statistics=True)
    found = Bundle.open(bundle.path).sight()
    assert found is not None and pack_sight(found) == pack_sight(make_statistics())
    path = bundle.path / SIGHT_NAME
    path.write_bytes(pack_sight(make_statistics(threshold=99.0)))
    with pytest.raises(BundleError, match="altered"):
        Bundle.open(bundle.path)


def test_a_bundle_without_sight_says_so(tmp_path: Path) -> None:
    assert write(tmp_path, graph=False, statistics=False).sight() is None


@pytest.mark.parametrize(("graph", "statistics"), [(True, False), (False, True)])
def test_half_a_sight_is_refused(graph: bool, statistics: bool, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="both or neither"):
        write(tmp_path, graph=graph, statistics=statistics)
    assert not (tmp_path / "bundle").exists()
