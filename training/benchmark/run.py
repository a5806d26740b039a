"""Runs every episode that is still missing, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from training.benchmark.episode import EXPERT, Record
from training.benchmark.policies import Acting, find_training_seed, identify, open_policy
from training.benchmark.stages import Rules, Stage, open_stage
from training.benchmark.store import EpisodeStore
from training.run_folder import name_folders
from training.workers import follow_parent
from vla_align_ros.errors import ConfigurationError, SimulationError

DRAWING_THREADS = "LP_NUM_THREADS"  # of Mesa's software renderer


@dataclass(frozen=True)
class Actor:
    """Who acts: the expert, or a policy by its id and folder.

    A variant's policies share a `name` and are told apart by `repeat`: the training seed of runs,
    else their place among them.
    """

    id: str
    bundle: str | None
    name: str = EXPERT
    repeat: int = 0


def find_actors(texts: Sequence[str | None]) -> list[Actor]:
    """The expert for each None, else the policy in a folder, "FOLDER" or "NAME=FOLDER".

    A folder without a name is called as it is, with as many parents as tell it from the others.

    Raises:
        BundleError: if a folder is no policy. ConfigurationError: if one is given twice, takes
        another's name by its folder's, or two runs of one name have the same training seed.
    """
    named: dict[str, str | None] = {}
    for text in texts:
        if text is not None:
            name, equals, folder = text.partition("=")
            own = bool(equals) and not Path(text).exists()
            named[folder if own else text] = name if own else None
    plain = [folder for folder, name in named.items() if name is None]
    found = name_folders([Path(folder) for folder in plain]) if plain else []
    _refuse_taken({name for name in named.values() if name is not None}, found)
    names = {**named, **dict(zip(plain, found, strict=True))}
    ids = {folder: identify(folder) for folder in names}
    repeats = _tell_apart({folder: str(name) for folder, name in names.items()})
    actors = [
        Actor(ids[folder], folder, str(name), repeats[folder]) for folder, name in names.items()
    ]
    actors += [Actor(EXPERT, None)] * texts.count(None)
    if len({actor.id for actor in actors}) < len(texts):
        raise ConfigurationError(
            "A policy is there twice",
            got=", ".join(text or EXPERT for text in texts),
            expected="different policies",
            fix="leave one out",
        )
    return actors


def _refuse_taken(given: set[str], found: Sequence[str]) -> None:
    """See that nobody joins the runs of a name by what its folder is called, or the expert."""
    taken = given.intersection(found) | ({EXPERT} & {*given, *found})
    if taken:
        raise ConfigurationError(
            "A policy's name is another's",
            got=", ".join(sorted(taken)),
            expected=f"a name of its own, other than {EXPERT}",
            fix="give it one: NAME=FOLDER",
        )


def _tell_apart(names: Mapping[str, str]) -> dict[str, int]:
    """Training seed, or place among those of its name, of each policy's folder."""
    found: dict[str, int] = {}
    for name in dict.fromkeys(names.values()):
        folders = [folder for folder in names if names[folder] == name]
        seeds = [find_training_seed(Path(folder)) for folder in folders]
        if None in seeds:
            seeds = list(range(len(folders)))
        if len(set(seeds)) < len(seeds):
            raise ConfigurationError(
                f"Runs of {name} have the same training seed",
                got=f"seeds {seeds} of {', '.join(folders)}",
                expected="another seed each: they are paired with others' by it",
                fix="name them differently, or leave one out",
            )
        found |= {folder: int(seed or 0) for folder, seed in zip(folders, seeds, strict=True)}
    return found


@dataclass(frozen=True)
class Task:
    """One episode to run; `keep` asks for some of its pictures."""

    actor: Actor
    env: str
    seed: int
    keep: bool

    @property
    def key(self) -> tuple[str, str, int]:
        """What an episode is found by."""
        return self.actor.id, self.env, self.seed


class Worker:
    """A simulator and the policies opened so far, in this process."""

    def __init__(self, rules: Rules, assets: str | None, threads: int) -> None:
        self._stage: Stage = open_stage(rules, assets)
        self._threads = threads
        self._policies: dict[str, Acting] = {}

    def run(self, task: Task) -> Record:
        """Drive one episode."""
        bundle = task.actor.bundle
        if bundle is not None and bundle not in self._policies:
            policy = open_policy(bundle, self._threads)
            policy.warm_up()
            self._policies[bundle] = policy
        policy_or_none = self._policies[bundle] if bundle is not None else None
        return self._stage.run(policy_or_none, task.env, task.seed, keep=task.keep)

    def close(self) -> None:
        """Free everything."""
        for policy in self._policies.values():
            policy.close()
        self._stage.close()


_worker: Worker | None = None


def _open_worker(rules: Rules, assets: str | None, threads: int) -> None:
    global _worker
    follow_parent()
    _worker = Worker(rules, assets, threads)


def _run_in_worker(task: Task) -> Record:
    assert _worker is not None
    return _worker.run(task)


def run_tasks(
    tasks: Sequence[Task],
    store: EpisodeStore,
    rules: Rules,
    *,
    assets: str | None,
    jobs: int,
    threads: int,
    done: Callable[[Record], None],
) -> None:
    """Run the tasks that the store lacks; each is told to `done` as soon as it ends, then kept.

    What `done` did not finish, such as an episode's film, is thus made again after a kill.
    SimulationError if a worker dies; what it had finished is kept.
    """
    missing = [task for task in tasks if task.key not in store]
    if not missing:
        return
    cores = os.cpu_count() or 1
    os.environ.setdefault(DRAWING_THREADS, str(max(1, cores // max(jobs, 1))))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = _run_here if jobs == 1 else _run_apart
    for record in runs(missing, rules, assets, jobs, threads):
        done(record)
        store.add(record)


def _run_here(
    tasks: Sequence[Task], rules: Rules, assets: str | None, jobs: int, threads: int
) -> Iterator[Record]:
    worker = Worker(rules, assets, threads)
    try:
        for task in tasks:
            yield worker.run(task)
    finally:
        worker.close()


def _run_apart(
    tasks: Sequence[Task], rules: Rules, assets: str | None, jobs: int, threads: int
) -> Iterator[Record]:
    """In `jobs` processes; only a few episodes are handed out ahead, so an error stops soon."""
    waiting = iter(tasks)
    running: set[Future[Record]] = set()
    with ProcessPoolExecutor(
        max_workers=min(jobs, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_open_worker,
        initargs=(rules, assets, threads),
    ) as pool:
        try:
            while True:
                for task in waiting:
                    running.add(pool.submit(_run_in_worker, task))
                    if len(running) >= 2 * jobs:
                        break
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                # What went through is kept, whatever ended beside it in an error.
                for future in sorted(finished, key=lambda ended: ended.exception() is not None):
                    yield future.result()
        except BrokenProcessPool as cause:
            raise SimulationError(
                "A worker process died",
                got=cause,
                expected=f"{jobs} processes that open the simulator",
                fix="run again with --jobs 1 to see why; finished episodes with --out are kept",
            ) from cause
        finally:
            for future in running:
                future.cancel()
