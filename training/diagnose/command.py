"""Looks through all networks of some runs and writes one page about them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from training.alignment import Teacher, compute_targets
from training.alignment.teachers import TeacherConfig
from training.diagnose.findings import Finding, evaluate
from training.diagnose.looking import Look, Things, look
from training.diagnose.page import draw_attention, draw_page
from training.diagnose.subjects import BEFORE, load_networks, open_runs
from training.diagnose.tokens import choose_labels, count_known
from training.files import replace_atomically
from training.run_folder import Run
from training.setup_model import find_teacher
from training.sight.config import WatchConfig, choose_layers
from training.sight.features import pick_rows
from training.sight.pictures import LabelledPictures, load_pictures
from training.sight.probe import check_enough
from training.sight.scenes import resize_scenes
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import pip_command

PAGE, FIGURES, ATTENTION = "diagnosis.html", "diagnosis.json", "attention.png"


@dataclass(frozen=True, slots=True)
class DiagnoseRequest:
    """What is asked for.

    runs: folders of `vla-align train`, finished or not. before: also as training found them.
    pictures: a folder of labelled pictures, the drawings of emosvg if None; `per_label` of each,
    `views` times. labels: which are mapped, `label_count` of them if none is named. scenes:
    held-out scenes of the first run that every network sees; attention is drawn of `drawn` of them.
    """

    runs: Sequence[Path]
    out: Path
    before: bool = True
    pictures: str | None = None
    per_label: int = 16
    views: int = 1
    labels: tuple[str, ...] = ()
    label_count: int = 6
    scenes: int = 16
    drawn: int = 3
    solver: str = "logistic"
    progress: bool = True


def diagnose(request: DiagnoseRequest) -> dict[str, Any]:
    """Write diagnosis.html, diagnosis.json and attention.png into `out`; return the figures.

    Raises:
        ConfigurationError: on a request that makes no sense, or runs that cannot be compared.
        TrainingError: on a folder that is no run, or one without weights, or too few pictures.
    """
    counts = {"drawn": request.drawn, "a kind": request.per_label, "views": request.views}
    if not request.runs or request.scenes < 4 or min(counts.values()) < 1:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ConfigurationError(
            "Nothing to diagnose",
            got=f"{len(request.runs)} runs, {request.scenes} scenes, {told}",
            expected="a run or more, 4 scenes or more, one or more of the others",
            fix="correct the arguments",
        )
    runs = open_runs(request.runs)
    first = next(iter(runs.values()))
    scenes = list(iterate_observations(first.golden_inputs(), first.processor.spec))
    scenes = scenes[: request.scenes]
    pictures = load_pictures(request.pictures, request.per_label, request.views)
    if pictures is not None:
        check_enough(pictures.labels, pictures.things)
    few = None if pictures is None else choose_labels(pictures, request.labels, request.label_count)
    things = Things(scenes, pictures, few, min(request.drawn, len(scenes)))
    teachers = _find_teachers(runs)
    notes = _notes(runs, teachers, pictures, few)
    findings: list[Finding] = []
    total = len(runs) * (2 if request.before else 1)
    with tqdm(total=total, unit="network", disable=not request.progress) as bar:
        for name, run in runs.items():
            bar.set_postfix_str(name)
            findings += _diagnose_run(name, run, things, request, teachers.get(name), bar)
    facts = {
        "scenes": len(scenes),
        "instructions": [scene.instruction for scene in scenes[: things.drawn_scenes]],
        "pictures": 0 if pictures is None else len(pictures.images),
        "kinds": 0 if pictures is None else len(pictures.names),
        "labels": [] if few is None else list(few.names),
        "mapped": 0 if few is None else len(few.images),
        "solver": request.solver,
        "runs": [_describe(name, run) for name, run in runs.items()],
        "notes": notes,
    }
    return _write(request.out, runs, things, findings, facts)


def _find_teachers(runs: Mapping[str, Run]) -> dict[str, Teacher]:
    """Each run's own teacher, the first aligned run's for those without; empty without any."""
    found: dict[tuple[TeacherConfig, str], Teacher | None] = {}
    own: dict[str, tuple[TeacherConfig, str]] = {}
    for name, run in runs.items():
        if run.config.alignment.weight != 0:
            own[name] = run.config.teacher, run.config.precision
            if own[name] not in found:
                found[own[name]] = find_teacher(run.config)
    first = next(iter(found), None)
    chosen = {name: found.get(own.get(name, first)) for name in runs} if first else {}
    return {name: teacher for name, teacher in chosen.items() if teacher is not None}


def _diagnose_run(
    name: str,
    run: Run,
    things: Things,
    request: DiagnoseRequest,
    teacher: Teacher | None,
    bar: Any,
) -> list[Finding]:
    layers = run.config.alignment.layers
    aligned = layers if run.config.alignment.at == "llm" else ()
    found: list[Finding] = []
    first: Look | None = None
    taught: Tensor | None = None
    for when, model in load_networks(run, before=request.before):
        depth = int(model.llm.config.num_hidden_layers)
        layer = aligned[0] if aligned else depth // 2
        watch = with_layer(run.config.watch, depth, (*aligned, layer))
        seen = look(model, run.processor, things, watch, run.autocast)
        if taught is None and teacher is not None:
            taught = _teach(teacher, run, things, model.grid)
        found.append(
            evaluate(
                name,
                when,
                seen,
                things,
                before=first,
                taught=taught,
                layer=layer,
                solver=request.solver,
            )
        )
        first = seen if when == BEFORE else first
        bar.update()
    return found


def with_layer(watch: WatchConfig, depth: int, needed: tuple[int, ...]) -> WatchConfig:
    """The run's own places, and those `needed`, one of which is mapped."""
    layers = (*choose_layers(watch, depth), *needed)
    return dataclasses.replace(watch, layers=tuple(sorted(set(layers))))


@torch.no_grad()
def _teach(teacher: Teacher, run: Run, things: Things, grid: int) -> Tensor:
    """The teacher's features of the scenes, (rows, width)."""
    images = resize_scenes(things.scenes, run.processor)
    size = run.config.watch.batch_size
    parts = [
        compute_targets(teacher, images[start : start + size], grid).float().cpu()
        for start in range(0, len(images), size)
    ]
    return pick_rows(torch.cat(parts))


def _notes(
    runs: Mapping[str, Run],
    teachers: Mapping[str, Teacher],
    pictures: LabelledPictures | None,
    few: LabelledPictures | None,
) -> list[str]:
    notes = []
    if pictures is None:
        notes.append(f"no probe and no maps without drawings: {pip_command('sight')}")
    if not teachers:
        notes.append("no run has a teacher, so there is no likeness to one")
    for name, run in runs.items():
        if few is not None:
            known = count_known(run.processor, few.names)
            if known < len(few.names):
                notes.append(
                    f"the tokenizer of {name} tells only {known} of {len(few.names)} names "
                    "apart: what it lacks is one unknown word to it, and its name token knows no "
                    "more than the word object"
                )
    return notes


def _describe(name: str, run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "name": name,
        "recipe": config.recipe,
        "steps": config.optim.steps,
        "seed": config.seed,
        "lambda": config.alignment.weight,
        "teacher": config.teacher.name if config.alignment.weight else None,
        "vision_trains": config.optim.vision_lr is not None,
    }


def _write(
    out: Path,
    runs: Mapping[str, Run],
    things: Things,
    findings: Sequence[Finding],
    facts: dict[str, Any],
) -> dict[str, Any]:
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    result = {**facts, "networks": [finding.to_dict() for finding in findings]}
    processors = {name: run.processor for name, run in runs.items()}
    sheet = draw_attention(processors, things.scenes[: things.drawn_scenes], findings)
    with replace_atomically(out / ATTENTION) as path:
        Image.fromarray(sheet).save(path, format="PNG", optimize=True)
    few = things.few
    page = draw_page(result, findings, (out / ATTENTION).read_bytes(), few)
    for name, text in ((FIGURES, json.dumps(result, indent=1) + "\n"), (PAGE, page)):
        with replace_atomically(out / name) as path:
            path.write_text(text, encoding="utf-8")
    return result
