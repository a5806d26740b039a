"""From what scripts/shipped measured of the shipped policy to what is published of it.

``python -m training.benchmark.shipped OUT ROOT`` reads OUT (runs, bundles, what the demonstration
and the simulator said), writes ROOT/docs/results, two pictures in ROOT/docs/images, and the tables
between the marks of ROOT/README.md and ROOT/docs/sight.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from training.files import replace_atomically
from training.model.checkpoint import WEIGHTS
from training.strange_scenes import tell_row
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.files import hash_file
from vla_align_ros.errors import ConfigurationError
from vla_align_ros.pages import put_between
from vla_align_ros.sim.shifts import SHIFTS

BEGIN = "<!-- {}: written by scripts/shipped publish -->"
END = "<!-- end of {} -->"
PAGES = {"README.md": ("success", "shifts", "making"), "docs/sight.md": ("sight",)}
PICTURES = {"demo.jpg": "demo/contact_sheet.png", "sight.jpg": "sight.png"}
WIDTH_PX = 1120
TALLEST = 3 * 330 / (5 * 256)  # of a width: three rows of the contact sheet's five tiles
RUN, SHIPPED, EXACT = "runs/tabletop_align", "tabletop", "my_policy_fp32"
COLLECT = (
    "vla-align collect --env tabletop --episodes 4000 --record-frames 2:6 --jobs 2 --seed 1 "
    "--out data/tabletop"
)
TRAIN = f"vla-align train --recipe tabletop_align --data data/tabletop --out {RUN}"
DEMOS = {
    "demo": "./scripts/demo --episodes 50",
    "swap": "./scripts/demo --episodes 50 --swap",
    "fp32": f"./scripts/demo --episodes 10 --bundle bundles/{EXACT}",
}
EVALUATE = "vla-align evaluate bundles/tabletop --shift all --episodes 50 --seed 10000 --json"
BENCH = "vla-align bench policy BUNDLE --backends onnx --json, of both in turn, three times"
MEASURE_SIGHT = "vla-align sight measure bundles/tabletop --shift all --episodes 60"
DIFFERS = {
    "none": "nothing",
    "unseen_object": "sausage, potato, radish: words and shapes that are new",
    "unseen_receptacle": "a coaster beside the plate; either may be named",
    "unseen_words": "four other sentences",
    "distractors": "two new objects lie beside the two named ones",
    "unseen_table": "4 new table textures",
    "dim_light": "light at 0.35 to 0.5 of nominal (training 0.8 to 1.2)",
    "overlay_03": "a noise picture blended in at 0.3",
    "overlay_05": "the same at 0.5",
    "camera_moved": "camera up to 3 cm off on each axis",
    "outer_positions": "objects in a ring around the training square",
    "start_pose": "start up to 8 cm off on each axis, turned by up to 0.4 rad",
    "object_moved": "the named object jumps 6 cm after one second",
}

Results = Mapping[str, Any]


def gather(out: Path) -> dict[str, Any]:
    """All figures of the shipped policy, by the name of the file that keeps them."""
    run = _read(out / RUN / "run.json")
    demos = {name: _read(out / name / "report.json") for name in DEMOS}
    return {
        "tabletop_training": {
            "commands": [COLLECT, TRAIN],
            "weights_sha256": hash_file(out / RUN / WEIGHTS)[0],
            "run": {**run, "out": RUN},
        },
        "tabletop_bundles": {
            "command": BENCH,
            "rows": [
                {**_describe(Bundle.open(out / SHIPPED)), "turns_ms": _turns(out, "int8")},
                {**_describe(Bundle.open(out / EXACT)), "turns_ms": _turns(out, "fp32")},
            ],
        },
        **{
            f"tabletop_{name}": {"command": DEMOS[name], "report": report}
            for name, report in demos.items()
        },
        "tabletop_shifts": {"command": EVALUATE, "rows": _read(out / "shifts.json")["rows"]},
        "sight_shifts": {"command": MEASURE_SIGHT, **_read(out / "sight_shifts.json")},
    }


def write_tables(results: Results) -> dict[str, str]:
    """The tables by the name of their marks, in Markdown."""
    return {
        "success": _success(results),
        "shifts": _shifts(results["tabletop_shifts"]),
        "making": _making(results),
        "sight": _sight(results["sight_shifts"]),
    }


def put_tables(page: str, tables: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Replace what stands between the marks of these names."""
    for name in names:
        page = put_between(page, BEGIN.format(name), END.format(name), tables[name])
    return page


def read_results(folder: Path) -> dict[str, Any]:
    """What `gather` gave, from docs/results."""
    names = ("training", "bundles", *DEMOS, "shifts")
    files = [*(f"tabletop_{name}" for name in names), "sight_shifts"]
    return {name: _read(folder / f"{name}.json") for name in files}


def publish(out: Path, root: Path) -> None:
    """Write figures, pictures and tables."""
    from PIL import Image

    results = gather(out)
    for name, content in results.items():
        with replace_atomically(root / "docs/results" / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tables = write_tables(results)
    for page, names in PAGES.items():
        text = put_tables((root / page).read_text(encoding="utf-8"), tables, names)
        with replace_atomically(root / page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name, picture in PICTURES.items():
        with Image.open(out / picture) as sheet:
            shown = sheet.convert("RGB").crop((0, 0, sheet.width, _shown_height(sheet.size)))
            shown.thumbnail((WIDTH_PX, WIDTH_PX))
            shown.save(root / "docs/images" / name, quality=85, optimize=True)


def _shown_height(size: tuple[int, int]) -> int:
    width, height = size
    return height if height < width else min(height, round(TALLEST * width))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ConfigurationError(
            "The shipped policy was not measured to the end",
            got=f"no {path.name} in {path.parent}",
            expected="what scripts/shipped make and measure leave",
            fix="run both; each goes on where it was",
        ) from cause


def _turns(out: Path, name: str) -> list[dict[str, float]]:
    """p50 and p99 of an inference in each turn."""
    turns = [_read(out / f"bench_{name}_{turn}.json")["rows"][0] for turn in (1, 2, 3)]
    return [{"p50": row["p50_ms"], "p99": row["p99_ms"]} for row in turns]


def _describe(bundle: Bundle) -> dict[str, Any]:
    """Id, size on disk, what stayed in float32, the largest error on the golden samples by unit."""
    proof = _read(bundle.path / "report.json")["verify"]
    export = bundle.manifest["provenance"]["export"]
    errors: dict[str, float] = {}
    for dimension in proof["dimensions"].values():
        unit = dimension["unit"]
        errors[unit] = max(errors.get(unit, 0.0), dimension["max"])
    return {
        "bundle_id": bundle.id,
        "precision": bundle.manifest["provenance"]["precision"],
        "bytes": sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()),
        "sight_bytes": bundle.manifest["files"]["model/sight.onnx"]["bytes"],
        "sight": export["sight"],
        "products": sum(part["products"] for part in export.get("sensitivity", [])),
        "kept_in_float": len(export.get("plan", {}).get("kept", [])),
        "samples": proof["samples"],
        "largest_errors": errors,
    }


def _success(results: Results) -> str:
    demo, swap = (results[f"tabletop_{name}"]["report"] for name in ("demo", "swap"))
    told = {"episodes": swap["episodes"], **swap["told"]}
    other = "instruction names the other object: the object named"
    return _table(
        ("over the ROS graph, fresh scenes", "command", "success"),
        ("training distribution, 50 episodes", f"`{DEMOS['demo']}`", _tell(demo)),
        (other, f"`{DEMOS['swap']}`", _tell(told)),
        ("the same: the object *not* named (lower is better)", "", _tell(swap)),
    )


def _shifts(results: Results) -> str:
    rows = []
    for row in results["rows"]:
        axis, name = SHIFTS[row["shift"]].axis, row["shift"]
        rows.append(("" if axis == "none" else axis, f"`{name}`", DIFFERS[name], _tell(row)))
    return _table(("axis", "shift", "what differs", "success"), *rows)


def _making(results: Results) -> str:
    shown = []
    for row in results["tabletop_bundles"]["rows"]:
        p50, p99 = (median(turn[key] for turn in row["turns_ms"]) for key in ("p50", "p99"))
        errors = row["largest_errors"]
        name = row["precision"]
        if row["kept_in_float"]:
            kept = f"{row['kept_in_float']} of {row['products']} products in float32"
            name = f"{name} (shipped): {kept}"
        shown.append(
            (
                f"{name}, id {row['bundle_id'][:12]}",
                f"{row['bytes'] / 1e6:.1f} MB, {row['sight_bytes'] / 1e6:.1f} of it for sight",
                f"{p50:.1f} / {p99:.1f} ms",
                f"{errors['mm']:.2g} mm, {errors['deg']:.2g} deg, gripper {errors['fraction']:.2g}",
            )
        )
    inference = "inference alone, one thread, p50 / p99, median of three turns"
    run = results["tabletop_training"]["run"]
    near, blind = (run[f"val/first_frame_{key}_m"] for key in ("displacement", "blind"))
    return "\n".join(
        [
            _table(
                ("bundle", "size", inference, "largest error against the trained model"), *shown
            ),
            _table(
                ("training it", ""),
                (
                    f"{run['steps']} steps, {run['samples']} samples, on {run['machine']}",
                    f"{run['seconds'] / 60:.1f} min, {run['samples_per_s']:.0f} samples/s",
                ),
                (
                    "first-frame displacement error, against the blind guess",
                    f"{100 * near:.1f} cm, {100 * blind:.1f} cm",
                ),
            ),
        ]
    )


def _sight(results: Results) -> str:
    rows = []
    for row in results["rows"]:
        name, distance = f"`{row['shift']}`", f"{row['distance_p50']:.1f}"
        rows.append((name, row["axis"], *tell_row(row, results["episodes"]), distance))
    heads = ("shift", "axis", "AUROC (95 %)", "beyond the threshold", "median distance")
    limit = f"The threshold is {results['threshold']:.1f}, bundle {results['bundle_id'][:12]}."
    return f"{_table(heads, *rows)}\n{limit}\n"


def _tell(row: Results) -> str:
    low, high = row["success_interval"]
    return (
        f"{row['successes']}/{row['episodes']}, {row['success_rate']:.2f} [{low:.2f}, {high:.2f}]"
    )


def _table(heads: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
