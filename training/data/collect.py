"""Runs a collection: makes episodes in one or several processes and writes them in order."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from training.data.collect_settings import CollectSettings, check_settings
from training.data.layout import COLLECTION_PATH, DatasetSchema, EpisodeRecord
from training.data.reader import LeRobotReader, read_json
from training.data.rollout import EpisodeMaker, open_maker
from training.data.schema import (
    ATTEMPT_NOTE,
    PUT_ON_PLATE,
    START_NOTE,
    plate_schema,
    tabletop_schema,
)
from training.data.writer import LeRobotWriter
from training.files import replace_atomically
from training.workers import follow_parent
from vla_align_ros.errors import DataError

_AHEAD_PER_JOB = 4  # so that the simulators go on while a shard is being encoded
_maker: EpisodeMaker | None = None


def collect(
    settings: CollectSettings,
    out: str | Path,
    episodes: int,
    *,
    jobs: int = 1,
    episodes_per_file: int = 50,
    progress: bool = True,
) -> dict[str, Any]:
    """Bring the dataset at `out` to `episodes` episodes and return its summary.

    Continues what is there; the result does not depend on `jobs` nor on interruptions. When
    stopped by Ctrl-C or SIGTERM the finished episodes are kept.
    """
    from tqdm import tqdm

    if episodes < 1 or jobs < 1:
        raise DataError(
            "Nothing to collect",
            got=f"{episodes} episodes, {jobs} jobs",
            expected="at least one of each",
            fix="pass --episodes and --jobs of 1 or more",
        )
    check_settings(settings)
    root = Path(out)
    _limit_threads()
    schema = schema_of(settings)
    _hold_settings(root, settings)
    writer = LeRobotWriter(root, schema, episodes_per_file=episodes_per_file)
    numbers = range(writer.num_episodes, episodes)
    bar = tqdm(total=episodes, initial=numbers.start, unit="episode", disable=not progress)
    with _terminate_as_interrupt(), bar:
        try:
            for record in make_episodes(settings, numbers, jobs):
                writer.append(record)
                bar.set_postfix(frames=writer.num_frames, refresh=False)
                bar.update()
        finally:
            writer.flush()
    return summarise(root)


def schema_of(settings: CollectSettings) -> DatasetSchema:
    """The features that a collection of these settings has."""
    if settings.env != PUT_ON_PLATE:
        return tabletop_schema(settings.horizon)
    from vla_align_ros.sim.put_on_plate.environments import FULL_SIZE_PX

    return plate_schema(settings.size_px or FULL_SIZE_PX, settings.horizon)


def make_episodes(
    settings: CollectSettings, numbers: Iterable[int], jobs: int
) -> Iterator[EpisodeRecord]:
    """The episodes of the given numbers, in order, made by `jobs` processes."""
    if jobs == 1:
        maker = open_maker(settings)
        try:
            yield from map(maker.make, numbers)
        finally:
            maker.close()
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(settings,),
    )
    waiting: collections.deque[concurrent.futures.Future[EpisodeRecord]] = collections.deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(_make_in_worker, number))
            if len(waiting) >= _AHEAD_PER_JOB * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as cause:
        raise DataError(
            "A process that simulates died",
            got=cause,
            expected=f"{jobs} processes that open the simulator",
            fix="run again with --jobs 1 to see why; finished episodes are kept",
        ) from cause
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def summarise(root: str | Path) -> dict[str, Any]:
    """Counts of a collected dataset, ready to be printed."""
    reader = LeRobotReader(root)
    rows = reader.episodes
    summary: dict[str, Any] = {
        "out": str(root),
        "episodes": rows.num_rows,
        "frames": len(reader),
        "tasks": len(reader.tasks),
    }
    if START_NOTE in rows.column_names:
        summary["dropped"] = sum(rows[ATTEMPT_NOTE].to_pylist())
        summary["starts"] = dict(collections.Counter(rows[START_NOTE].to_pylist()))
    return summary


def _start_worker(settings: CollectSettings) -> None:
    """Build this process's simulator; the parent alone handles Ctrl-C."""
    global _maker
    follow_parent()
    _maker = open_maker(settings)


def _make_in_worker(number: int) -> EpisodeRecord:
    if _maker is None:
        raise DataError(
            "The worker has no simulator",
            got="an episode number before its start",
            expected="a started worker",
            fix="use make_episodes",
        )
    return _maker.make(number)


def _limit_threads() -> None:
    """One thread a process for the software renderer and for algebra: the jobs are the threads."""
    for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _hold_settings(root: Path, settings: CollectSettings) -> None:
    """Write meta/collection.json, or refuse to continue a collection made otherwise."""
    path = root / COLLECTION_PATH
    wanted = settings.to_dict()
    if settings.policy is not None:  # the bundle that it is, not the folder where it lies
        from training.closed_loop import find_camera
        from vla_align_ros.contract.bundle import Bundle

        bundle = Bundle.open(settings.policy)
        find_camera(bundle.spec, f"{settings.env}, which it is to drive")
        wanted["policy"] = bundle.id
    if settings.env == PUT_ON_PLATE:  # the meshes that they are, too
        from vla_align_ros.sim.put_on_plate.assets import describe_assets

        wanted["assets"] = describe_assets(settings.assets)["digest"]
    if path.exists():
        found = read_json(path)
        differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if differing:
            raise DataError(
                f"{root} was collected with other settings",
                got=", ".join(f"{k}={wanted.get(k)}" for k in differing),
                expected=", ".join(f"{k}={found.get(k)}" for k in differing),
                fix="pass the same settings, or another --out",
            )
        return
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what is finished is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
