"""report.html: the report as one file that opens from disk, pictures and film inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import cv2

from vla_align_ros.demo.pictures import describe_outcome, read_film
from vla_align_ros.demo.table import headline, summary_rows

EMBED_LIMIT_BYTES = 24_000_000  # a larger film is linked instead, so that browsers stay quick
THUMBNAIL_PX = 96
STAGE_TEXT = {
    "transport": "camera stamp to arrival at the policy",
    "wait": "arrival to the start of inference",
    "prepare": "picture and words to model inputs",
    "infer": "the model",
    "decode": "model output to motions",
    "total": "camera stamp to the first command that follows",
}
STYLE = """
:root { color-scheme: light; --ink: #22272f; --grey: #646c78; --line: #e2e2dc; --good: #16804e;
  --bad: #be322a; --change: #965800; }
* { box-sizing: border-box; }
body { margin: 0; background: #fafaf7; color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p.sub { color: var(--grey); margin: 0 0 24px; }
.verdict { display: inline-block; padding: 6px 14px; border-radius: 6px; font-weight: 600;
  margin: 8px 0 20px; }
.verdict.good, .verdict.bad { color: #fff; }
.verdict.good { background: var(--good); } .verdict.bad { background: var(--bad); }
.top { display: grid; grid-template-columns: minmax(280px, 448px) 1fr; gap: 32px; }
@media (max-width: 820px) { .top { grid-template-columns: 1fr; } }
video, .sheet { width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--grey); font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
table.narrow { width: auto; }
td img { display: block; width: 96px; border-radius: 4px; }
.good { color: var(--good); } .bad { color: var(--bad); } .change { color: var(--change); }
.wide { overflow-x: auto; } small { color: var(--grey); }
footer { margin-top: 40px; color: var(--grey); }
"""


def write_page(report: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html` beside the film and the contact sheet in `out`; returns its path."""
    film = out / "demo.mp4"
    title = "The object not named" if report["swap"] else "From words and pictures to a moving arm"
    mood = "good" if report["passed"] else "bad"
    facts = "".join(
        f"<tr><th>{escape(what)}</th><td>{escape(value)}</td></tr>"
        for what, value in summary_rows(report)
    )
    body = f"""<main>
<h1>{title}</h1>
<p class="sub">A simulated WidowX on ROS 2 {escape(report["ros_distro"])}: camera, policy and
operator are separate processes that meet on topics alone. Shift: {escape(report["shift"])}.</p>
<div class="verdict {mood}">{escape(headline(report))}</div>
<div class="top">
<video controls autoplay muted loop playsinline src="{embed(film, "video/mp4")}"></video>
<div class="wide"><table>{facts}</table></div>
</div>
<h2>Latency</h2>
<div class="wide">{latency_table(report)}</div>
<h2>Episodes</h2>
<div class="wide">{episode_table(report, out)}</div>
{stops_section(report)}
<h2>Contact sheet</h2>
<p class="sub">The last picture of each episode, the first one inset.</p>
<img class="sheet" alt="contact sheet" src="{embed(out / "contact_sheet.png", "image/png")}">
<footer>vla_align_ros {escape(report["version"])}.
Figures: <a href="report.json">report.json</a>, film: <a href="demo.mp4">demo.mp4</a>,
logs: <a href="logs">logs</a>.</footer>
</main>"""
    path = out / "report.html"
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n",
        encoding="utf-8",
    )
    return path


def latency_table(report: Mapping[str, Any]) -> str:
    """A table of stages with p50 and p99 in ms."""
    if not report["latency_ms"]:
        return "<p>The policy node reported no latencies.</p>"
    rows = "".join(
        f"<tr><td>{escape(stage)}</td><td>{escape(STAGE_TEXT.get(stage, ''))}</td>"
        f'<td class="number">{ms["p50"]:.1f}</td><td class="number">{ms["p99"]:.1f}</td></tr>'
        for stage, ms in report["latency_ms"].items()
    )
    return (
        '<table><tr><th>stage</th><th></th><th class="number">p50 ms</th>'
        f'<th class="number">p99 ms</th></tr>{rows}</table>'
    )


def episode_table(report: Mapping[str, Any], out: Path) -> str:
    """One row an episode: last picture, what was said, outcome, figures."""
    rows = "".join(episode_row(episode, out) for episode in report["results"])
    heads = "".join(f"<th>{name}</th>" for name in ("", "#", "instruction", "outcome"))
    numbers = "".join(
        f'<th class="number">{name}</th>' for name in ("seed", "frames", "commands Hz", "jitter ms")
    )
    return f"<table><tr>{heads}{numbers}<th>film</th></tr>{rows}</table>"


def episode_row(episode: Mapping[str, Any], out: Path) -> str:
    """The row of one episode."""
    mood = "good" if episode["success"] else "bad"
    first, *later = (f"{s['instruction']}" for s in episode["spoken"])
    said = escape(first) + "".join(
        f'<br><span class="change">then: {escape(text)}</span>' for text in later
    )
    if episode["swapped"]:
        said += f"<br><small>judged: {escape(episode['judged_instruction'])}</small>"
    commands = episode["commands"]
    rate, jitter = commands.get("command_rate_hz"), commands.get("command_jitter_p99_ms")
    film = escape(episode["film"])
    return (
        f"<tr><td>{thumbnail(out / episode['film'])}</td><td>{episode['episode'] + 1}</td>"
        f'<td>{said}</td><td class="{mood}">{escape(describe_outcome(dict(episode)))}</td>'
        f'<td class="number">{episode["seed"]}</td>'
        f'<td class="number">{episode["frames_received"]} / {episode["frames_sent"]}</td>'
        f'<td class="number">{"-" if rate is None else f"{rate:.1f}"}</td>'
        f'<td class="number">{"-" if jitter is None else f"{jitter:.1f}"}</td>'
        f'<td><a href="{film}">{film}</a></td></tr>'
    )


def stops_section(report: Mapping[str, Any]) -> str:
    """The policy's holds, each with its reason and time."""
    if not report["stops"]:
        return ""
    rows = "".join(
        f'<tr><td class="number">{stop["time_s"]:.1f}</td><td>{escape(stop["reason"])}</td>'
        f"<td>{escape(stop['detail'])}</td></tr>"
        for stop in report["stops"]
    )
    heads = '<tr><th class="number">s</th><th>reason</th><th></th></tr>'
    return (
        '<h2>Stops</h2><p class="sub">The moving arm was told to stand still. The operator '
        "withdraws the instruction at the end of each episode: that is no_instruction.</p>"
        f'<div class="wide"><table class="narrow">{heads}{rows}</table></div>'
    )


def thumbnail(film: Path) -> str:
    """The last picture of a film as an inline image."""
    pictures = list(read_film(film))
    if not pictures:
        return ""
    small = cv2.resize(pictures[-1], (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def embed(path: Path, kind: str) -> str:
    """A file as a data URI; just its name where it is too large for one."""
    if path.stat().st_size > EMBED_LIMIT_BYTES:
        return escape(path.name)
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
