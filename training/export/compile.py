"""From an ONNX graph to an engine: on its own device, or ahead of time with no GPU at all.

Needs neither torch nor onnx, so that a robot builds from a bundle alone.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.export.compile_cache import (
    BuiltEngine,
    engine_key,
    hash_graph,
    keep_engine,
    take_engine,
)
from training.export.compile_options import apply_options, set_defaults
from training.export.compile_progress import PhaseTracker, ProgressLine, Report, make_monitor
from training.export.compile_target import Target, resolve_target
from training.export.compile_timings import TimingCache
from training.files import replace_atomically
from vla_align_ros.errors import ConfigurationError, ExportError
from vla_align_ros.inference.tensorrt.library import Library, get_logger, read_dtype

WAIT_S = 0.2

Tensors = tuple[dict[str, Any], ...]


def build_engine(
    onnx: Path | str,
    out: Path | str,
    target: str | Target,
    options: Mapping[str, str] | None = None,
    progress: Report | None = None,
    *,
    cache: Path | None = None,
) -> BuiltEngine:
    """Build one engine; ``out`` appears whole or not at all.

    Ctrl-C stops the build at TensorRT's next step. A build whose graph, weights, target, library
    and options are those of an earlier one in ``cache`` takes that one's engine.

    Args:
        onnx: the graph, static, its types being those that run; weights may lie in a file beside
            it. out: the engine's path. target: "sm89" or another of ``AHEAD_OF_TIME`` (needs no
            GPU), or "device". options: see ``compile_options.parse_options``. progress: told of
            each step; by default a line on standard error. cache: folder of timings and engines.

    Raises:
        ExportError: if TensorRT cannot read or build the graph, or the disk is full.
        ConfigurationError: for a wrong target or option. BackendError: without library or GPU.
    """
    onnx, out = Path(onnx), Path(out)
    chosen = resolve_target(target) if isinstance(target, str) else target
    given = dict(options or {})
    onnx_sha256 = hash_graph(onnx)
    key = engine_key(onnx_sha256, chosen, given)
    kept = None if cache is None else cache / "engines" / key
    if kept is not None and (found := take_engine(kept, out, key)) is not None:
        return found
    line = ProgressLine(f"{onnx.stem} for {chosen.name}")
    tracker = PhaseTracker(line if progress is None else progress)
    try:
        inputs, outputs = _run_build(onnx, out, chosen, given, tracker, cache)
    finally:
        line.close()
    library = chosen.library
    built = BuiltEngine(
        *(out, chosen.name, library.name, library.version, onnx_sha256),
        *(inputs, outputs, given, key),
    )
    if kept is not None:
        keep_engine(built, kept)
    return built


def _run_build(
    onnx: Path,
    out: Path,
    target: Target,
    options: Mapping[str, str],
    tracker: PhaseTracker,
    cache: Path | None,
) -> tuple[Tensors, Tensors]:
    """Build in a thread of its own, so that Ctrl-C reaches this one while TensorRT computes."""
    outcome: dict[str, Any] = {}
    done = threading.Event()  # not Thread.join: when interrupted, that takes the thread for ended

    def work() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of a library, about itself
                outcome["tensors"] = _build(onnx, out, target, options, tracker, cache)
        except BaseException as failure:
            outcome["failure"] = failure
        finally:
            done.set()

    threading.Thread(target=work, name="engine build", daemon=True).start()
    try:
        while not done.wait(WAIT_S):
            pass
    except BaseException:
        tracker.cancelled = True
        done.wait()
        raise
    if "failure" in outcome:
        raise outcome["failure"]
    return outcome["tensors"]  # type: ignore[no-any-return]


def _build(
    onnx: Path,
    out: Path,
    target: Target,
    options: Mapping[str, str],
    tracker: PhaseTracker,
    cache: Path | None,
) -> tuple[Tensors, Tensors]:
    """Parse, build and write; every object of TensorRT lives and dies in here."""
    library = target.library
    trt = library.module
    logger = get_logger(library)
    logger.take_errors()
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    set_defaults(library, config)
    _set_target(library, config, target)
    apply_options(library, config, options)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise _explain_parsing(library, onnx, parser, logger.take_errors())
    inputs = tuple(_describe(network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(_describe(network.get_output(i)) for i in range(network.num_outputs))
    monitor = make_monitor(library, tracker)
    config.progress_monitor = monitor
    timings = TimingCache(cache, target) if library.keeps_timings and cache is not None else None
    if timings is not None:
        timings.attach(config)
    serialized = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if serialized is None:
        raise _explain_building(library, onnx, target, logger.take_errors(), tracker.cancelled)
    if timings is not None:
        timings.save(config)
    _write(out, memoryview(serialized))
    return inputs, outputs


def _set_target(library: Library, config: Any, target: Target) -> None:
    """Fix the GPU that TensorRT-RTX builds for; the full TensorRT builds for the one that is here.

    An engine that is to be captured in a CUDA graph may allocate nothing while it runs.
    """
    if not library.builds_without_gpu:
        return
    trt = library.module
    capability = getattr(trt.ComputeCapability, target.name.upper(), None)
    config.num_compute_capabilities = 1
    if capability is None or not config.set_compute_capability(capability, 0):
        raise ConfigurationError(
            f"{library.title} does not build for {target.name}",
            got=target.name,
            expected=" or ".join(n.lower() for n in trt.ComputeCapability.__members__ if "SM" in n),
        )
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _describe(tensor: Any) -> dict[str, Any]:
    """Return the JSON form of a network's tensor; ExportError if its shape is not fixed."""
    shape = [int(extent) for extent in tensor.shape]
    if any(extent < 0 for extent in shape):
        raise ExportError(
            f"tensor {tensor.name!r} of the graph has no fixed shape",
            got=shape,
            expected="static shapes, batch 1",
            fix="export the policy again",
        )
    return {"name": tensor.name, "dtype": read_dtype(tensor.dtype), "shape": shape}


def _explain_parsing(library: Library, onnx: Path, parser: Any, errors: list[str]) -> ExportError:
    """Turn the parser's list of errors into one that names the node."""
    count = parser.num_errors
    if not count:
        return ExportError(
            f"{library.title} cannot read {onnx.name}",
            got=errors[-1] if errors else "no reason given",
            expected="an ONNX file, and its weights beside it",
        )
    error = parser.get_error(count - 1)
    name, operator = error.node_name(), error.node_operator()
    place = f"node {name!r} ({operator}): " if name else ""
    return ExportError(
        f"{library.title} cannot compile {onnx.name}",
        got=f"{place}{error.desc()}",
        expected="operators and types that it has",
        fix="choose another --precision, or report the node with the version of TensorRT",
    )


def _explain_building(
    library: Library, onnx: Path, target: Target, errors: list[str], cancelled: bool
) -> BaseException:
    if cancelled:
        return KeyboardInterrupt("the build was stopped")
    return ExportError(
        f"{library.title} cannot build {onnx.name} for {target.name}",
        got=errors[-1] if errors else "no reason given",
        expected="types and sizes that this GPU has",
        fix="choose another --precision, or give --trt-option memPoolSize=workspace:SIZE more",
    )


def _write(out: Path, content: memoryview) -> None:
    try:
        with replace_atomically(out) as temporary, temporary.open("wb") as stream:
            stream.write(content)
    except OSError as cause:
        raise ExportError(
            "engine cannot be written",
            got=cause,
            expected=f"{content.nbytes / 1e6:.0f} MB at {out}",
            fix="make room, or choose another folder",
        ) from cause
