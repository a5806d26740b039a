"""The benchmark's meshes and pictures: found in a folder of the user's, read, and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_align_ros.errors import ConfigurationError

VARIABLE = "VLA_ALIGN_ASSETS"
LISTING = Path(__file__).resolve().parent.parent / "assets" / "put_on_plate.files"

ROBOT = "robots/widowx/wx250s.urdf"
STAGE = "bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb"
BOARD_FOLDERS = (
    *("more_shape", "more_traffic", "more_laundry", "more_weather"),
    *("more_arrows", "more_public_info", "more_numbers"),
)
OBJECTS, PLATES, TABLES = "more_carrot", "more_plate", "more_table"

SOURCES = (
    (
        "carrot/",
        "git clone https://github.com/CognitiveAISystems/BlindVLA and copy "
        "ManiSkill/mani_skill/assets/carrot (MIT)",
    ),
    (
        "robots/widowx/",
        "git clone https://github.com/haosulab/ManiSkill-WidowX250S, or "
        "`python -m mani_skill.utils.download_asset widowx250s`",
    ),
    (
        "bridge_v2_real2sim_dataset/",
        "`python -m mani_skill.utils.download_asset bridge_v2_real2sim` (the table's mesh; "
        "without it a box stands in)",
    ),
)


@dataclass(frozen=True)
class Model:
    """One mesh: its key in the list, folder, words by field, size (m, x y z) and density."""

    key: str
    folder: Path
    words: dict[str, str]
    size_m: tuple[float, float, float]
    density: float


@dataclass(frozen=True)
class Table:
    """A photographed table: picture, and the texture with its weight (0 or 1)."""

    picture: Path
    texture: Path
    mix: float


@dataclass(frozen=True)
class Assets:
    """Everything that the scenes are drawn from, in the order of the published lists."""

    root: Path
    objects: tuple[Model, ...]
    plates: tuple[Model, ...]
    tables: tuple[Table, ...]
    boards: dict[str, tuple[Model, ...]]


def find_root(folder: Path | str | None = None) -> Path:
    """The assets' folder: `folder`, else the variable VLA_ALIGN_ASSETS; ConfigurationError."""
    given = folder or os.environ.get(VARIABLE)
    if given and (Path(given) / "carrot" / OBJECTS / "model_db.json").is_file():
        return Path(given).resolve()
    raise ConfigurationError(
        "The benchmark's assets are not there",
        got=f"no carrot/{OBJECTS}/model_db.json in {given}" if given else f"no {VARIABLE}",
        expected="the folder that `vla-align assets` describes",
        fix=f"pass --assets DIR or set {VARIABLE}; `vla-align assets` says where to get them",
    )


def read_assets(folder: Path | str | None = None) -> Assets:
    """Read the lists of models below `folder` (or VLA_ALIGN_ASSETS)."""
    root = find_root(folder)
    carrot = root / "carrot"
    tables = tuple(
        Table(
            carrot / TABLES / "imgs" / key,
            carrot / TABLES / "textures" / str(entry["texture"]),
            float(entry["mix"]),
        )
        for key, entry in _read_list(carrot / TABLES).items()
    )
    return Assets(
        root,
        _read_models(carrot / OBJECTS, ""),
        _read_models(carrot / PLATES, ""),
        tables,
        {name: _read_models(carrot / name, "shapes") for name in BOARD_FOLDERS},
    )


def _read_list(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "model_db.json"
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as cause:
        raise ConfigurationError(
            "A list of models cannot be read", got=cause, expected=path, fix="copy the assets anew"
        ) from cause
    return entries


def _read_models(folder: Path, below: str) -> tuple[Model, ...]:
    return tuple(
        Model(
            key,
            folder / below / key,
            {name: str(value) for name, value in entry.items() if isinstance(value, str | int)},
            _size_m(entry["bbox"]),
            float(entry.get("density", 1000.0)),
        )
        for key, entry in _read_list(folder).items()
    )


def _size_m(bbox: dict[str, list[float]]) -> tuple[float, float, float]:
    x, y, z = (high - low for low, high in zip(bbox["min"], bbox["max"], strict=True))
    return x, y, z


# -- what is there, and is it the original? ----------------------------------------------------
def read_listing(path: Path = LISTING) -> dict[str, str]:
    """The published files: path below the folder -> git's id of its content."""
    pairs = (line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: blob for blob, name in pairs}


def blob_id(path: Path) -> str:
    """Git's id of a file's content (SHA-1 over a header and the bytes)."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Check:
    """Published files that are `missing`, and files that are `altered` (stand-ins among them).

    digest: SHA-256, in hex, of the contents of all files that scenes are built from, the robot's
    and the table's mesh included.
    """

    matching: int
    missing: tuple[str, ...]
    altered: tuple[str, ...]
    robot: bool
    stage: bool
    digest: str

    @property
    def complete(self) -> bool:
        """Whether every scene can be built; stand-ins count as there."""
        return self.robot and not self.missing

    def stand_ins(self) -> Iterator[str]:
        """What is not the original, in words, for reports."""
        yield from self.altered
        if not self.stage:
            yield f"{STAGE} (a box with its top at the table's height)"


def check_assets(root: Path) -> Check:
    """Compare every published file below `root` with its published content."""
    listing = read_listing()
    robot = ((root / ROBOT).parent).rglob("*")
    others = {str(path.relative_to(root)) for path in robot if path.is_file()} | {STAGE}
    ids = {
        name: blob_id(root / name)
        for name in sorted({*listing, *others})
        if (root / name).is_file()
    }
    text = "".join(f"{blob} {name}\n" for name, blob in ids.items())
    return Check(
        sum(ids.get(name) == blob for name, blob in listing.items()),
        tuple(name for name in listing if name not in ids),
        tuple(name for name, blob in listing.items() if ids.get(name, blob) != blob),
        ROBOT in ids,
        STAGE in ids,
        hashlib.sha256(text.encode()).hexdigest(),
    )


def describe_assets(folder: Path | str | None = None) -> dict[str, Any]:
    """Which published files lie in a folder, as episodes depend on them: counts, names, a digest.

    Raises ConfigurationError if the folder is not complete.
    """
    check = check_assets(find_root(folder))
    if not check.complete:
        raise ConfigurationError(
            "The benchmark's assets are incomplete",
            got=f"{len(check.missing)} files missing, {'a' if check.robot else 'no'} robot",
            expected="all published files",
            fix="see `vla-align assets`",
        )
    return {
        "matching": check.matching,
        "stand_ins": list(check.stand_ins()),
        "digest": check.digest,
    }
