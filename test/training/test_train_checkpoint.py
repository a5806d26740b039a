"""A checkpoint is whole or not there, whatever moment a process dies at, and runs no code."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.checkpoint import (
    KEEP,
    CheckpointReader,
    clean_checkpoints,
    list_checkpoints,
    save_checkpoint,
)
from training.parallel import Ranks
from training.state import collect_tensors, restore_tensors, sum_bits
from vla_align_ros.errors import TrainingError

TENSORS = {
    "weights": torch.linspace(-3, 7, 12).reshape(3, 4),
    "half": torch.arange(5).to(torch.bfloat16),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
}

WRITER = """
    import os, sys, time
    from pathlib import Path
    import torch
    from training.checkpoint import CheckpointReader, list_checkpoints, save_checkpoint

    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:              # each line: one child that is to be killed
        child = os.fork()
        if child == 0:
            found = list_checkpoints(folder)
            step = CheckpointReader(found[-1]).state["step"] if found else 0
            while True:
                step += 1
                tensors = {f"t{i}": torch.full((40, 1000), float(step)) for i in range(4)}
                save_checkpoint(folder, step, tensors, {"step": step})
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
"""


def test_what_is_saved_comes_back_bit_for_bit_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save_checkpoint(tmp_path, step, TENSORS, {"step": step, "nested": {"a": [1.5, None]}})
    kept = list_checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step_00000008", "step_00000012"] and KEEP == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in kept]
    reader = CheckpointReader(kept[-1])
    assert reader.state == {"step": 12, "nested": {"a": [1.5, None]}}
    read = reader.read("")
    assert read.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value)


def test_a_writer_killed_at_random_moments_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    script, folder = tmp_path / "writer.py", tmp_path / "checkpoints"
    script.write_text(textwrap.dedent(WRITER))
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None and process.stdout is not None
    moments, newest, left_over, kills = random.Random(7), 0, 0, 0
    deadline_s = time.monotonic() + 300.0  # on a busy machine little is written between two kills
    assert process.stdout.readline() == "ready\n"
    while (kills < 25 or newest < 6 or left_over < 4) and time.monotonic() < deadline_s:
        kills += 1
        process.stdin.write("go\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        signal.sigtimedwait([], moments.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        assert process.stdout.readline() == "dead\n"
        found = list_checkpoints(folder)
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        left_over += len(names) > len(found)
        for path in found:  # every one that has a good name is whole
            reader = CheckpointReader(path)
            assert path.name == f"step_{reader.state['step']:08d}"
            for value in reader.read("").values():
                assert value.eq(float(reader.state["step"])).all()
        if found:
            assert CheckpointReader(found[-1]).state["step"] >= newest
            newest = CheckpointReader(found[-1]).state["step"]
    process.communicate()
    assert (
        kills >= 25 and newest > 5 and left_over > 3
    )  # it was caught in the middle, and went on all the same
    clean_checkpoints(folder)
    assert {path.name for path in folder.iterdir()} == {p.name for p in list_checkpoints(folder)}


class Killed(BaseException):
    """What stands for a kill: nothing after it runs."""


@pytest.mark.parametrize("survived", range(6))
def test_a_step_that_is_saved_again_is_there_whatever_moment_the_writer_dies_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, TENSORS, {"step": step})
    calls = 0

    def dies(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > survived:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Path, "rename", dies(Path.rename))
        patch.setattr(shutil, "rmtree", dies(shutil.rmtree))
        save_checkpoint(tmp_path, 2, TENSORS, {"step": 2})
    clean_checkpoints(tmp_path)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step_00000001", "step_00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    reader = CheckpointReader(tmp_path / names[-1])
    assert reader.state == {"step": 2} and torch.equal(reader.read("")["bytes"], TENSORS["bytes"])


@pytest.mark.parametrize("victim", ["state.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_damaged_checkpoint_is_one_error_that_says_what_to_delete(
    tmp_path: Path, victim: str, damage: str
) -> None:
    path = save_checkpoint(tmp_path, 3, TENSORS, {"step": 3}) / victim
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"something else")
    with pytest.raises(TrainingError, match=r"cannot be read.*delete step_00000003; the one befor"):
        CheckpointReader(tmp_path / "step_00000003").read("")


def test_a_checkpoint_that_finds_no_room_is_one_error_and_leaves_none_of_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, TENSORS, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))  # as a full disk, to a file
    try:
        with pytest.raises(
            TrainingError,
            match=r"step 2 cannot be written: got .* MB are free; .*goes on from step_00000001",
        ):
            save_checkpoint(tmp_path, 2, {"large": torch.zeros(1 << 20)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert CheckpointReader(tmp_path / "step_00000001").state == {"step": 1}


def test_a_table_of_contents_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, TENSORS, {"step": 3})
    proof = tmp_path / "proof"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {proof}",))

    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(TrainingError, match="system in a checkpoint's table of contents"):
        CheckpointReader(path)
    assert not proof.exists()


def test_checkpoints_of_an_older_version_are_named_and_refused(tmp_path: Path) -> None:
    (tmp_path / "step_00000020.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"older version: got step_00000020\.pt.*another --out"):
        list_checkpoints(tmp_path)


def test_other_shapes_and_other_weights_are_named(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    tensors, plain = collect_tensors(net, optimizer, Ranks(), lambda name: True)
    reader = CheckpointReader(save_checkpoint(tmp_path, 1, tensors, {"optimizer": plain}))
    wide, named = torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.Linear(3, 2))
    for other, told in ((wide, r"weight \[4, 3\].*\[2, 3\]"), (named, "4 weights in only one")):
        with pytest.raises(TrainingError, match=told):
            restore_tensors(reader, other, torch.optim.AdamW(other.parameters()), Ranks(), bool, {})


@pytest.mark.parametrize("key", ["fused", "capturable", None])
def test_the_count_of_steps_comes_back_where_the_optimizer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """A fused AdamW, as on a GPU, refuses a count on the CPU; "meta" stands in for the GPU."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors, plain = collect_tensors(net, optimizer, Ranks(), lambda name: True)
    reader = CheckpointReader(save_checkpoint(tmp_path, 1, tensors, {"optimizer": plain}))
    monkeypatch.setattr(reader, "fill", lambda tensors: None)
    there = torch.nn.Linear(3, 2, device="meta")
    fresh = torch.optim.AdamW(there.parameters())
    fresh.param_groups[0] |= {key: True} if key else {}
    restore_tensors(reader, there, fresh, Ranks(rank=1), bool, {})  # without random states
    for values in fresh.state.values():
        devices = {name: value.device.type for name, value in values.items()}
        assert devices == {
            "step": "meta" if key else "cpu",
            "exp_avg": "meta",
            "exp_avg_sq": "meta",
        }


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_the_checksum_of_frozen_weights_sees_every_bit_and_no_order(data: st.DataObject) -> None:
    numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    weights = {name: torch.tensor(data.draw(numbers)).to(dtype) for name in ("a", "b.c")}
    total = sum_bits(weights)
    assert sum_bits(dict(reversed(weights.items()))) == total
    assert sum_bits({name: w.reshape(-1, 1) for name, w in weights.items()}) == total
    name = data.draw(st.sampled_from(sorted(weights)))
    place = data.draw(st.integers(0, len(weights[name]) - 1))
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    weights[name].view(kind)[place] ^= 1 << data.draw(st.integers(0, 14))
    assert sum_bits(weights) != total
