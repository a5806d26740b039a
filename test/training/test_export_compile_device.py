"""Building on a device with the full TensorRT: no GPU is here, so its builder is a fake.

The fake of each version offers only what that version's bindings have, and refuses all else.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from training.export import compile_target
from training.export.compile import build_engine
from training.export.compile_target import Target, resolve_target
from training.export.compile_timings import TimingCache
from training.export.engines import check_order
from vla_align_ros.errors import BackendError, ConfigurationError, ExportError
from vla_align_ros.inference.tensorrt.device import Device
from vla_align_ros.inference.tensorrt.library import RTX, TENSORRT, Library

API = json.loads((Path(__file__).parents[1] / "tensorrt_api.json").read_text())
FULL = [version for version in API if version.startswith("tensorrt ")]


class Offered:
    """Refuses every name that the real class of this version does not have."""

    def __init__(self, version: str, kind: str, **values: object) -> None:
        object.__setattr__(self, "_known", {*API[version][kind].split()})
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        assert name in self._known, f"this version has no {name}"
        object.__setattr__(self, name, value)


class Cache:
    """A timing cache: a set of layers, refused where it was made elsewhere."""

    def __init__(self, content: bytes) -> None:
        self.layers = set(content.decode().split(",")) - {""}

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.layers |= other.layers
        return True

    def serialize(self) -> bytes:
        return ",".join(sorted(self.layers)).encode()


def make_builder(version: str, journal: list[object], layer: str = "conv") -> ModuleType:
    """Return a module like ``tensorrt`` whose builder times one layer and gives its flags."""
    held: dict[str, Cache] = {}

    def set_timing_cache(cache: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        held["cache"] = cache
        return "foreign" not in cache.layers

    def build(network: object, config: Offered) -> bytes:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if "cache" in held:
            journal.append(("known", sorted(held["cache"].layers)))
            held["cache"].layers.add(layer)
        return b"engine"

    def make_network(flags: int) -> object:
        journal.append(("flags", flags))
        tensor = SimpleNamespace(name="x", shape=(1, 2), dtype="DataType.FLOAT")
        ends = {"num_inputs": 1, "num_outputs": 1}
        return SimpleNamespace(get_input=lambda i: tensor, get_output=lambda i: tensor, **ends)

    module = ModuleType("tensorrt")
    module.__version__ = version.split()[1]
    assert "TF32" in API[version]["BuilderFlag"].split()
    module.BuilderFlag = SimpleNamespace(TF32="TF32")
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.ILogger = type("ILogger", (), {})
    levels = API[version]["ILogger.Severity"].split()
    module.ILogger.Severity = SimpleNamespace(**{level: level for level in levels})
    module.IProgressMonitor = type("IProgressMonitor", (), {})
    config = {
        "set_timing_cache": set_timing_cache,
        "create_timing_cache": Cache,
        "clear_flag": lambda flag: journal.append(("cleared", flag)),
    }
    calls = {
        "create_builder_config": lambda: Offered(version, "IBuilderConfig", **config),
        "create_network": make_network,
        "build_serialized_network": build,
    }
    module.Builder = lambda logger: Offered(version, "Builder", **calls)
    parser = {"parse_from_file": lambda path: True, "num_errors": 0}
    module.OnnxParser = lambda network, logger: Offered(version, "OnnxParser", **parser)
    return module


@pytest.fixture
def graph(tmp_path) -> Path:
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    return tmp_path / "graph.onnx"


def target(version: str, journal: list[object], **options: str) -> Target:
    module = make_builder(version, journal, **options)
    return Target("sm87", Library(TENSORRT, version.split()[1], module), "Orin")


def build(graph: Path, chosen: Target, cache: Path | None = None):
    return build_engine(graph, graph.parent / "out", chosen, progress=lambda _: None, cache=cache)


@pytest.mark.parametrize("version", FULL)
def test_every_version_builds_strongly_typed_with_what_it_has(graph, version):
    journal: list[object] = []
    built = build(graph, target(version, journal))
    assert journal[0] == ("cleared", "TF32"), "which is on by default"
    assert journal[1:] == [("flags", 1 << 1)], "the types in the graph are the types that run"
    assert built.path.read_bytes() == b"engine"
    assert (built.target, built.library) == ("sm87", "tensorrt")
    assert built.library_version == version.split()[1]


def test_timings_are_kept_between_builds_of_one_version_and_gpu(graph, tmp_path):
    journal: list[object] = []
    cache = tmp_path / "cache"
    build(graph, target(FULL[0], journal, layer="conv"), cache)
    graph.write_bytes(b"another graph")
    build(graph, target(FULL[0], journal, layer="matmul"), cache)
    graph.write_bytes(b"a third")
    build(graph, target(FULL[0], journal), cache)
    build(graph, target(FULL[1], journal), cache)
    known = [what for kind, what in journal if kind == "known"]
    assert known == [[], ["conv"], ["conv", "matmul"], []]
    assert len([path for path in (cache / "timings").iterdir() if path.suffix != ".lock"]) == 2


def test_timings_of_another_build_at_the_same_time_are_not_lost(tmp_path):
    here, there = (TimingCache(tmp_path, target(FULL[0], [])) for _ in range(2))
    for timings, layer in ((here, "one"), (there, "two")):
        timings.attach(SimpleNamespace(create_timing_cache=Cache, set_timing_cache=lambda *_: True))
        timings._cache.layers.add(layer)
    for timings in (here, there):
        timings.save(SimpleNamespace(create_timing_cache=Cache))
    assert here.read() == b"one,two"


def test_timings_of_other_settings_are_left_alone(graph, tmp_path, monkeypatch):
    journal: list[object] = []
    build(graph, target(FULL[0], journal), tmp_path)
    graph.write_bytes(b"another graph")
    monkeypatch.setattr("training.export.compile_timings.SETTINGS", -1)
    build(graph, target(FULL[0], journal), tmp_path)
    assert [what for kind, what in journal if kind == "known"] == [[], []]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", bytes.upper])
def test_damaged_timings_are_dropped_and_foreign_ones_refused(graph, tmp_path, damage):
    journal: list[object] = []
    build(graph, target(FULL[0], journal), tmp_path)
    timings = TimingCache(tmp_path, target(FULL[0], journal))
    timings.path.write_bytes(damage(timings.path.read_bytes()))
    assert timings.read() == b""
    graph.write_bytes(b"next")
    build(graph, target(FULL[0], journal, layer="foreign"), tmp_path)
    graph.write_bytes(b"after")
    build(graph, target(FULL[0], journal), tmp_path)
    known = [what for kind, what in journal if kind == "known"]
    assert known == [[], [], []], "what the library refuses is begun anew"


def test_a_build_that_tensorrt_gives_up_is_one_clear_error(graph, monkeypatch):
    chosen = target(FULL[0], [])
    monkeypatch.setattr(
        chosen.library.module,
        "OnnxParser",
        lambda *_: SimpleNamespace(parse_from_file=lambda path: False, num_errors=0),
    )
    with pytest.raises(ExportError, match=r"TensorRT 10\.3\.0 cannot read graph\.onnx"):
        build(graph, chosen)


@pytest.mark.parametrize("installed", [[TENSORRT, RTX], [RTX]])
def test_a_device_is_built_for_with_the_full_library_where_there_is_one(monkeypatch, installed):
    device = Device("Some GPU", "sm89", 1 << 33, "13.0")
    monkeypatch.setattr(compile_target, "describe_device", lambda: device)
    monkeypatch.setattr(compile_target, "installed_libraries", lambda: installed)
    monkeypatch.setattr(compile_target, "find_library", lambda name: Library(name, "10.3", None))
    chosen = resolve_target("device")
    assert (chosen.name, chosen.device) == ("sm89", "Some GPU")
    assert chosen.library.name == installed[0]


def test_the_gpu_here_is_not_built_for_under_two_names(monkeypatch):
    device = Device("Some GPU", "sm89", 1 << 33, "13.0")
    monkeypatch.setattr(compile_target, "describe_device", lambda: device)
    monkeypatch.setattr(compile_target, "installed_libraries", lambda: [TENSORRT, RTX])
    monkeypatch.setattr(compile_target, "find_library", lambda name: Library(name, "10.3", None))
    with pytest.raises(ConfigurationError, match=r"named twice: got device,sm89, where device is"):
        check_order("device,sm89", "bf16")
    chosen = check_order("device,sm86", "bf16").targets
    assert [target.name for target in chosen] == ["sm89", "sm86"]


def test_a_gpu_that_the_small_library_does_not_know_is_answered_with_the_full_one(monkeypatch):
    device = Device("Orin", "sm87", 1 << 36, "12.6")
    monkeypatch.setattr(compile_target, "describe_device", lambda: device)
    monkeypatch.setattr(compile_target, "installed_libraries", lambda: [RTX])
    monkeypatch.setattr(compile_target, "find_library", lambda name: Library(name, "1.7", None))
    with pytest.raises(BackendError, match=r"Orin \(sm87\).*install the full TensorRT"):
        resolve_target("device")
