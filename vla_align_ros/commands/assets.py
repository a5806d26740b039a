"""`vla-align assets`: where the benchmark's meshes come from, and whether a folder holds them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "say where the benchmark's assets come from, check a folder of them, name stand-ins"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder."""
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder to check; without it, VLA_ALIGN_ASSETS"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the sources; check the folder, if there is one, against what was published."""
    from vla_align_ros.errors import ConfigurationError
    from vla_align_ros.sim.put_on_plate import assets

    print("The meshes and pictures are not part of this package. In a folder of yours, make:")
    for below, source in assets.SOURCES:
        print(f"  {below:28} {source}")
    print(
        f"and name that folder: to the other commands by --assets, to all by {assets.VARIABLE}.\n"
    )
    try:
        root = assets.find_root(args.folder)
    except ConfigurationError as error:
        if args.folder is not None:
            raise
        print(f"Nothing to check: {error.got}; `vla-align assets DIR` checks a folder")
        return {"ok": None, "root": None, "sources": dict(assets.SOURCES)}
    check = assets.check_assets(root)
    stand_ins = tuple(check.stand_ins())
    total = check.matching + len(check.missing) + len(check.altered)
    print(f"{root}: {check.matching} of {total} published files are the originals")
    _list("missing", check.missing if check.robot else (*check.missing, assets.ROBOT))
    _list("not the original, a stand-in", stand_ins)
    return {
        "ok": check.complete,
        "root": root,
        "matching": check.matching,
        "missing": check.missing,
        "stand_ins": stand_ins,
        "sources": dict(assets.SOURCES),
    }


def _list(title: str, names: tuple[str, ...], most: int = 12) -> None:
    for name in names[:most]:
        print(f"  {title}: {name}")
    if len(names) > most:
        print(f"  {title}: and {len(names) - most} more")
