"""Two ranks are the run of one: replicated or sharded, stopped by a signal, resumed by another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from tiny_run import EIGHT, needs_teacher, read_scalars, read_state, read_weights

from training.checkpoint import list_checkpoints
from training.setup_run import RunParts
from training.train import train

pytestmark = [needs_teacher, pytest.mark.usefixtures("one_thread")]
WAIT_S = 900.0
BATCH = 8


@pytest.fixture(scope="module")
def work(tabletop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks ran every scenario of ranks_worker.py."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("ranks_worker.py")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(worker), str(tabletop_data), str(folder)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def one(tabletop_data: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one process, uninterrupted; which samples it used is in samples.json."""
    out = tmp_path_factory.mktemp("one")
    (out / "samples.json").write_text(json.dumps(run_alone(tabletop_data, out, work)))
    return out


def run_alone(data: Path, out: Path, work: Path, *settings: str) -> list[list[int]]:
    """Train (on) here; returns the samples of every step."""
    seen: list[list[int]] = []
    load = RunParts.load

    def note(self: RunParts, indices: Any, **options: Any) -> Any:
        if "passes" in options:
            seen.append(indices.tolist())
        return load(self, indices, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunParts, "load", note)
        options = (*EIGHT, "data.workers=0", "watch.every_steps=0", *settings)
        train("debug_cpu", [data], out, settings=options, cache=work / "cache", progress=False)
    return seen


def read_left(work: Path, name: str) -> list[Any]:
    """What each of the two ranks left."""
    return [json.loads((work / f"{name}.{rank}.json").read_text()) for rank in range(2)]


def assert_near(one: Path, other: Path) -> None:
    """The same weights but for the order in which gradients are added up."""
    alone, shared = read_weights(one), read_weights(other)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "pieces"])
def test_two_ranks_train_the_batch_of_one(work: Path, one: Path, name: str) -> None:
    assert_near(one, work / name)
    told, expected = (json.loads((run / "run.json").read_text()) for run in (work / name, one))
    assert told["samples"] == expected["samples"] == 8 * BATCH and told["ranks"] == 2
    for key in (key for key in expected if key.startswith("val/")):
        assert told[key] == pytest.approx(expected[key], rel=1e-2, abs=1e-3), key
    parts = ("loss/total", "loss/action", "align/cosine_layer_1", "optim/grad_norm")
    ours, theirs = read_scalars(work / name), read_scalars(one)
    for part in parts:  # the mean over the ranks
        assert ours[part][-1][1] == pytest.approx(theirs[part][-1][1], rel=1e-2), part
    caches = list((work / "cache").glob("*.npy"))  # pictures, and two features in two precisions
    assert len(caches) == 5


def test_bf16_shards_train_too(work: Path, one: Path) -> None:
    half, alone = read_weights(work / "half"), read_weights(one)
    assert {value.dtype for value in half.values()} == {torch.float32}
    before = read_state(work / "half")["history"]
    assert before[-1]["val/l1"] < before[0]["val/l1"]
    for name, value in alone.items():
        assert (half[name] - value).abs().max() < 0.02, name


def test_shards_are_saved_as_shards_and_put_together_without_the_projector(work: Path) -> None:
    newest = list_checkpoints(work / "fsdp" / "checkpoints")[-1]
    assert {path.name for path in newest.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    stored = read_state(work / "fsdp")["tensors"]
    assert any("aligner.projectors" in name for name in stored)
    assert not any("projectors." in name for name in read_weights(work / "fsdp"))
    for name, value in read_weights(work / "fsdp").items():
        assert torch.equal(value, stored[f"objective/model.{name}"])
    readings = sorted(path.name for path in (work / "fsdp" / "sight").glob("step_*.json"))
    assert readings == ["step_00000000.json", "step_00000008.json"]


def test_a_signal_to_one_rank_stops_both_and_one_process_goes_on_with_the_next_sample(
    work: Path, one: Path, tabletop_data: Path
) -> None:
    for told in read_left(work, "stopped"):
        assert "SIGTERM" in told["stopped"] or "another rank" in told["stopped"]
    stopped = work / "stopped"
    assert not (stopped / "run.json").exists()
    state = read_state(stopped)
    assert (state["step"], state["world"]) == (5, 2)
    first, second = read_left(work, "stopped_samples")
    before = [one_rank + other for one_rank, other in zip(first, second, strict=True)]
    after = run_alone(tabletop_data, stopped, work, "parallel.strategy=fsdp")
    expected = json.loads((one / "samples.json").read_text())
    assert [len(step) for step in before] == [BATCH] * 5 and len(after) == 3
    assert before + after == expected  # none twice, none left out, in the very same order
    assert_near(one, stopped)


def test_a_number_that_is_not_finite_on_one_rank_stops_both_and_names_its_samples(
    work: Path, one: Path, tabletop_data: Path
) -> None:
    told, told_by_other = read_left(work, "spoilt")
    _, samples = read_left(work, "spoilt_samples")
    assert told == told_by_other
    assert "The loss is not finite at step 5: got" in told
    assert f"on samples {sorted(samples[5])};" in told
    assert read_state(work / "spoilt")["step"] == 5
    after = run_alone(tabletop_data, work / "spoilt", work)
    assert after == json.loads((one / "samples.json").read_text())[5:]
    assert_near(one, work / "spoilt")
