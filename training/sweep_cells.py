"""One cell of a sweep: a training run in a process of its own, which can fail or stop alone."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.comparison import Outcome
from training.config import RunConfig
from training.model.checkpoint import read_json

CONFIG_FILE, RUN_FILE = "config.json", "run.json"
TAIL_BYTES = 20_000
SAVING_S = 600  # torchrun kills its ranks so long after it was told to stop; by itself after 30


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of the sweep: the row's name, the seed, all settings, and where it lies."""

    row: str
    seed: int
    settings: tuple[str, ...]
    config: RunConfig
    folder: Path
    log: Path

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the other cells."""
        return self.row, self.seed

    def is_set_up(self) -> bool:
        """Whether the run has opened its data and filled the caches, now or in an earlier call."""
        return (self.folder / CONFIG_FILE).exists()

    def look(self, status: str = "waiting", error: str | None = None) -> Outcome:
        """What is known of the run: "done" if its folder holds this very run, finished."""
        is_done = (
            error is None
            and (self.folder / RUN_FILE).exists()
            and self.is_set_up()
            and read_json(self.folder / CONFIG_FILE)
            == json.loads(json.dumps(self.config.to_dict()))
        )
        summary = read_json(self.folder / RUN_FILE) if is_done else {}
        return Outcome(
            row=self.row,
            seed=self.seed,
            status="done" if is_done else status,
            folder=str(self.folder),
            settings=self.settings,
            metrics=_find_metrics(summary),
            error=error,
        )


class CellRunner:
    """Starts cells, `jobs` at once, and stops them all when told to.

    Cells that run at once share the cores (OMP_NUM_THREADS, unless it is set) and, where there are
    enough GPUs, each gets its own. The first cell starts alone: see `let_all_start`.
    """

    def __init__(
        self,
        recipe: str,
        data: Sequence[str],
        cache: str | None,
        jobs: int,
        nproc: int,
        lock: int,
    ) -> None:
        self._arguments = ["--recipe", recipe, "--data", *data]
        if cache is not None:
            self._arguments += ["--cache", cache]
        self._jobs, self._nproc, self._inherited = jobs, nproc, lock
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._is_first = True
        self._all_may_start = threading.Event()

    def let_all_start(self) -> None:
        """Let the cells start that wait for the first one to fill the caches."""
        self._all_may_start.set()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to the cells that run, once, and start no more."""
        with self._guard:
            if not self._stopped:
                self._stopped = True
                for process in self._running:
                    process.send_signal(number)
        self._all_may_start.set()

    def run(self, cell: Cell) -> Outcome:
        """Run one cell to its end, wait for it, and say how it went."""
        with self._guard:
            is_first, self._is_first = self._is_first, False
        if not is_first:
            self._all_may_start.wait()
        slot = self._slots.get()
        try:
            return self._run(cell, slot)
        except OSError as error:
            return cell.look("failed", f"could not be started: {error}")
        finally:
            self._slots.put(slot)

    def _run(self, cell: Cell, slot: int) -> Outcome:
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        with cell.log.open("ab") as log:
            begun = log.tell()
            with self._guard:
                if self._stopped:
                    return cell.look("stopped")
                process = subprocess.Popen(
                    self._build_command(cell),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._build_environment(slot),
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops the cells
                    pass_fds=(self._inherited,),
                )
                self._running.add(process)
            started_s = time.monotonic()
            status = process.wait()
            with self._guard:
                self._running.discard(process)
                told_to_stop = self._stopped  # torchrun then ends with 1, though its ranks saved
        if status != 0 and not told_to_stop:
            after = f" after {time.monotonic() - started_s:.0f} s"
            return cell.look("failed", _explain(status, _read_tail(cell.log, begun)) + after)
        outcome = cell.look("stopped")
        if outcome.status == "stopped" and (cell.folder / RUN_FILE).exists():
            return cell.look("failed", f"{CONFIG_FILE} is not the sweep's: the package has changed")
        return outcome

    def _build_command(self, cell: Cell) -> list[str]:
        launcher = [sys.executable]
        if self._nproc > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc-per-node", str(self._nproc)]
            launcher += ["--shutdown-timeout", str(SAVING_S)]
        command = [*launcher, "-m", "training.train", *self._arguments]
        return [*command, "--out", str(cell.folder), "--set", *cell.settings]

    def _build_environment(self, slot: int) -> dict[str, str]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        cores = (os.cpu_count() or 1) // (self._jobs * self._nproc)
        if self._jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
            environment |= share_gpus(slot, self._jobs, os.environ)
        return environment


def share_gpus(slot: int, jobs: int, environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of the cell in `slot`, where there are GPUs for every job; else {}."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        devices = [str(number) for number in range(torch.cuda.device_count())]
    else:
        devices = [name for name in visible.split(",") if name]
    each = len(devices) // jobs
    if each == 0:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * each : (slot + 1) * each])}


def _find_metrics(summary: Mapping[str, object]) -> dict[str, float]:
    """The numbers that a run measured: the scalars (their names have a "/"), time and speed."""
    return {
        name: float(value)
        for name, value in summary.items()
        if isinstance(value, (int, float)) and ("/" in name or name in ("seconds", "samples_per_s"))
    }


def _read_tail(log: Path, begun: int) -> list[str]:
    """The last lines that this attempt wrote."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begun, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def _explain(status: int, lines: Sequence[str]) -> str:
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    told = [line for line in lines if line.startswith("training: ")]
    if told:
        return told[-1].removeprefix("training: ")
    return lines[-1] if lines else f"exit status {status}"
