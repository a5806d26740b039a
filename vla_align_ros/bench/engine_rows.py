"""Engines measured side by side: a process for each row, so that memory and load time are its own.

All rows stay open and take turns in short bursts; what disturbs the machine disturbs them alike.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.external_data import read_references
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.errors import BackendError, VlaAlignError
from vla_align_ros.inference.base import Backend, open_backend
from vla_align_ros.inference.pipeline import open_graphs
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.policy import Policy

AGAIN = "again"
"""Ends the label of the first row's twin, whose ratio is the measurement's own noise."""

OPEN_LIMIT_S = 900.0
ANSWER_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Row:
    """What to measure: a backend with its options on a bundle.

    source: another folder that the backend is opened with (a run, for torch), or None.
    """

    label: str
    bundle: Path
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None

    def open(self, bundle: Bundle) -> Backend:
        """Open the engine; BackendError if it cannot run here."""
        if self.source is not None:
            return open_backend(self.backend, self.source, **self.options)
        return open_graphs(bundle, self.backend, **self.options)


class Worker:
    """A row's process: opened, warmed up, and idle until it is asked.

    Raises:
        BackendError: if the row cannot be opened, with its own reason.
    """

    def __init__(self, row: Row) -> None:
        context = multiprocessing.get_context("spawn")
        self.row = row
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, row), daemon=True)
        self._process.start()
        other.close()
        try:
            self.opened: dict[str, Any] = self._receive(OPEN_LIMIT_S)
        except BackendError:
            self.close()
            raise

    def ask(self, what: str, *arguments: Any) -> Any:
        """Send a request ("time" with a count, "prove", "memory") and wait for its answer."""
        with contextlib.suppress(OSError):  # it died; the answer that does not come says how
            self._pipe.send((what, *arguments))
        return self._receive(ANSWER_LIMIT_S)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, limit_s: float) -> Any:
        try:
            if not self._pipe.poll(limit_s):
                raise BackendError("row gives no answer", got=f"silence for {limit_s:.0f} s")
            failed, answer = self._pipe.recv()
        except (EOFError, OSError) as cause:
            self._process.join(10.0)
            code = self._process.exitcode
            raise BackendError("row's process died", got=f"exit status {code}") from cause
        if failed:
            raise BackendError(str(answer))
        return answer


def say_now(text: str) -> None:
    """Print a line of progress at once, also into a file."""
    print(text, flush=True)


def measure_rows(
    rows: Sequence[Row],
    *,
    rounds: int,
    burst: int,
    prove: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure rows in turns.

    Args:
        rows: the first that opens is what the others are compared with; it gets a twin.
        rounds: turns of each. burst: timed inferences a turn, after one that is not.
        prove: replay the golden samples. say: takes lines of progress.

    Returns:
        The figures of each row that opened, raw (see `_measure`), and why the others did not.
    """
    workers: list[Worker] = []
    absent: dict[str, str] = {}
    try:
        for row in rows:
            say(f"opening {row.label}")
            try:
                workers.append(Worker(row))
            except BackendError as cause:
                absent[row.label] = str(cause)
                say(f"  absent: {cause}")
        if workers:
            twin = replace(workers[0].row, label=f"{workers[0].row.label} {AGAIN}")
            workers.insert(1, Worker(twin))
        return list(_measure(workers, rounds, burst, prove, say)), absent
    finally:
        for worker in workers:
            worker.close()


def _measure(
    workers: Sequence[Worker], rounds: int, burst: int, prove: bool, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Give for each worker: what it said on opening, latencies by round in s, memory, proof."""
    first = {worker.row.label: worker.ask("time", 1)[0] for worker in workers}
    taken: dict[str, list[list[tuple[float, float]]]] = {w.row.label: [] for w in workers}
    for turn in range(rounds):
        for worker in (*workers[turn % len(workers) :], *workers[: turn % len(workers)]):
            taken[worker.row.label].append(worker.ask("time", burst + 1)[1:])
    for worker in workers:
        label = worker.row.label
        if prove:
            say(f"proving {label}")
        yield {
            "label": label,
            "bundle": str(worker.row.bundle),
            **worker.opened,
            "first": first[label],
            "rounds": taken[label],
            "proof": worker.ask("prove") if prove else None,
            "memory_mb": worker.ask("memory"),
        }


def _serve(pipe: Connection, row: Row) -> None:
    """The body of a row's process."""
    try:
        bundle = Bundle.open(row.bundle)
        observations = list(iterate_observations(bundle.golden(), bundle.spec))
        start_s = time.perf_counter()
        policy = Policy(bundle, row.open(bundle))
        opened_s = time.perf_counter()
        policy.warm_up()
        facts = {
            "backend": policy.backend.name,
            "precision": policy.precision,
            "load_s": opened_s - start_s,
            "warm_up_s": time.perf_counter() - opened_s,
            "size_mb": measure_size(row, bundle, policy.backend) / 1e6,
        }
        pipe.send((False, facts))
        done = 0
        while True:
            what, *arguments = pipe.recv()
            if what == "time":
                chosen = [observations[(done + i) % len(observations)] for i in range(*arguments)]
                pipe.send((False, [time_once(policy, seen) for seen in chosen]))
                done += len(chosen)
            elif what == "prove":
                pipe.send((False, prove_bundle(bundle, policy.backend, policy.precision)))
            else:
                pipe.send((False, read_peak_mb()))
    except EOFError:
        return
    except VlaAlignError as cause:
        pipe.send((True, str(cause)))


def time_once(policy: Policy, observation: Any) -> tuple[float, float]:
    """Return seconds of one inference without what surrounds it, and of the processor's meanwhile.

    The second, summed over the process's threads, does not count what others took of the machine.
    """
    inputs = policy.processor.prepare(observation)
    start_s, busy_s = time.perf_counter(), time.process_time()
    policy.backend.infer(inputs)
    return time.perf_counter() - start_s, time.process_time() - busy_s


def measure_size(row: Row, bundle: Bundle, backend: Backend) -> int:
    """Bytes of what the backend was opened from: graphs and their weights, engines, or a run's.

    Of a bundle's graphs those that act, each file once; the sight graph is none of them.
    """
    engines = getattr(backend, "engines", None)
    if engines is not None:
        return sum(int(graph["bytes"]) for graph in engines.facts["graphs"].values())
    if row.source is not None:
        return sum(path.stat().st_size for path in row.source.glob("*.safetensors"))
    graphs = [bundle.graph_path(spec.name) for spec in bundle.acting_graphs]
    beside = {path.parent / name for path in graphs for name in read_references(path).files}
    return sum(path.stat().st_size for path in {*graphs, *beside})


def read_peak_mb() -> float | None:
    """Peak resident memory of this process alone, from its start; None where the system hides it.

    Not getrusage, whose peak a process inherits from the one that started it.
    """
    status = Path(f"/proc/{os.getpid()}/status")
    if not status.is_file():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM")), None)
    return None if peak is None else int(peak) * 1024 / 1e6
