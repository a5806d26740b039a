"""diagnosis.html: runs side by side on one page that opens from disk and explains itself."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.diagnose.findings import MEAN, NAMED, UNNAMED, Finding
from training.diagnose.scatter import draw_scatter
from training.sight.curves import place_order
from training.sight.draw import arrange, fit, overlay
from training.sight.page import STYLE
from training.sight.pictures import LabelledPictures
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor

Cell = Callable[[Mapping[str, Any], str], str]

HOW_TO_READ = {
    "attention": (
        "Where the words look",
        "Left, what the first run's model sees; then, for each network, where the instruction's "
        "last token looks, divided by where it looks when asked to &quot;Describe the scene "
        "briefly.&quot;, mean over the blocks named below. Yellow is most. A policy that still "
        "sees puts yellow on the thing that the sentence names; a blinded one spreads it, or "
        "always looks at the same place.",
    ),
    "probe": (
        "What a linear classifier can read off",
        "Share of labelled pictures whose kind one matrix tells from the mean visual token, with "
        "95 % intervals; five-fold cross-validated, views of a thing always together. If training "
        "took something of the sight, the row after it is below the row before it, and the "
        "intervals part.",
    ),
    "drift": (
        "How far the sight moved, and towards whom",
        "Linear CKA compares two sets of features whatever their axes: 1 is the same but for a "
        "rotation, 0 unrelated. <b>scenes</b>: each visual token against the same token before "
        "training; <b>pictures</b>: mean tokens of the labelled pictures; <b>teacher</b>: each "
        "visual token against the teacher's. Moving is not losing: read it with the probe.",
    ),
    "clusters": (
        "Do the kinds stay apart?",
        "Pictures of a few kinds, laid out in a plane so that neighbours stay neighbours (t-SNE, "
        "perplexity 30, 1000 iterations, seed 42). The silhouette says the same as a number, from "
        "the features themselves: 1 is apart, 0 is mixed, below 0 is nearer to another kind. "
        f"<b>{MEAN}</b>: of the picture. <b>{NAMED}</b>: the token of &quot;pick up the "
        "<i>kind</i>&quot; that names it; its word alone can tell the kinds apart. "
        f"<b>{UNNAMED}</b>: the same token in &quot;pick up the object&quot;, where only the "
        "picture can.",
    ),
}


def draw_attention(
    processors: Mapping[str, Processor], scenes: Sequence[Observation], findings: Sequence[Finding]
) -> NDArray[np.uint8]:
    """A sheet (H, W, 3): a row a scene and camera, a column a network.

    processors: by run; what they crop may differ, and each map lies over what its network saw.
    """
    first = next(iter(processors.values()))
    cameras = [camera.name for camera in first.spec.cameras]
    rows = []
    for number, scene in enumerate(scenes):
        for place, camera in enumerate(cameras):
            pictures = {
                run: processor.image_transform.resize(scene.images[camera])
                for run, processor in processors.items()
            }
            caption = scene.instruction if place == 0 else camera
            tiles = [(caption, fit(next(iter(pictures.values()))))]
            for finding in findings:
                own = finding.attention[number].reshape(len(cameras), -1)[place]
                grid = round(len(own) ** 0.5)
                tile = overlay(pictures[finding.run], own.reshape(grid, grid))
                tiles.append((f"{finding.when}: {finding.run}", tile))
            rows.append(tiles)
    return arrange(rows)


def draw_page(
    result: Mapping[str, Any],
    findings: Sequence[Finding],
    attention: bytes,
    few: LabelledPictures | None,
) -> str:
    """The page; `attention` is a PNG file."""
    networks = result["networks"]
    names = ", ".join(run["name"] for run in result["runs"])
    parts = [
        f"<h1>What training did to the sight of {escape(names)}</h1>",
        f'<p class="sub">{result["scenes"]} held-out scenes; {result["pictures"]} labelled '
        f"pictures of {result['kinds']} kinds. The same for every network.</p>",
        _runs(result["runs"]),
        _head("attention"),
        f'<p><img alt="attention maps" src="data:image/png;base64,'
        f'{base64.b64encode(attention).decode()}"></p>',
        _shares(networks),
    ]
    if any(network["probe"] for network in networks):
        chance = next(iter(networks[0]["probe"].values()))["chance"]
        parts += [
            _head("probe"),
            f'<p class="sub">Guessing the most frequent kind gives {chance:.3f}.</p>',
            _table(networks, "probe", _accuracy),
        ]
    parts += [_head("drift"), _drift(networks)]
    if few is not None:
        parts += [_head("clusters"), _silhouettes(networks), *_planes(findings, few)]
    if result["notes"]:
        items = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
        parts.append(f"<h2>To bear in mind</h2><ul>{items}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sight of {escape(names)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(section: str) -> str:
    title, text = HOW_TO_READ[section]
    return f'<h2>{title}</h2><p class="sub">{text}</p>'


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    heads = ("run", "recipe", "steps", "seed", "lambda", "teacher", "vision trains")
    keys = ("name", "recipe", "steps", "seed", "lambda", "teacher", "vision_trains")
    rows = [[_spell(run[key]) for key in keys] for run in runs]
    return _draw_table(heads, rows, numbers=False)


def _spell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else escape(str(value))


def _shares(networks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{escape(network['run'])}, {network['when']}",
            ", ".join(map(str, network["blocks"])),
            f"{network['attention_share']:.3f}",
        ]
        for network in networks
    ]
    return _draw_table(("network", "blocks", "attention that the picture gets"), rows)


def _table(networks: Sequence[Mapping[str, Any]], key: str, cell: Cell) -> str:
    places = _places(networks, key)
    rows = [
        [f"{escape(network['run'])}, {network['when']}", *(cell(network[key], p) for p in places)]
        for network in networks
        if network[key]
    ]
    return _draw_table(("network", *places), rows) if rows else "<p>Nothing to compare.</p>"


def _places(networks: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({place for network in networks for place in network[key]}, key=place_order)


def _accuracy(values: Mapping[str, Any], place: str) -> str:
    if place not in values:
        return ""
    low, high = values[place]["interval"]
    return f"{values[place]['accuracy']:.3f} <small>[{low:.2f}, {high:.2f}]</small>"


def _number(values: Mapping[str, Any], place: str) -> str:
    value = values.get(place)
    return "" if value is None else f"{value:.3f}"


def _drift(networks: Sequence[Mapping[str, Any]]) -> str:
    def both(values: Mapping[str, Any], place: str) -> str:
        found = values.get(place, {})
        return " / ".join(_number(found, what) or "-" for what in ("scenes", "pictures"))

    parts = []
    if any(network["cka_before"] for network in networks):
        parts += [
            "<h3>With itself before training: scenes / pictures</h3>",
            _table(networks, "cka_before", both),
        ]
    if any(network["cka_teacher"] for network in networks):
        parts += ["<h3>With the teacher</h3>", _table(networks, "cka_teacher", _number)]
    return "".join(parts)


def _silhouettes(networks: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for what in (MEAN, NAMED, UNNAMED):
        own = [{**network, "scores": network["silhouettes"].get(what, {})} for network in networks]
        parts += [f"<h3>Silhouette, {what}</h3>", _table(own, "scores", _number)]
    return "".join(parts)


def _planes(findings: Sequence[Finding], few: LabelledPictures) -> list[str]:
    parts = []
    for what in (MEAN, NAMED, UNNAMED):
        figures = "".join(
            draw_scatter(
                f"{finding.when}: {finding.run}, layer {finding.layer}",
                finding.planes[what],
                few.labels,
                few.names,
            )
            for finding in findings
            if what in finding.planes
        )
        if figures:
            parts.append(f'<h3>{what}</h3><div class="charts">{figures}</div>')
    return parts


def _draw_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> str:
    kind = ' class="number"' if numbers else ""
    first, *others = heads
    top = f"<th>{escape(first)}</th>" + "".join(f"<th{kind}>{escape(h)}</th>" for h in others)
    body = "".join(
        f"<tr><td>{row[0]}</td>" + "".join(f"<td{kind}>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'
