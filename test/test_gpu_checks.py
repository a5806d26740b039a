"""scripts/gpu_checks asks for what exists, keeps what it hears, and ends what takes too long."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_align_ros.cli import build_parser, find_commands

ROOT = Path(__file__).resolve().parents[1]
RECORDER = f"""#!{sys.executable}
import json, os, sys, time
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "train":  # leaves its last checkpoint
    run = sys.argv[sys.argv.index("--out") + 1]
    os.makedirs(run + "/checkpoints/step_00000010", exist_ok=True)
print("working")
time.sleep(float(os.environ.get("SLOW", "0")))
rows = os.environ.get("ROWS", "onnx torch_cuda").split()
print(json.dumps({{"ok": True, "asked": sys.argv[1], "rows": rows}}))
sys.exit(sys.argv[1] == os.environ.get("FAILING"))
"""


def run_checks(folder: Path, *words: str, **variables: str) -> tuple[int, str, list[list[str]]]:
    """Exit status, what the script said, and what `vla-align` was asked for."""
    program, calls = folder / "vla-align", folder / "calls"
    program.write_text(RECORDER)
    program.chmod(0o755)
    calls.write_text("")
    done = subprocess.run(
        [str(ROOT / "scripts/gpu_checks"), *words],
        capture_output=True,
        text=True,
        timeout=100,
        env={
            **os.environ,
            **{"CALLS": str(calls), "VLA_ALIGN": str(program), "PYTHON": sys.executable},
            **{"DATA": str(folder / "data"), **variables},
        },
    )
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    return done.returncode, done.stdout + done.stderr, asked


def test_every_command_parses_and_every_setting_is_the_recipes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra [train]")
    from training.commands import bench_training
    from training.recipes import find_recipe
    from training.settings import override

    (tmp_path / "data").mkdir()
    names = ["doctor", "infer_7b", "lora", "lora_kept", "lora_one", "qlora", "full_adamw8bit"]
    names += ["full", "train", "bundle", "tensorrt"]
    status, said, asked = run_checks(tmp_path, str(tmp_path / "out"), *names)
    assert status == 0, said
    trained = []
    for words in asked:
        args = build_parser(find_commands(), words[0]).parse_args(words)
        if words[:2] == ["bench", "training"]:
            inner = argparse.ArgumentParser()
            bench_training.add_arguments(inner)
            args = inner.parse_args([word for word in words[2:] if word != "--json"])
        if "--recipe" in words:
            trained.append(override(find_recipe(args.recipe), args.set))
    assert [config.adapter.kind for config in trained] == ["lora"] * 4 + ["none"] * 2 + ["lora"] * 2
    assert trained[-1] == trained[-2], "a run goes on by the same command"
    assert {config.teacher.name for config in trained} == {f"radio:{tmp_path}/out/work/radio"}
    verbs = [words[0] for words in asked]
    trains = ["doctor", *["bench"] * 7, "train", "train"]
    assert verbs == [*trains, "bench", *["export", "verify"] * 3, "bench"]


@pytest.mark.parametrize(
    ("precision", "made"),
    [("fp32", ["fp32", "bf16", "fp16", "auto"]), ("int8", ["bf16", "fp16", "auto"])],
)
def test_engines_in_fp32_are_asked_of_a_bundle_in_fp32_alone(
    tmp_path: Path, precision: str, made: list[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    manifest = {"provenance": {"precision": precision}}
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(manifest))
    out, bundle = str(tmp_path / "out"), str(tmp_path / "bundle")
    status, said, asked = run_checks(tmp_path, out, "tensorrt", BUNDLE=bundle)
    assert status == 0, said
    exports = [words for words in asked if words[0] == "export"]
    assert [words[words.index("--precision") + 1] for words in exports] == made


def test_figures_and_logs_are_kept_and_a_failure_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, _ = run_checks(tmp_path, str(out), "doctor", "bundle", FAILING="doctor")
    assert status == 1 and "doctor: status 1" in said and "failed: doctor\n" in said
    assert "bundle: status 0" in said and "working" in (out / "bundle.log").read_text()
    told = {"ok": True, "asked": "bench", "rows": ["onnx", "torch_cuda"]}
    assert json.loads((out / "bundle.json").read_text()) == told


def test_a_bundle_that_no_gpu_ran_is_no_check_of_one(tmp_path: Path) -> None:
    status, said, _ = run_checks(tmp_path, str(tmp_path / "out"), "bundle", ROWS="onnx openvino")
    assert status == 1 and "failed: bundle" in said


def test_a_check_that_takes_too_long_is_ended_and_the_next_one_runs(tmp_path: Path) -> None:
    start_s = time.monotonic()
    out = str(tmp_path / "out")
    status, said, asked = run_checks(tmp_path, out, "lora", "bundle", SLOW="60", LIMIT="1")
    assert status == 1 and "failed: lora bundle" in said and len(asked) == 2
    assert time.monotonic() - start_s < 50


@pytest.mark.parametrize("words", [[], ["out", "nonsense"], ["--help"]])
def test_what_it_does_not_know_is_answered_with_its_checks(tmp_path: Path, words) -> None:
    status, said, asked = run_checks(tmp_path, *words)
    assert status == 2 and "checks: doctor driver" in said and not asked


def test_random_weights_have_the_published_layouts(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra [train]")
    from training.alignment.teachers import TeacherConfig, build_teacher
    from training.model.openvla import load_openvla

    program = [sys.executable, str(ROOT / "scripts/random_weights"), str(tmp_path), "--small"]
    subprocess.run(program, check=True, capture_output=True, timeout=100)
    opened = load_openvla(tmp_path / "openvla", dtype=torch.bfloat16)
    assert all(parameter.isfinite().all() for parameter in opened.model.parameters())
    config = TeacherConfig(name=f"radio:{tmp_path / 'radio'}")
    assert build_teacher(config, torch.bfloat16, "cpu").width == 24
