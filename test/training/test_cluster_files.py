"""The cluster files start training as torchrun does, and queue it again while it must go on."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from training.commands.train import add_arguments

CLUSTER = Path(__file__).resolve().parents[2] / "config" / "cluster"
SRUN = """#!/usr/bin/env bash
echo "$1 $2" > "$LOG/srun"
shift 2
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NTASKS=4 "$@" || exit 1
done
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'gpu-a\\ngpu-b\\n'; else echo "$@" >> "$LOG/scontrol"; fi
"""
PYTHON = """#!/usr/bin/env python3
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
with open(os.path.join(os.environ["LOG"], "python"), "a") as file:
    file.write(json.dumps({"args": sys.argv[1:], **{n: os.environ[n] for n in names}}) + "\\n")
if os.environ.get("FINISHES"):
    open(os.environ["OUT"] + "/run.json", "w").close()
sys.exit(int(os.environ.get("STATUS", "0")))
"""


def run_job(folder: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the Slurm script with Slurm's two commands and the Python of a venv replaced."""
    out, log = folder / "out", folder / "log"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("venv/bin/python", PYTHON)):
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    out.mkdir()
    log.mkdir()
    own = {
        **{"LOG": str(log), "OUT": str(out), "VENV": str(folder / "bin" / "venv")},
        **{"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "gpu-[a-b]"},
        **{"SLURM_SUBMIT_DIR": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
    }
    return subprocess.run(
        ["bash", str(CLUSTER / "train.sbatch"), "debug_cpu", "data/a b", str(out), *settings],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_slurm_starts_one_process_a_gpu_with_what_torchrun_would_set(tmp_path: Path) -> None:
    done = run_job(tmp_path, "seed=1", "parallel.strategy=fsdp", FINISHES="yes")
    assert done.returncode == 0, done.stderr
    started = [json.loads(line) for line in (tmp_path / "log/python").read_text().splitlines()]
    assert [(p["RANK"], p["LOCAL_RANK"], p["WORLD_SIZE"]) for p in started] == [
        (str(rank), str(rank % 2), "4") for rank in range(4)
    ]
    assert {(p["MASTER_ADDR"], p["MASTER_PORT"]) for p in started} == {("gpu-a", "32345")}
    expected = ["-m", "training.train", "--recipe", "debug_cpu", "--data", "data/a b", "--out"]
    settings = ["--set", "seed=1", "parallel.strategy=fsdp"]
    assert all(p["args"] == [*expected, str(tmp_path / "out"), *settings] for p in started)
    assert (tmp_path / "log/srun").read_text() == "--ntasks-per-node=2 --kill-on-bad-exit=1\n"
    assert not (tmp_path / "log/scontrol").exists()


def test_slurm_queues_a_stopped_run_again_and_a_failed_one_not(tmp_path: Path) -> None:
    (tmp_path / "stopped").mkdir()
    assert run_job(tmp_path / "stopped").returncode == 0
    assert (tmp_path / "stopped/log/scontrol").read_text() == "requeue 12345\n"
    args = json.loads((tmp_path / "stopped/log/python").read_text().splitlines()[0])["args"]
    assert "--set" not in args
    (tmp_path / "failed").mkdir()
    assert run_job(tmp_path / "failed", STATUS="1").returncode != 0
    assert not (tmp_path / "failed/log/scontrol").exists()


def test_the_kubernetes_job_is_one_pod_a_node_and_waits_for_the_checkpoint() -> None:
    import argparse

    service, job = yaml.safe_load_all((CLUSTER / "train-job.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    words = container["args"][0].split()
    assert words[:2] == ["exec", "torchrun"]  # the signal must reach torchrun
    options = dict(itertools.pairwise(words))
    assert int(options["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(options["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
    assert options["--rdzv-endpoint"].startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words[words.index("training.train") + 1 :])
    assert args.recipe == "openvla_7b_align" and "parallel.strategy=fsdp" in args.set


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_cluster_files_are_not_too_wide(path: Path) -> None:
    assert max(map(len, path.read_text().splitlines())) <= 130
