"""Episodes on disk, one line each, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from training.benchmark.episode import Record
from training.benchmark.stages import TABLETOP, Rules
from training.files import replace_atomically
from training.provenance import find_commit
from vla_align_ros.errors import ConfigurationError

Key = tuple[str, str, int]


def describe_code(suite: str) -> str:
    """What an episode depends on beside its rules: this code and the simulator."""
    simulator = "mujoco" if suite == TABLETOP else "mani_skill"
    names = {"vla_align_ros": find_commit() or _find_version("vla_align_ros")}
    names[simulator] = _find_version(simulator)
    return ", ".join(f"{name} {told}" for name, told in names.items())


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


class EpisodeStore:
    """The episodes of one folder: `episodes.jsonl`, under the rules in `rules.json`.

    Without a folder it keeps them in memory. Each says in "made_by" by which code it was run.
    ConfigurationError if the folder holds episodes that were run by other rules.
    """

    def __init__(self, folder: Path | None, rules: Rules, assets: dict[str, Any]) -> None:
        self._folder = folder
        self._lines: dict[Key, dict[str, Any]] = {}
        self._made_by = describe_code(rules.suite)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._settle_rules({**asdict(rules), "assets": assets})
        self._read()

    @classmethod
    def open(cls, folder: Path) -> EpisodeStore:
        """The episodes of a folder by the rules that it holds."""
        rules = json.loads((folder / "rules.json").read_text(encoding="utf-8"))
        assets = rules.pop("assets")
        return cls(folder, Rules(**rules), assets)

    def __contains__(self, key: Key) -> bool:
        return key in self._lines

    def add(self, record: Record) -> None:
        """Keep an episode; on disk before this returns."""
        line = {**record.to_line(), "made_by": self._made_by}
        self._lines[record.policy, record.env, record.seed] = line
        if self._folder is None:
            return
        with (self._folder / "episodes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def select(self, keys: Iterable[Key]) -> list[dict[str, Any]]:
        """The episodes of these keys that are there, in that order."""
        return [self._lines[key] for key in keys if key in self._lines]

    def _settle_rules(self, rules: dict[str, Any]) -> None:
        assert self._folder is not None
        path = self._folder / "rules.json"
        wanted = json.loads(json.dumps(rules))
        if not path.exists():
            with replace_atomically(path) as temporary:
                temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
            return
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = {key for key in there.keys() | wanted if there.get(key) != wanted.get(key)}
        if differing:
            raise ConfigurationError(
                "These episodes were run by other rules",
                got={key: wanted.get(key) for key in sorted(differing)},
                expected={key: there.get(key) for key in sorted(differing)},
                fix=f"repeat the options of {path}, or give another --out",
            )

    def _read(self) -> None:
        """Read what is there; a last line that was cut off by a crash is dropped from the file."""
        assert self._folder is not None
        path = self._folder / "episodes.jsonl"
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for raw in file:
                try:
                    line = json.loads(raw)
                except ValueError:
                    if raw.endswith(b"\n"):
                        raise ConfigurationError(
                            "An episode cannot be read",
                            got=raw[:80],
                            expected=f"one JSON object a line in {path}",
                            fix="remove that line",
                        ) from None
                    break
                if not raw.endswith(b"\n"):
                    break
                whole += len(raw)
                self._lines[line["policy"], line["env"], line["seed"]] = line
        if whole != path.stat().st_size:
            os.truncate(path, whole)
