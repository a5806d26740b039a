"""The policy bundle: written at once or not at all, opened only if every byte is what was written.

A bundle is data. Opening one parses JSON, array headers, a tokenizer file and where its graphs'
weights lie, and executes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vla_align_ros.contract import golden as golden_samples
from vla_align_ros.contract.engines import EngineSet, engine_folder, list_targets
from vla_align_ros.contract.external_data import check_external_data
from vla_align_ros.contract.files import (
    lock_folder,
    read_json_object,
    readable_json,
    replace_in_bundle,
    sync_path,
    write_durably,
)
from vla_align_ros.contract.graphs import GraphSpec, check_graphs, chunk_graphs
from vla_align_ros.contract.manifest import (
    MANIFEST_NAME,
    REFETCH,
    REPORT_NAME,
    check_consistency,
    check_files,
    list_files,
    read_manifest,
    write_manifest,
)
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.sight import (
    GRAPH,
    SIGHT_NAME,
    SightStatistics,
    check_sight_file,
    pack_sight,
    read_sight,
)
from vla_align_ros.contract.spec import PolicySpec
from vla_align_ros.errors import BundleError, ContractError

GOLDEN_NAME = "golden.npz"

_GRAPH_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Bundle:
    """An opened bundle, whose files matched their hashes when it was opened. Use ``Bundle.open``.

    Attributes:
        path: the folder. manifest: content of manifest.json. id: sha256 over the sorted
        (path, sha256) lines, in hex. processor: the policy's ``Processor``.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], processor: Processor) -> None:
        self.path = path
        self.manifest = manifest
        self.processor = processor
        self.id: str = manifest["id"]

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle after checking schema, paths, sizes and the sha256 of every file.

        Raises:
            BundleError: if it is no bundle of this schema, a file is missing, extra, altered,
                truncated, a link, or would need pickle, or a graph reads a file that has no hash.
        """
        try:
            root = Path(path).resolve()
            there = root.is_dir()
        except (OSError, RuntimeError, ValueError) as cause:
            raise BundleError("bundle cannot be opened", got=cause, expected="a folder") from cause
        if not there:
            raise BundleError(
                "bundle cannot be opened",
                got=f"no folder {path}",
                expected=f"a folder with a {MANIFEST_NAME}",
                fix="check the path",
            )
        present = list_files(root)
        manifest = read_manifest(root, present)
        check_files(root, manifest["files"], present)
        try:
            processor = Processor.load(root)
        except ContractError as cause:
            raise BundleError(
                "bundle's processor cannot be used", got=cause, fix=REFETCH
            ) from cause
        check_consistency(manifest, processor)
        for graph in manifest["graphs"].values():
            check_external_data(root, graph["path"], manifest["files"])
        golden_samples.check_golden_layout(
            golden_samples.read_golden_layout(root / GOLDEN_NAME), processor.spec
        )
        _check_sight(GRAPH in manifest["graphs"], SIGHT_NAME in manifest["files"])
        if SIGHT_NAME in manifest["files"]:
            check_sight_file(root / SIGHT_NAME)
        return cls(root, manifest, processor)

    @property
    def short_id(self) -> str:
        """First 12 digits of the id, for people."""
        return self.id[:12]

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and does."""
        return self.processor.spec

    @property
    def limits(self) -> dict[str, float]:
        """Limits of motion that the policy asks for, by ``MOTION_LIMITS``; often none."""
        return dict(self.manifest.get("limits", {}))

    def graph_path(self, name: str = "policy") -> Path:
        """Return the path of a graph; BundleError, naming those there are, if it is missing."""
        if name not in self.manifest["graphs"]:
            raise BundleError(
                "bundle has no such graph", got=repr(name), expected=sorted(self.manifest["graphs"])
            )
        return self.path / str(self.manifest["graphs"][name]["path"])

    @property
    def acting_graphs(self) -> tuple[GraphSpec, ...]:
        """The graphs that act, in the order in which they run."""
        return check_graphs(self.manifest["graphs"], self.processor)

    def engine_targets(self) -> list[str]:
        """Return the GPU architectures that there are engines for, such as ["sm86", "sm89"]."""
        return list_targets(self.path)

    def engine(self, target: str) -> EngineSet:
        """Open the engines for a target, checking every hash and that they are this bundle's.

        Raises:
            BundleError: if there are none, or they are damaged, linked or another bundle's; it
                names the command that builds them.
        """
        return EngineSet.open(engine_folder(self.path, target), self.id)

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Read the golden samples (see ``golden.check_golden_layout`` for names and shapes)."""
        return golden_samples.read_golden(self.path / GOLDEN_NAME)

    def sight(self) -> SightStatistics | None:
        """Read what is known of familiar scenes; None if the bundle has no sight graph."""
        return read_sight(self.path / SIGHT_NAME) if GRAPH in self.manifest["graphs"] else None

    def report(self) -> dict[str, Any]:
        """Read report.json, {} if there is none; BundleError if it belongs to another bundle."""
        if not (self.path / REPORT_NAME).exists():
            return {}
        report = read_json_object(self.path / REPORT_NAME, BundleError)
        if report.get("bundle_id") != self.id:
            raise BundleError(
                "report belongs to another bundle",
                got=report.get("bundle_id"),
                expected=self.id,
                fix=f"delete {self.path / REPORT_NAME} and verify again",
            )
        return report

    def add_report(self, report: Mapping[str, Any]) -> None:
        """Put sections into report.json, replacing those of the same name, in one step.

        The report is outside of the bundle's id: it is about the bundle, not a part of it.

        Raises:
            BundleError: if it cannot be written there, or the report is another bundle's.
        """
        self.change_report(lambda kept: report)

    def change_report(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Put the sections that ``change`` makes of the present report into it, likewise.

        What others put there at the same time is kept: they wait.
        """
        with lock_folder(self.path):
            kept = self.report()
            content = readable_json({**kept, **change(kept), "bundle_id": self.id})
            replace_in_bundle(self.path, REPORT_NAME, content)


def write_bundle(
    dest: Path | str,
    *,
    processor: Processor,
    graphs: Mapping[str, Path | str],
    specs: Sequence[GraphSpec] | None = None,
    golden: Mapping[str, npt.ArrayLike],
    provenance: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    limits: Mapping[str, float] | None = None,
    link: bool = False,
    sight: SightStatistics | None = None,
) -> Bundle:
    """Write a bundle beside ``dest``, open it as a robot would, and only then move it to ``dest``.

    Args:
        dest: folder that must not exist yet.
        processor: of the policy. graphs: ONNX files by name; weights in a file beside one, named
            ``<file>.data``, are taken along. specs: of the graphs that act, in order; by default
            those of a chunk policy in one graph.
        golden: raw observations and reference actions (see ``golden.check_golden_layout``).
        provenance: where the policy comes from: JSON, with "precision" (such as "fp32") in it.
        report: sections for report.json, if any.
        limits: of motion, that a robot shall keep beside its own (see ``check_motion_limits``).
        link: whether the graphs' files are linked rather than copied; nothing may change them then.
        sight: statistics of familiar scenes, exactly where there is a graph "sight".

    Raises:
        BundleError: if ``dest`` exists, or the result would not open; then nothing is left behind.
        ContractError: if the provenance or the report has no exact JSON form, or a limit is none;
            the same holds.
    """
    target = Path(dest).absolute()
    if os.path.lexists(target):
        raise BundleError(
            "bundle exists already",
            got=str(target),
            expected="a new path",
            fix="remove it or choose another name",
        )
    acting = chunk_graphs(processor) if specs is None else tuple(specs)
    wanted = {spec.name for spec in acting}
    if not wanted <= set(graphs) or not all(_GRAPH_NAME.fullmatch(name) for name in graphs):
        raise BundleError(
            "bundle has the wrong graphs",
            got=sorted(graphs),
            expected=f"{sorted(wanted)} among lower-case names",
        )
    if not isinstance(provenance.get("precision"), str):
        raise BundleError(
            "provenance lacks the precision", got=sorted(provenance), expected="the key 'precision'"
        )
    temporary = _make_beside(target)
    try:
        processor.save(temporary)
        if sight is not None:
            write_durably(temporary / SIGHT_NAME, pack_sight(sight))
        write_durably(temporary / GOLDEN_NAME, golden_samples.pack_golden(golden, processor.spec))
        entries = {
            name: _copy_graph(temporary, name, Path(path), link) for name, path in graphs.items()
        }
        for spec in acting:
            entries[spec.name] |= spec.to_dict()
        write_manifest(temporary, processor, entries, provenance, limits)
        written = Bundle.open(temporary)
        if report is not None:
            written.add_report(report)
        temporary.chmod(0o755)
        for folder in (temporary / "model", temporary / "tokenizer", temporary):
            sync_path(folder)
        os.rename(temporary, target)
        sync_path(target.parent)
    except OSError as cause:
        raise BundleError("bundle cannot be written", got=cause, expected=str(target)) from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(target.resolve(), written.manifest, written.processor)


def _make_beside(target: Path) -> Path:
    """Make a folder for a bundle to grow in, beside where it will lie."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as cause:
        raise BundleError("bundle cannot be written", got=cause, expected=str(target)) from cause


def _check_sight(graph: bool, statistics: bool) -> None:
    if graph != statistics:
        raise BundleError(
            "bundle's sight is incomplete",
            got=f"graph {'there' if graph else 'missing'}, "
            f"{SIGHT_NAME} {'there' if statistics else 'missing'}",
            expected="both or neither",
            fix=REFETCH,
        )


def _copy_graph(root: Path, name: str, source: Path, link: bool) -> dict[str, Any]:
    folder = root / "model"
    folder.mkdir(exist_ok=True)
    copies = [(source, folder / f"{name}.onnx")]
    weights = source.with_name(source.name + ".data")
    if weights.exists():
        copies.append((weights, folder / weights.name))
    for origin, copy in copies:
        if copy.exists():
            raise BundleError(
                "two graphs share a file name", got=copy.name, fix="give their weights other names"
            )
        if link:
            os.link(origin.resolve(), copy)  # never a link that leads to it
        else:
            shutil.copyfile(origin, copy)
        sync_path(copy)
    return {"path": f"model/{name}.onnx"}
