"""Builder options have trtexec's names, set what they say, and refuse what they do not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.export.compile_options import OPTIONS, apply_options, parse_options, read_bytes
from training.export.compile_target import parse_targets, resolve_target
from vla_align_ros.contract.engines import AHEAD_OF_TIME
from vla_align_ros.errors import BackendError, ConfigurationError
from vla_align_ros.inference.tensorrt.library import (
    RTX,
    TENSORRT,
    Library,
    find_library,
    installed_libraries,
)

needs_rtx = pytest.mark.skipif(
    RTX not in installed_libraries(), reason="TensorRT-RTX is not installed: extra trt-rtx"
)
API = json.loads((Path(__file__).parents[1] / "tensorrt_api.json").read_text())


@pytest.fixture(scope="module")
def rtx():
    library = find_library(RTX)
    builder = library.module.Builder(library.module.Logger())
    return library, builder.create_builder_config()


def test_words_become_options():
    words = ["memPoolSize=workspace:4096M,tacticDRAM:1G", "--noTF32", "avgTiming=4"]
    assert parse_options(words) == {
        "memPoolSize": "workspace:4096M,tacticDRAM:1G",
        "noTF32": "",
        "avgTiming": "4",
    }
    assert parse_options([]) == {}


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError) as refused:
        parse_options(["memPool=1"])
    for name in OPTIONS:
        assert name in str(refused.value)
    with pytest.raises(ConfigurationError, match="twice"):
        parse_options(["noTF32", "noTF32"])


@pytest.mark.parametrize("word", ["fp16", "--int8", "bf16", "best", "calib=cache"])
def test_a_precision_is_no_option_since_the_graph_decides(word):
    with pytest.raises(ConfigurationError, match=r"no builder option.*fix: drop it"):
        parse_options([word])


@settings(max_examples=50)
@given(st.sampled_from([*OPTIONS, "fp8"]) | st.text(max_size=20), st.text(max_size=20))
def test_any_word_is_read_or_refused_with_one_error(name, value):
    try:
        options = parse_options([f"{name}={value}"])
    except ConfigurationError:
        return
    assert set(options) <= set(OPTIONS)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096M", 1 << 32), ("4G", 1 << 32), ("1", 1 << 20), ("512MiB", 1 << 29), ("7B", 7)],
)
def test_sizes_are_read_as_trtexec_reads_them(text, size):
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1M", "1T", "nan", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="no size"):
        read_bytes(text)


@needs_rtx
@pytest.mark.parametrize(
    ("word", "attribute", "value"),
    [
        ("maxAuxStreams=2", "max_aux_streams", 2),
        ("builderOptimizationLevel=4", "builder_optimization_level", 4),
        ("avgTiming=3", "avg_timing_iterations", 3),
        ("maxTactics=7", "max_num_tactics", 7),
        ("l2LimitForTiling=2M", "l2_limit_for_tiling", 1 << 21),
    ],
)
def test_numbers_reach_the_configuration(rtx, word, attribute, value):
    library, config = rtx
    apply_options(library, config, parse_options([word]))
    assert getattr(config, attribute) == value


@needs_rtx
def test_pools_flags_and_names_reach_the_configuration(rtx):
    library, config = rtx
    trt = library.module
    words = ["memPoolSize=workspace:96M", "sparsity=enable", "noTF32", "tilingOptimizationLevel=2"]
    words += ["profilingVerbosity=detailed", "previewFeatures=+RUNTIME_ACTIVATION_RESIZE_10_10"]
    apply_options(library, config, parse_options([*words, "tacticSources=-JIT_CONVOLUTIONS"]))
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 96 << 20
    assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.get_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10)
    assert not config.get_tactic_sources() >> int(trt.TacticSource.JIT_CONVOLUTIONS) & 1


@needs_rtx
@pytest.mark.parametrize(
    "word",
    [
        "maxAuxStreams=-3",
        "maxAuxStreams=many",
        "memPoolSize=workspace",
        "memPoolSize=scratch:1M",
        "memPoolSize=tacticSharedMem:900G",
        "noTF32=yes",
        "sparsity=force",
        "tilingOptimizationLevel=9",
        "profilingVerbosity=loud",
        "tacticSources=CUBLAS",
        "tacticSources=+CUDNN",
        "previewFeatures=+TELEPATHY",
        "builderOptimizationLevel=",
        "avgTiming=0",
        "l2LimitForTiling=9999999999999G",
    ],
)
def test_a_value_that_cannot_be_set_is_refused_with_the_form(rtx, word):
    library, config = rtx
    with pytest.raises(ConfigurationError, match=r"cannot be set: got .*expected"):
        apply_options(library, config, parse_options([word]))


@pytest.mark.parametrize("version", [name for name in API if name.startswith("tensorrt ")])
def test_an_option_is_refused_only_where_the_library_lacks_it(version):
    class Config:
        """Has the attributes of that version's IBuilderConfig, and no others."""

        def __getattr__(self, name: str) -> object:
            if name in API[version]["IBuilderConfig"].split():
                return 0
            raise AttributeError(name)

    library = Library(TENSORRT, version.split()[1], None)
    for name in ("maxTactics", "tilingOptimizationLevel", "l2LimitForTiling"):
        lacks = not hasattr(Config(), OPTIONS[name].needs)
        assert lacks == (version == "tensorrt 10.3.0")
        if lacks:
            with pytest.raises(ConfigurationError, match=f"TensorRT 10.3.0 has no option {name}"):
                apply_options(library, Config(), {name: "1"})


# -- targets ------------------------------------------------------------------------------------
def test_targets_are_split_in_order_each_once():
    assert parse_targets("sm120, SM86,sm120") == ["sm120", "sm86"]
    assert parse_targets("device") == ["device"]


@pytest.mark.parametrize("text", ["", ",", "sm87", "sm90", "gpu", "sm86,orin", "../sm86"])
def test_other_targets_are_answered_with_what_there_is(text):
    with pytest.raises(ConfigurationError, match=r"device, or some of sm75, .*--target device"):
        parse_targets(text)


@needs_rtx
def test_the_targets_are_those_of_the_library():
    kinds = find_library(RTX).module.ComputeCapability.__members__
    assert {name.lower() for name in kinds if name.startswith("SM")} == set(AHEAD_OF_TIME)
    assert resolve_target("sm89").library.name == RTX and resolve_target("sm89").device == ""


def test_a_device_without_a_gpu_is_one_clear_error(monkeypatch):
    def none_here() -> object:
        raise BackendError("there is no NVIDIA driver")

    monkeypatch.setattr("training.export.compile_target.describe_device", none_here)
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        resolve_target("device")
