"""report.json and report.html of an evaluation: plot, tables in the paper's layout, films."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.benchmark.episode import EXPERT, Record
from training.benchmark.figures import tell_p
from training.benchmark.paper import ROWS
from training.benchmark.plot import draw_rates
from training.data.video import encode_video
from training.files import replace_atomically
from vla_align_ros.sim.put_on_plate.environments import CONTROL_HZ

PICTURES = "pictures"
STRIP_HEIGHT_PX, STRIP_PICTURES = 96, 6
VIDEO = ".mp4"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .6em; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #ddd; }
.theirs { color: #777; font-style: italic; } small { color: #777; } figure { margin: .6em 0; }
td div.bar { background: #4a7; height: .35em; } figcaption { color: #555; } img { max-width: 100%; }
"""


def save_pictures(folder: Path, record: Record) -> None:
    """Keep a filmed episode: some of its pictures as one strip, and all as an mp4."""
    pictures = record.pictures
    chosen = np.linspace(0, len(pictures) - 1, STRIP_PICTURES).astype(int)
    scaled = [
        Image.fromarray(picture).resize(
            (round(picture.shape[1] * STRIP_HEIGHT_PX / picture.shape[0]), STRIP_HEIGHT_PX)
        )
        for picture in (pictures[number] for number in chosen)
    ]
    strip = np.concatenate([np.asarray(picture) for picture in scaled], axis=1)
    (folder / PICTURES).mkdir(exist_ok=True)
    name = folder / picture_name(record.policy, record.env, record.seed)
    film = (picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2] for picture in pictures)
    with replace_atomically(name.with_suffix(VIDEO)) as path:  # whose colour wants even sides
        encode_video(path, film, round(CONTROL_HZ), pixel_format="yuv420p")
    Image.fromarray(strip).save(name)


def picture_name(policy: str, env: str, seed: int) -> str:
    """Path of an episode's strip below the report's folder; its video lies beside it."""
    return f"{PICTURES}/{policy[:12]}_{env}_{seed}.jpg"


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and report.html."""
    texts = {
        "report.json": json.dumps(report, indent=1) + "\n",
        "report.html": draw_page(folder, report),
    }
    for name, text in texts.items():
        with replace_atomically(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def draw_page(folder: Path, report: Mapping[str, Any]) -> str:
    """The report as one HTML page; pictures stay beside it."""
    rules = (
        f"{report['episodes']} episodes an environment from seed {report['seed']}, "
        f"at most {report['max_steps']} steps, {report['executed']} actions of each chunk."
    )
    stand_ins = report["assets"].get("stand_ins", [])
    parts = [
        f"<h1>{html.escape(report['suite'])}</h1><p>{rules} Success at any step; below it, at the "
        "last step; intervals are Wilson's at 95 %, a scene being one trial however many training "
        "seeds met it.</p>",
        draw_rates(report),
        *_tables(report),
        _comparisons(report["comparisons"], report["compared"]),
        "<p><small>Not the originals: " + html.escape("; ".join(stand_ins)) + "</small></p>"
        if stand_ins
        else "",
        "<p><small>Run by " + html.escape("; ".join(report["made_by"])) + "</small></p>",
        "<h2>Sample episodes</h2><p>Click one to see its film.</p>",
        *_sheets(folder, report),
    ]
    return (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(report['suite'])}</title>"
        f"<style>{STYLE}</style>" + "\n".join(parts)
    )


def _tables(report: Mapping[str, Any]) -> list[str]:
    """One table for each axis: policies down, environments across, the paper's rows last."""
    axes = report["axes_of_envs"]
    tables = []
    for axis in dict.fromkeys(axes.values()):
        names = [name for name in axes if axes[name] == axis]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = [
            f"<tr><td>{html.escape(_title(variant))}</td>"
            + "".join(_cell(variant["envs"][name]) for name in names)
            + f"<td>{variant['axes'].get(axis, float('nan')):.2f}</td></tr>"
            for variant in report["variants"]
        ]
        rows += _their_rows(report["suite"], names)
        tables.append(
            f"<h2>{html.escape(axis)}</h2><table><tr><th>policy</th>{head}<th>mean</th></tr>"
            + "".join(rows)
            + "</table>"
        )
    return tables


def _title(variant: Mapping[str, Any]) -> str:
    """A variant's name, with its policy's id or how many there are."""
    ids = variant["policies"]
    if len(ids) > 1:
        return f"{variant['name']}, {len(ids)} training seeds"
    return variant["name"] if ids[0] == EXPERT else f"{variant['name']} ({ids[0][:12]})"


def _cell(row: Mapping[str, Any]) -> str:
    if not row["episodes"]:
        return "<td>-</td>"
    low, high = row["interval"]
    rates = [f"{rate:.2f}" for rate in row["rates"] if rate is not None]
    seeds = f"<br>seeds {', '.join(rates)}" if len(rates) > 1 else ""
    return (
        f"<td>{row['success_rate']:.2f}<br><small>[{low:.2f}, {high:.2f}]<br>end "
        f"{row['successes_end'] / row['episodes']:.2f}{seeds}</small>"
        f"<div class='bar' style='width:{100 * row['success_rate']:.0f}%'></div></td>"
    )


def _their_rows(suite: str, names: Sequence[str]) -> list[str]:
    rows = []
    for who, rates in ROWS.get(suite, {}).items():
        shown = [rates.get(name) for name in names]
        known = [rate for rate in shown if rate is not None]
        if known:
            cells = "".join("<td>-</td>" if r is None else f"<td>{r:.2f}</td>" for r in shown)
            mean = f"{np.mean(known):.2f}" if len(known) == len(shown) else "-"
            rows.append(
                f"<tr class='theirs'><td>{who} (the paper's)</td>{cells}<td>{mean}</td></tr>"
            )
    return rows


def _comparisons(rows: Sequence[Mapping[str, Any]], compared: Sequence[str]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{html.escape(row['better'])} over {html.escape(row['worse'])}</td>"
        f"<td>{row['pairs']}</td><td>{row['wins']}</td><td>{row['losses']}</td>"
        f"<td>{row['difference']:+.3f}</td><td>{tell_p(row['p_value'])}</td>"
        f"<td>{row['rank_biserial']:+.2f}</td><td>"
        + ", ".join(f"{value:+.3f}" for value in row["differences"].values())
        + f"</td><td>{tell_p(row['p_repeats'])}</td></tr>"
        for row in rows
        if row["pairs"]
    )
    return (
        "<h2>Paired comparisons</h2><p>Same environments ("
        + html.escape(", ".join(compared))
        + ") and seeds; one-sided Wilcoxon signed-rank test that the first is better: of all "
        "episodes, and of the mean differences of the training seeds, where both have several.</p>"
        "<table><tr>"
        "<th>policies</th><th>pairs</th><th>won</th><th>lost</th><th>difference</th><th>p</th>"
        "<th>rank-biserial</th><th>by training seed</th><th>p of these</th></tr>"
        + body
        + "</table>"
    )


def _sheets(folder: Path, report: Mapping[str, Any]) -> list[str]:
    figures = []
    for policy in report["policies"]:
        for env, row in policy["envs"].items():
            for seed in range(report["seed"], report["seed"] + report["episodes"]):
                name = picture_name(policy["policy"], env, seed)
                if (folder / name).exists():
                    state = "failed" if seed in row["failed_seeds"] else "succeeded"
                    caption = (
                        f"{policy['name']} ({policy['policy'][:12]}), {env}, seed {seed}: {state}"
                    )
                    strip = f"<img src='{html.escape(name)}' alt='{html.escape(caption)}'>"
                    video = Path(name).with_suffix(VIDEO)
                    if (folder / video).exists():
                        strip = f"<a href='{html.escape(str(video))}'>{strip}</a>"
                    figures.append(
                        f"<figure>{strip}<figcaption>{html.escape(caption)}</figcaption></figure>"
                    )
    return figures
