"""`export --trt`: a bundle gets engines for a GPU that is not there, proved by what they mean."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil

import pytest

pytest.importorskip("onnxscript", reason="needs the extra [export]")
pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra [trt-rtx]")

from tiny_export import make_run

from training.commands import export as command
from training.export import compile as compile_module
from training.export.bundle import export_run
from training.export.engines import export_engines
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ConfigurationError, ExportError
from vla_align_ros.runtime.limits import GoldenLimits


def quietly(_line):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Where this test's builds are kept, in place of the user's own cache."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "vla_align_ros" / "builds"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The same tiny policy in fp32 and with weights in 8 bits."""
    folder = tmp_path_factory.mktemp("bundles")
    run = make_run(folder / "run")
    for precision in ("fp32", "int8"):
        export_run(run, folder / precision, precision, say=quietly)
    return folder


@pytest.fixture
def bundle(bundles, tmp_path):
    return shutil.copytree(bundles / "fp32", tmp_path / "bundle")


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_command(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = command.run(parser.parse_args([str(word) for word in words]))
    return json.loads(json.dumps(result)), printed.getvalue()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8", "auto"])
def test_each_precision_is_proved_and_built_the_same_on_repeat(bundle, precision):
    before = files(bundle)
    words = ("--trt", "--bundle", bundle, "--target", "sm89", "--precision", precision)
    result, printed = run_command(*words)
    assert result["ok"] and result["proof"]["ok"] and "unproven until it ran there" in printed
    opened = Bundle.open(bundle)
    assert opened.engine_targets() == ["sm89"]
    engines = opened.engine("sm89")
    assert (engines.precision, engines.facts["architecture"]) == (precision, "sm89")
    assert engines.gates["graphs"]["ok"] and "device" not in engines.gates
    first = engines.engine_path("policy").read_bytes()
    assert len(first) > 10_000
    run_command(*words)
    assert opened.engine("sm89").engine_path("policy").read_bytes() == first
    kept = {name: content for name, content in files(bundle).items() if "engines/" not in name}
    assert kept == before, "the bundle itself is as it was"


def count_builds(monkeypatch):
    """Note each build that TensorRT is asked for."""
    real, built = compile_module._run_build, []

    def run_build(*arguments):
        built.append(arguments[2].name)
        return real(*arguments)

    monkeypatch.setattr(compile_module, "_run_build", run_build)
    return built


def test_engines_of_the_same_graphs_are_built_once_whatever_bundle_they_are_for(
    bundle, cache, monkeypatch
):
    built = count_builds(monkeypatch)
    copy = shutil.copytree(bundle, bundle.with_name("copy"))
    for path in (bundle, bundle, copy):
        export_engines(path, "sm89", "bf16", say=quietly)
    assert built == ["sm89"]
    one, other = (Bundle.open(path).engine("sm89").engine_path("policy") for path in (bundle, copy))
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_nlink == 1, "what lies in a bundle is the bundle's alone"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_can_reach_is_not_used(bundle, cache, monkeypatch):
    export_engines(bundle, "sm89", "bf16", say=quietly)
    cache.chmod(0o770)
    built = count_builds(monkeypatch)
    with pytest.warns(RuntimeWarning, match="not the user's alone"):
        export_engines(bundle, "sm89", "bf16", say=quietly)
    assert built == ["sm89"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--precision", "int8_dynamic"),
        ("--target", "sm1"),
        ("--trt-option", "speed=11"),
        ("--block", "48"),
    ],
)
def test_engines_that_cannot_be_asked_for_are_refused_before_a_run_is_exported(
    bundles, tmp_path, wrong
):
    words = (bundles / "run", "--out", tmp_path / "b", "--trt", "--target", "sm89", *wrong)
    with pytest.raises((ConfigurationError, ExportError)):
        run_command(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_engines_fail_a_gate_leaves_its_bundle_and_says_how_to_go_on(bundles, tmp_path):
    out = tmp_path / "b"
    words = (bundles / "run", "--out", out, "--trt", "--target", "sm89", "--precision", "int4")
    with pytest.raises(ExportError, match=f"bundle {out} was exported.*--trt --bundle {out}"):
        run_command(*words, "--block", "32")
    assert Bundle.open(out).engine_targets() == []
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("precision", ["int8", "auto_weights"])
def test_several_targets_of_a_bundle_whose_weights_are_in_8_bits(bundles, tmp_path, precision):
    path = tmp_path / "bundle"
    export_run(bundles / "run", path, precision, say=quietly)
    export_engines(path, "sm86,sm120", "bf16", options=["builderOptimizationLevel=1"], say=quietly)
    opened = Bundle.open(path)
    assert opened.engine_targets() == ["sm120", "sm86"]
    assert opened.engine("sm120").facts["scheme"] == "bfloat16"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_becomes_a_bundle_with_engines_in_one_command(bundles, tmp_path):
    out = tmp_path / "bundle"
    words = (bundles / "run", "--out", out, "--trt", "--target", "sm80", "--precision", "bf16")
    result, printed = run_command(*words)
    assert result["export"]["precision"] == "fp32" and result["precision"] == "bf16"
    assert Bundle.open(out).engine("sm80").precision == "bf16"
    assert printed.count("proved") >= 2


def test_a_failed_gate_leaves_the_bundle_and_its_old_engines(bundle, monkeypatch):
    export_engines(bundle, "sm89", "bf16", say=quietly)
    before = files(bundle)
    strict = {"int8": GoldenLimits(0.0, 0.0, 0.0, noise=0.0, agreement=1.0)}
    monkeypatch.setattr("vla_align_ros.runtime.limits.GOLDEN_LIMITS", strict)
    with pytest.raises(ExportError, match="fails its proof"):
        export_engines(bundle, "sm89", "int8", say=quietly)
    assert files(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_auto_keeps_the_worst_parts_until_the_gates_pass(bundle, monkeypatch):
    """A limit that int8 misses by little: some parts stay, not all, and the table says which."""
    worst = export_engines(bundle, "sm89", "int8", say=quietly)["proof"]["dimensions"]
    dims = {name: row["max"] for name, row in worst.items()}
    millimetres = 0.9 * max(dims["dx"], dims["dy"], dims["dz"])
    strict = {"auto": GoldenLimits(millimetres, 2.0, 0.1, noise=100.0, agreement=0.0)}
    monkeypatch.setattr("vla_align_ros.runtime.limits.GOLDEN_LIMITS", strict)
    result = export_engines(bundle, "sm89", "auto", say=quietly)
    kept = [row["kept"] for row in result["sensitivity"]]
    assert any(kept) and kept == sorted(kept, reverse=True), "the worst first"
    errors = [row["error_alone"] for row in result["sensitivity"]]
    assert errors == sorted(errors, reverse=True)
    assert result["proof"]["ok"]


def test_a_bundle_with_rounded_activations_is_no_source(bundles, tmp_path):
    export_run(bundles / "run", tmp_path / "b", "int8_dynamic", say=quietly)
    with pytest.raises(ExportError, match="engines in bf16 cannot be made of this bundle"):
        export_engines(tmp_path / "b", "sm89", "bf16", say=quietly)


def test_engines_in_fp32_of_weights_that_are_rounded_are_refused_before_any_work(bundles):
    said = []
    with pytest.raises(ExportError, match="got a bundle in int8; expected one in fp32; fix"):
        export_engines(bundles / "int8", "sm89", "fp32", say=said.append)
    assert said == []


def test_int4_that_moves_the_arm_too_far_is_refused_with_what_would_do(bundle):
    with pytest.raises(ExportError, match=r"dx off by .* mm.*auto"):
        export_engines(bundle, "sm89", "int4", block=32, say=quietly)
    assert Bundle.open(bundle).engine_targets() == []
