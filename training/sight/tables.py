"""The tables of a run's report: what was run, what the probe tells, how far the sight moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from training.sight.curves import place_order, split_place
from training.sight.history import Series
from vla_align_ros.runtime.statistics import wilson_interval


def facts_table(
    summary: Mapping[str, Any], config: Mapping[str, Any], history: Mapping[str, Series]
) -> str:
    """What was run, on what, how fast; `summary` is empty for an unfinished run."""
    last = max((series[-1][0] for series in history.values()), default=0)
    planned = config.get("optim", {}).get("steps")
    rows = [("steps", f"{last} of {planned}" if planned else str(last))]
    rows += [
        (name, _spell(summary[key]))
        for name, key in (
            ("parameters", "parameters"),
            ("seconds", "seconds"),
            ("samples a second", "samples_per_s"),
            ("machine", "machine"),
            ("commit", "commit"),
        )
        if summary.get(key) is not None
    ]
    data = summary.get("dataset") or {}
    if data:
        rows.append(("data", f"{data.get('frames')} frames, {str(data.get('fingerprint'))[:12]}"))
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    state = "" if summary else '<p class="sub">The run is not finished.</p>'
    return f'{state}<div class="wide"><table>{cells}</table></div>'


def _spell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def probe_section(readings: Sequence[Mapping[str, Any]]) -> str:
    """The probe before training and last, with 95 % intervals; empty without a probe."""
    probed = [reading for reading in readings if reading["probe"]]
    if not probed:
        return ""
    first, last = probed[0], probed[-1]
    steps = [first] if first is last else [first, last]
    heads = "".join(f'<th class="number">step {r["step"]}</th><th>95 %</th>' for r in steps)
    rows = "".join(
        f"<tr><td>{escape(place)}</td>"
        + "".join(_accuracy_cells(reading["probe"].get(place)) for reading in steps)
        + "</tr>"
        for place in last["probe"]
    )
    any_result = next(iter(last["probe"].values()))
    return (
        "<h2>Linear probe</h2>"
        f'<p class="sub">Share of {any_result["total"]} labelled pictures of '
        f"{len(any_result['labels'])} kinds that a linear classifier tells from mean-pooled visual "
        "tokens, five-fold cross-validated by picture; guessing the most frequent kind gives "
        f"{any_result['chance']:.3f}. Step 0 is before training.</p>"
        f'<div class="wide"><table><tr><th>read at</th>{heads}</tr>{rows}</table></div>'
        f"{_kinds(first, last)}"
    )


def _accuracy_cells(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "<td></td><td></td>"
    low, high = wilson_interval(result["correct"], result["total"])
    return f'<td class="number">{result["accuracy"]:.3f}</td><td>[{low:.3f}, {high:.3f}]</td>'


def _kinds(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Accuracy of each kind of picture at every place, in the last reading."""
    places = list(last["probe"])
    heads = "".join(f'<th class="number">{escape(place)}</th>' for place in places)
    names = list(next(iter(last["probe"].values()))["labels"])
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(
            f'<td class="number">{last["probe"][place]["labels"].get(name, 0.0):.2f}</td>'
            for place in places
        )
        + "</tr>"
        for name in names
    )
    return (
        f"<details><summary>each kind at step {last['step']}</summary>"
        f'<div class="wide"><table><tr><th>kind</th>{heads}</tr>{rows}</table></div></details>'
    )


def drift_section(readings: Sequence[Mapping[str, Any]]) -> str:
    """The last reading's scalars but the probe's, by place; empty without a reading."""
    if not readings:
        return ""
    last = readings[-1]
    cells = {
        split_place(name.removeprefix("sight/")): value for name, value in last["scalars"].items()
    }
    columns = [what for what in dict.fromkeys(what for what, _ in cells) if what != "probe"]
    places = sorted({place for what, place in cells if what != "probe"}, key=place_order)
    heads = "".join(f'<th class="number">{escape(what)}</th>' for what in columns)
    rows = "".join(
        f"<tr><td>{escape(place)}</td>"
        + "".join(_number_cell(cells.get((what, place))) for what in columns)
        + "</tr>"
        for place in places
    )
    return (
        f"<h2>Sight at step {last['step']}</h2>"
        '<p class="sub">cka: likeness to the features before training (scenes: token by token; '
        "pictures: pooled) or to the teacher's; 1 is equal but for a rotation. cosine: of "
        "projected tokens and teacher features. attention_visual_share: part of the last prompt "
        "token's attention that the picture gets.</p>"
        f'<div class="wide"><table><tr><th>read at</th>{heads}</tr>{rows}</table></div>'
    )


def _number_cell(value: float | None) -> str:
    return f'<td class="number">{"" if value is None else format(value, ".4f")}</td>'
