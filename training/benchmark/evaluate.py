"""A whole evaluation: which episodes, run or found, and the report of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.benchmark import stages
from training.benchmark.episode import Record
from training.benchmark.figures import average_axes, compare, pool, summarise
from training.benchmark.page import save_pictures, write_report
from training.benchmark.policies import read_spec
from training.benchmark.run import Actor, Task, find_actors, run_tasks
from training.benchmark.stages import Rules
from training.benchmark.store import EpisodeStore
from training.closed_loop import check_seed, choose_executed
from vla_align_ros.errors import ConfigurationError

SAMPLES = 2  # episodes of each environment whose pictures are kept


@dataclass(frozen=True)
class Request:
    """What is asked for.

    bundles: bundles' and runs' folders, None for the expert; as "NAME=FOLDER" under a name. Those
    of the same name are one variant, trained from several seeds. compared: the environments that
    the paired comparisons are of, all of `envs` by default.
    """

    rules: Rules
    bundles: Sequence[str | None]
    envs: Sequence[str]
    episodes: int
    seed: int = 0
    jobs: int = 1
    threads: int = 1
    assets: str | None = None
    out: Path | None = None
    compared: Sequence[str] = ("all",)


def evaluate_suite(request: Request) -> dict[str, Any]:
    """Run or find every episode; return the report, and write it where `out` says.

    ConfigurationError on a request that makes no sense; SimulationError when a worker dies.
    """
    suite = request.rules.suite
    every, nameable = stages.environment_names(suite), stages.nameable_environments(suite)
    names = _choose(request.envs, nameable, "--envs", every)
    compared = _choose(request.compared, names, "--compare", names)
    asked = request.rules.executed
    if request.episodes < 1 or request.jobs < 1 or (asked is not None and asked < 1):
        raise ConfigurationError(
            "Nothing to run",
            got=f"{request.episodes} episodes, {request.jobs} jobs, {asked} actions a chunk",
            expected="at least one of each",
            fix="correct --episodes, --jobs or --execute",
        )
    check_seed(request.seed)
    assets = _describe_assets(request)
    actors = find_actors(request.bundles)
    specs = [read_spec(actor.bundle) for actor in actors if actor.bundle is not None]
    rules = replace(request.rules, executed=choose_executed(specs, asked))
    request = replace(request, rules=rules)
    store = EpisodeStore(request.out, request.rules, assets)
    seeds = range(request.seed, request.seed + request.episodes)
    tasks = [
        Task(actor, env, seed, keep=request.out is not None and seed - request.seed < SAMPLES)
        for seed in seeds  # first, so that what is there so far covers every environment alike
        for env in names
        for actor in actors
    ]
    with tqdm(total=len(tasks), unit="episode", desc=request.rules.suite) as bar:
        bar.update(sum(task.key in store for task in tasks))

        def note(record: Record) -> None:
            if request.out is not None and record.pictures:
                save_pictures(request.out, record)
            bar.update()
            bar.set_postfix_str(f"{record.env} {'ok' if record.success else 'failed'}")

        run_tasks(
            tasks,
            store,
            request.rules,
            assets=request.assets,
            jobs=request.jobs,
            threads=request.threads,
            done=note,
        )
    report = _report(request, actors, names, compared, store, assets)
    if request.out is not None:
        write_report(request.out, report)
    return report


def _choose(
    asked: Sequence[str], there: Sequence[str], option: str, every: tuple[str, ...]
) -> tuple[str, ...]:
    """The environments asked for, of those that are there; "all" means `every`."""
    if list(asked) == ["all"]:
        return every
    unknown = [name for name in asked if name not in there]
    if unknown or not asked:
        raise ConfigurationError(
            "No such environment",
            got=", ".join(unknown) or "none",
            expected="all, or some of " + ", ".join(there),
            fix=f"name them one by one: {option} " + " ".join(there[:2]),
        )
    return tuple(dict.fromkeys(asked))


def _describe_assets(request: Request) -> dict[str, Any]:
    """Which published files are there, for the plate's suites: episodes depend on them."""
    if request.rules.suite == stages.TABLETOP:
        return {}
    from vla_align_ros.sim.put_on_plate.assets import describe_assets

    return describe_assets(request.assets)


def _report(
    request: Request,
    actors: Sequence[Actor],
    names: Sequence[str],
    compared: Sequence[str],
    store: EpisodeStore,
    assets: dict[str, Any],
) -> dict[str, Any]:
    suite = request.rules.suite
    seeds = range(request.seed, request.seed + request.episodes)
    axes = {name: stages.axis_of(suite, name) for name in names}
    policies: list[dict[str, Any]] = []
    lines: dict[str, list[dict[str, Any]]] = {}
    variants: dict[str, list[dict[str, Any]]] = {}
    for actor in actors:
        envs = {}
        own = variants.setdefault(actor.name, [])
        for name in names:
            found = store.select((actor.id, name, seed) for seed in seeds)
            repeat = {"repeat": actor.repeat}
            lines.setdefault(actor.name, []).extend({**line, **repeat} for line in found)
            envs[name] = summarise(found)
        own.append(
            {
                "policy": actor.id,
                "name": actor.name,
                "bundle": actor.bundle,
                "repeat": actor.repeat,
                "envs": envs,
                "axes": average_axes(envs, axes),
            }
        )
        policies.append(own[-1])
    first = policies[0]
    run = [line for own in lines.values() for line in own]
    pairs = {name: [line for line in own if line["env"] in compared] for name, own in lines.items()}
    return {
        "suite": suite,
        "episodes": request.episodes,
        "seed": request.seed,
        "executed": request.rules.executed,
        "size_px": None if suite == stages.TABLETOP else list(request.rules.size_px),
        "max_steps": request.rules.max_steps,
        "assets": assets,
        "made_by": sorted({line.get("made_by", "unknown code") for line in run}),
        "axes_of_envs": axes,
        "policies": policies,
        "envs": first["envs"],
        "variants": [
            _summarise_variant(name, own, lines[name], names, axes)
            for name, own in variants.items()
        ],
        "compared": list(compared),
        "comparisons": [
            {"better": one, "worse": other, **compare(pairs[one], pairs[other])}
            for one in variants
            for other in variants
            if one != other
        ],
    }


def _summarise_variant(
    name: str,
    policies: Sequence[dict[str, Any]],
    lines: Sequence[dict[str, Any]],
    names: Sequence[str],
    axes: dict[str, str],
) -> dict[str, Any]:
    """All policies of a variant together, and how far its training seeds lie apart."""
    envs = {}
    for env in names:
        row = pool([line for line in lines if line["env"] == env])
        rates = [policy["envs"][env]["success_rate"] for policy in policies]
        envs[env] = {**row, "rates": rates}
    return {
        "name": name,
        "policies": [policy["policy"] for policy in policies],
        "envs": envs,
        "axes": average_axes(envs, axes),
    }
