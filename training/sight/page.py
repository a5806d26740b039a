"""report.html: one run on one page that opens from disk, everything inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from training.files import replace_atomically
from training.sight.curves import draw_chart, group_series
from training.sight.history import Series, read_history
from training.sight.reading import SIGHT_FOLDER, list_readings
from training.sight.tables import drift_section, facts_table, probe_section

REPORT_FILE = "report.html"
SECTIONS = (
    ("loss/", "Losses"),
    ("align/", "Alignment while training"),
    ("sight/", "Sight"),
    ("val/", "Held-out episodes"),
    ("", "Others"),
)
STYLE = """
:root { color-scheme: light; --ink: #22272f; --grey: #646c78; --line: #e2e2dc; }
* { box-sizing: border-box; }
body { margin: 0; background: #fafaf7; color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p.sub, small, footer { color: var(--grey); }
table { border-collapse: collapse; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--grey); font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 16px; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  padding: 10px; }
figcaption { font-weight: 500; font-size: 13px; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: #646c78; }
.key { font-size: 12px; color: var(--grey); } .key span { white-space: nowrap; }
.wide { overflow-x: auto; } img { max-width: 100%; border-radius: 4px; }
pre { overflow-x: auto; background: #fff; border: 1px solid var(--line); padding: 12px;
  font-size: 12px; }
footer { margin-top: 40px; }
"""


def write_report(run: str | Path) -> Path:
    """Write <run>/report.html from the files of the run, finished or not; returns its path.

    Raises:
        TrainingError: if the folder is no run.
    """
    folder = Path(run)
    history = read_history(folder)
    readings = list_readings(folder / SIGHT_FOLDER)
    summary, config = _read(folder / "run.json"), _read(folder / "config.json")
    title = f"{config.get('recipe', 'A run')}: {folder.resolve().name}"
    body = "".join(
        (
            facts_table(summary, config, history),
            probe_section(readings),
            drift_section(readings),
            _charts(history),
            _figures(readings, folder / SIGHT_FOLDER),
            _notes(readings),
            f"<h2>Configuration</h2><details><summary>config.json</summary>"
            f"<pre>{escape(json.dumps(config, indent=1))}</pre></details>",
        )
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )
    path = folder / REPORT_FILE
    with replace_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _charts(history: Mapping[str, Series]) -> str:
    charts, done, parts = group_series(history), set(), []
    for prefix, title in SECTIONS:
        own = [name for name in sorted(charts) if name.startswith(prefix) and name not in done]
        done |= set(own)
        if own:
            figures = "".join(draw_chart(name, charts[name]) for name in own)
            parts.append(f'<h2>{title}</h2><div class="charts">{figures}</div>')
    return "".join(parts)


def _figures(readings: Sequence[Mapping[str, Any]], folder: Path) -> str:
    drawn = [reading for reading in readings if reading["figures"]]
    if not drawn:
        return ""
    parts = [
        "<h2>Where the words look</h2>"
        '<p class="sub">Attention to the picture, mean over the heads, divided by that of the '
        "neutral prompt &quot;Describe the scene briefly.&quot;; yellow is most. First row: the "
        "last token of the prompt.</p>"
    ]
    for reading in drawn if len(drawn) == 1 else (drawn[0], drawn[-1]):
        parts.append(f"<h3>step {reading['step']}</h3>")
        for name, file in reading["figures"].items():
            path = folder / file
            if path.is_file():
                data = base64.b64encode(path.read_bytes()).decode()
                parts.append(
                    f'<p><img alt="{escape(name)}" src="data:image/png;base64,{data}"></p>'
                )
    return "".join(parts)


def _notes(readings: Sequence[Mapping[str, Any]]) -> str:
    notes = dict.fromkeys(note for reading in readings for note in reading["notes"])
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Left out</h2><ul>{items}</ul>" if items else ""


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text())
    return value if isinstance(value, dict) else {}
