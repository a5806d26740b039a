"""A file of features survives any kill with at most one block lost, and two writers at once."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("tqdm", reason="needs the extra [train]")

from training.data.feature_file import fill_feature_file, open_feature_file
from vla_align_ros.errors import DataError

ROWS, BLOCK = 25, 4
# Another process that fills a file, and says after each block how far it is.
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from training.data.feature_file import fill_feature_file

path, log, pause_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def compute(start, stop):
    with log.open("a") as file:
        file.write(f"{start}\\n")
    time.sleep(pause_s)
    return np.arange(start * 6, stop * 6, dtype=np.float16).reshape(-1, 2, 3)

print(fill_feature_file(path, 25, compute, block=4))
"""


def row_values(start: int, stop: int) -> NDArray[np.float16]:
    return np.arange(start * 6, stop * 6, dtype=np.float16).reshape(-1, 2, 3)


class Network:
    """Computes `row_values`; raises KeyboardInterrupt at a row."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.starts, self.rows = stop_at, list[int](), 0

    def __call__(self, start: int, stop: int) -> NDArray[np.float16]:
        if self.stop_at is not None and start >= self.stop_at:
            raise KeyboardInterrupt
        self.starts.append(start)
        self.rows += stop - start
        return row_values(start, stop)


def interrupt(path: Path, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill_feature_file(path, ROWS, Network(at), block=BLOCK)
    assert not path.exists()


def hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def start_writer(path: Path, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(path.with_suffix(".log")), str(pause_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("rows", [1, 3, 4, 25])
def test_a_filled_file_is_the_array(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "new" / "features.npy"
    network = Network()
    assert fill_feature_file(path, rows, network, block=BLOCK) == rows == network.rows
    assert np.array_equal(open_feature_file(path, rows), row_values(0, rows))
    assert np.array_equal(np.load(path), row_values(0, rows))
    assert [item.name for item in path.parent.iterdir()] == ["features.npy"]
    assert fill_feature_file(path, rows, network, block=BLOCK) == 0 and network.rows == rows


@given(st.integers(0, ROWS - 1), st.integers(1, ROWS + 5))
@settings(deadline=None, max_examples=20)
def test_an_interrupted_file_goes_on_behind_its_last_block(at: int, other_block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        interrupt(path, at)
        kept = -(-at // BLOCK) * BLOCK
        network = Network()
        assert fill_feature_file(path, ROWS, network, block=other_block) == ROWS - kept
        assert network.starts[0] == kept
        assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))


def test_kill_9_at_any_moment_loses_one_block_at_most(tmp_path: Path) -> None:
    path, draws = tmp_path / "features.npy", random.Random(7)
    log = path.with_suffix(".log")
    log.touch()
    kills = 0
    while not path.exists() and kills < 6:
        writer = start_writer(path, 0.05)
        seen = log.stat().st_size
        deadline = time.monotonic() + 60
        while log.stat().st_size == seen and writer.poll() is None:  # until it computes
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draws.uniform(0.0, 0.16))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        kills += 1
    network = Network()
    fill_feature_file(path, ROWS, network, block=BLOCK)
    assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))
    started = [*map(int, log.read_text().split()), *network.starts]
    assert kills >= 2 and set(started) == set(range(0, ROWS, BLOCK))
    assert len(started) <= len(set(started)) + kills  # one block again a kill, no more
    assert started == sorted(started)


def test_two_processes_at_once_compute_each_block_once(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    writers = [start_writer(path, 0.05) for _ in range(2)]
    answers = [writer.communicate(timeout=120) for writer in writers]
    assert sorted(int(out) for out, _ in answers) == [0, ROWS]
    started = [int(line) for line in path.with_suffix(".log").read_text().split()]
    assert started == list(range(0, ROWS, BLOCK))
    assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))
    assert {item.suffix for item in tmp_path.iterdir()} == {".npy", ".log"}


def test_a_block_that_did_not_reach_the_disk_whole_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    interrupt(path, 12)
    partial = hidden(path, "partial")
    content = bytearray(partial.read_bytes())
    content[-1] ^= 1  # in the last of three blocks
    partial.write_bytes(content)
    network = Network()
    fill_feature_file(path, ROWS, network, block=BLOCK)
    assert network.starts[0] == 8
    assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))


@pytest.mark.parametrize("torn", ["journal's last line", "journal", "partial"])
def test_torn_files_cost_no_more_than_what_they_held(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "features.npy"
    interrupt(path, 12)
    if torn == "journal's last line":
        journal = hidden(path, "journal")
        journal.write_bytes(journal.read_bytes()[:-3])
    else:
        hidden(path, torn).unlink()
    network = Network()
    fill_feature_file(path, ROWS, network, block=BLOCK)
    assert network.starts[0] == (8 if torn == "journal's last line" else 0)
    assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))


@pytest.mark.parametrize("change", [{"rows": ROWS + 1}, {"version": 0}, {"shape": None}])
def test_a_journal_of_something_else_is_not_continued(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "features.npy"
    interrupt(path, 12)
    journal = hidden(path, "journal")
    first, rest = journal.read_text().split("\n", 1)
    values = {k: v for k, v in {**json.loads(first), **change}.items() if v is not None}
    journal.write_text(json.dumps(values) + "\n" + rest)
    network = Network()
    fill_feature_file(path, ROWS, network, block=BLOCK)
    assert network.starts[0] == 0
    assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "features.npy"
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"0\.00 GB free.*--cache DIR"):
        fill_feature_file(path, ROWS, Network(), block=BLOCK)
    assert not path.exists()


def test_a_write_that_fails_keeps_the_finished_blocks(tmp_path: Path) -> None:
    path, row_bytes = tmp_path / "features.npy", row_values(0, 1).nbytes
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the header (128 bytes) and for two blocks and a half.
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + 10 * row_bytes, limits[1]))
    try:
        with pytest.raises(DataError, match=r"File too large.*finished blocks are kept"):
            fill_feature_file(path, ROWS, Network(), block=BLOCK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    network = Network()
    fill_feature_file(path, ROWS, network, block=BLOCK)
    assert network.starts[0] == 2 * BLOCK
    assert np.array_equal(open_feature_file(path, ROWS), row_values(0, ROWS))


def test_features_of_another_form_are_refused(tmp_path: Path) -> None:
    def compute(start: int, stop: int) -> NDArray[np.float16]:
        return row_values(start, stop)[:, : 1 if start >= 8 else 2]

    with pytest.raises(DataError, match=r"\(4, 1, 3\).*\(4, 2, 3\)"):
        fill_feature_file(tmp_path / "a.npy", ROWS, compute, block=BLOCK)
    with pytest.raises(DataError, match="float32"):
        fill_feature_file(
            tmp_path / "b.npy", ROWS, lambda a, b: row_values(a, b).astype(np.float32), block=BLOCK
        )


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    fill_feature_file(path, ROWS, Network(), block=BLOCK)
    content = path.read_bytes()
    for damaged in (content[:-100], content[:40], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"features\.npy is damaged.*delete the file"):
            open_feature_file(path, ROWS)
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected float16, 26 rows"):
        open_feature_file(path, ROWS + 1)
