"""Statistics of actions and states over a mixture, computed once and kept beside the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.config import DataConfig
from training.data.rows import SourceRows
from training.data.sources import Source, open_sources
from training.files import replace_atomically
from vla_align_ros.contract.normalize import Statistics, compute_statistics
from vla_align_ros.errors import DataError

STATISTICS_PATH = "meta/vla_align_stats.json"
_VERSION = 1


def dataset_statistics(
    roots: Sequence[str | Path] | Sequence[Source],
    config: DataConfig | None = None,
    *,
    gripper_mask: bool = False,
    cache_dir: str | Path | None = None,
) -> dict[str, Statistics]:
    """Statistics of "action" (over every action of every chunk) and, if recorded, of "state".

    `gripper_mask` True normalises the gripper too; by default it passes through as 0..1 (OpenVLA
    leaves the gripper out likewise). Kept under a key of the data's content and of what is read
    from it, in `cache_dir` or in the first data set's meta/vla_align_stats.json; where neither can
    be written they are computed anew each time.
    """
    config = config or DataConfig()
    sources = as_sources(roots, config)
    folder = Path(cache_dir) if cache_dir is not None else None
    path = (
        folder / Path(STATISTICS_PATH).name
        if folder is not None
        else sources[0].reader.root / STATISTICS_PATH
    )
    key = statistics_key(sources, config, gripper_mask)
    known = _read_known(path)
    if key in known:
        return {name: Statistics.from_dict(value) for name, value in known[key].items()}
    found = compute(sources, config, gripper_mask)
    known[key] = {name: value.to_dict() for name, value in found.items()}
    try:
        with replace_atomically(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    except OSError:  # a read-only data set, such as one in the hub's cache
        pass
    return found


def as_sources(
    roots: Sequence[str | Path] | Sequence[Source], config: DataConfig | None
) -> list[Source]:
    """Open what is not open yet."""
    opened = [root for root in roots if isinstance(root, Source)]
    if opened and len(opened) == len(roots):
        return opened
    return open_sources([root for root in roots if not isinstance(root, Source)], config)


def compute(
    sources: Iterable[Source], config: DataConfig, gripper_mask: bool
) -> dict[str, Statistics]:
    """The statistics themselves, from the tables."""
    rows = [SourceRows(source, config) for source in sources]
    actions = np.concatenate([part.all_actions() for part in rows])
    if not len(actions):
        raise DataError(
            "No frame moves",
            got=f"{sum(map(len, rows))} frames, all within {config.near_zero_m:g} m and"
            f" {config.near_zero_rad:g} rad of the one before",
            expected="some that move more, or switch the gripper",
            fix="lower --set data.near_zero_m and data.near_zero_rad, which are for 5 Hz, or leave"
            " data.drop_near_zero out",
        )
    mask = np.ones(actions.shape[-1], dtype=bool)
    mask[-1] = gripper_mask
    found = {"action": compute_statistics(actions, mask)}
    states = np.concatenate([part.state[part.moving] for part in rows])
    if states.shape[1]:
        found["state"] = compute_statistics(states)
    return found


def statistics_key(sources: Iterable[Source], config: DataConfig, gripper_mask: bool) -> str:
    """Hash of all that decides the statistics: tables, features, filter, mask."""
    near_zero = [config.near_zero_m, config.near_zero_rad] if config.drop_near_zero else None
    decisive = {
        "version": _VERSION,
        "sources": [_name_columns(source) for source in sources],
        "near_zero": near_zero,
        "gripper_mask": gripper_mask,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _name_columns(source: Source) -> list[Any]:
    """A data set's tables, and which of its columns are read: info.json may name them anew."""
    chosen = source.selection
    action = [chosen.action_key, list(chosen.action_columns), chosen.chunk_key, chosen.gripper]
    return [
        source.reader.tables_hash(),
        chosen.state_key,
        list(chosen.state_names),
        *action,
    ]


def _read_known(path: Path) -> dict[str, Any]:
    """What was kept; a damaged file is as good as none, because it can be computed again."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
