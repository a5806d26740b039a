"""Runs a table of variants, each cell an ordinary run that goes on where it was stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from training.comparison import Outcome, write_comparison
from training.config import RunConfig
from training.files import hold_alone, replace_atomically
from training.model.checkpoint import read_json
from training.recipes import find_recipe
from training.settings import override
from training.setup_model import find_base
from training.signals import catch_stop_signals
from training.sweep_cells import Cell, CellRunner
from training.sweep_tables import Row
from vla_align_ros.errors import ConfigurationError, TrainingError

PLAN_FILE = "sweep.json"
LOCK_FILE = ".sweep.lock"
POLL_S = 0.5
LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a sweep runs: every row with every seed, on top of one recipe.

    settings apply to every cell, before the row's own; seeds set `seed`, which draws the weights
    and the order of the samples.
    """

    recipe: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()
    cache: str | None = None


def expand_axes(axes: Sequence[str], rows: Sequence[Row] = ()) -> tuple[Row, ...]:
    """Every combination of the values of `axes` ("key=v1,v2"), times `rows` where there are any.

    A value is JSON or a bare word; commas within brackets or quotes belong to it. Rows are named
    after their values. Raises ConfigurationError for an axis without values or a repeated one.
    """
    parsed = [_parse_axis(axis) for axis in axes]
    keys = [key for key, _ in parsed]
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise ConfigurationError(
            "An axis is given twice",
            got=", ".join(sorted(repeated)),
            expected="each key once",
            fix="put all its values into one --axis key=v1,v2",
        )
    out = []
    for row in rows or (Row(""),):
        for values in itertools.product(*(values for _, values in parsed)):
            own = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
            name = " ".join(part for part in (row.name, *own) if part)
            paper = row.paper if not own else None
            out.append(Row(name or "recipe", (*row.settings, *own), paper))
    return tuple(out)


def make_cells(plan: SweepPlan, out: Path) -> list[Cell]:
    """Resolve the configuration of every cell, row by row; an impossible one is named here.

    Raises:
        ConfigurationError: an unknown recipe, a setting that does not fit, or two equal rows.
    """
    base = find_recipe(plan.recipe)
    cells: list[Cell] = []
    owner: dict[str, str] = {}
    for row in plan.rows:
        for seed in plan.seeds:
            settings = (*plan.settings, *row.settings, f"seed={seed}")
            try:
                config = find_base(override(base, settings))
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"The row {row.name!r} cannot be configured: {error.summary}",
                    got=error.got,
                    expected=error.expected,
                    fix=error.fix,
                ) from error
            _refuse_equal(config, f"{row.name!r} with seed {seed}", owner)
            name = _name_folder(row.name)
            folder, log = out / "runs" / name / f"seed_{seed}", out / "logs" / f"{name}-{seed}.log"
            cells.append(Cell(row.name, seed, settings, config, folder, log))
    return cells


def run_sweep(
    plan: SweepPlan,
    out: str | Path,
    *,
    jobs: int = 1,
    nproc: int = 1,
    reference: str | None = None,
    metrics: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run what is not finished, `jobs` cells at once of `nproc` ranks each, and compare.

    Leaves in `out`: runs/<row>/seed_<n>/ (ordinary run folders), logs/, sweep.json (the plan) and,
    renewed after every cell, comparison.json, comparison.md and comparison.csv. A cell that fails
    is named with its error and keeps no other from running. SIGTERM, SIGUSR1 or Ctrl-C stop the
    cells in their own orderly way; the same call goes on with them. Further rows or seeds may be
    added to a sweep; another recipe, data or settings are refused.

    reference: the row that the others are compared with (default: the first).

    Raises:
        ConfigurationError, TrainingError: before anything runs.
    """
    out = Path(out)
    cells = make_cells(plan, out)
    names = [row.name for row in plan.rows]
    if reference is not None and reference not in names:
        raise ConfigurationError(
            "No such row", got=repr(reference), expected=f"one of {names}", fix="see --reference"
        )
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out) as lock, catch_stop_signals() as signals, signals.defer():
        _check_plan(plan, out / PLAN_FILE)
        runner = CellRunner(plan.recipe, plan.data, plan.cache, jobs, nproc, lock.fileno())
        outcomes = {cell.key: cell.look() for cell in cells}

        def compare() -> dict[str, Any]:
            found = [outcomes[cell.key] for cell in cells]
            return write_comparison(
                out, plan.recipe, plan.rows, found, reference=reference, metrics=metrics
            )

        todo = [cell for cell in cells if outcomes[cell.key].status != "done"]
        tell(f"{len(cells)} runs, {len(cells) - len(todo)} of them finished before")
        try:
            for done, (cell, outcome) in enumerate(
                _run_cells(runner, todo, jobs, lambda: signals.received), start=1
            ):
                outcomes[cell.key] = outcome
                tell(f"[{done}/{len(todo)}] {cell.row}, seed {cell.seed}: {outcome.describe()}")
                compare()
        finally:
            comparison = compare()
    return {
        "ok": not comparison["failed"],
        "complete": all(outcome.status == "done" for outcome in outcomes.values()),
        "out": out,
        **comparison,
    }


def _run_cells(
    runner: CellRunner, cells: Sequence[Cell], jobs: int, received: Callable[[], str | None]
) -> Iterator[tuple[Cell, Outcome]]:
    """Yield cells as they end; on a signal stop those that run and start no more.

    Until the first cell is set up it runs alone, so that it alone fills the caches of the data.
    """
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures: dict[Future[Outcome], Cell] = {pool.submit(runner.run, c): c for c in cells}
        waiting = set(futures)
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED)
                if received() is not None:
                    runner.stop(signal.SIGTERM)
                if ended or cells[0].is_set_up():
                    runner.let_all_start()
                for future in ended:
                    yield futures[future], future.result()
        finally:  # after a second Ctrl-C: the pool waits for the cells to save
            runner.stop(signal.SIGTERM)


def _parse_axis(axis: str) -> tuple[str, list[str]]:
    key, separator, text = axis.partition("=")
    values = _split(text)
    if not separator or not key or not all(values):
        raise ConfigurationError(
            "Not an axis",
            got=repr(axis),
            expected="key=value1,value2",
            fix="for example --axis alignment.weight=0,0.2,0.5",
        )
    return key, values


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and no quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _refuse_equal(config: RunConfig, name: str, owner: dict[str, str]) -> None:
    content = json.dumps(config.to_dict(), sort_keys=True)
    if content in owner:
        raise ConfigurationError(
            "Two cells of the sweep are the same run",
            got=f"{owner[content]} and {name}",
            expected="rows that differ",
            fix="drop one of them",
        )
    owner[content] = name


def _name_folder(name: str) -> str:
    """A folder's name for a row; a hash tells apart what plain characters cannot."""
    plain = re.sub(r"[^A-Za-z0-9.=+-]+", "_", name)[:LONGEST_NAME].strip("_.") or "row"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return plain if plain == name.replace(" ", "_") else f"{plain}-{digest}"


def _check_plan(plan: SweepPlan, path: Path) -> None:
    """Write the plan, or refuse to mix two sweeps in one folder."""
    wanted = json.loads(json.dumps(asdict(plan)))
    if path.exists():
        found = read_json(path)
        keys = [key for key in ("recipe", "data", "settings") if found.get(key) != wanted[key]]
        if keys:
            raise TrainingError(
                f"{path.parent} holds another sweep",
                got=", ".join(f"{key}={wanted[key]}" for key in keys),
                expected=", ".join(f"{key}={found.get(key)}" for key in keys),
                fix="give another --out, or the same recipe, data and --set to continue",
            )
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2) + "\n")


def _lock(out: Path) -> AbstractContextManager[BinaryIO]:
    """Hold the folder's lock; cells inherit it, so that a killed sweep's runs keep it too."""
    refusal = TrainingError(
        f"A sweep already runs in {out}",
        got="its lock is held, by that sweep or by a run that outlived it",
        expected="one sweep a folder",
        fix="wait for it, or end its processes (`fuser` names them)",
    )
    return hold_alone(out / LOCK_FILE, refusal)
