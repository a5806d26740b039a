"""Opens the data sets of a mixture: folders or hub repositories, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.config import DataConfig
from training.data.hub import download_dataset, is_repository
from training.data.layout import INFO_PATH
from training.data.reader import LeRobotReader
from training.data.selection import Selection, select_features
from vla_align_ros.contract.spec import ActionSpec, CameraSpec, PolicySpec, StateSpec
from vla_align_ros.errors import DataError


@dataclass(frozen=True, slots=True)
class Source:
    """One data set of a mixture: how often its samples are drawn, and what of it is used."""

    reader: LeRobotReader
    weight: float
    selection: Selection


def split_source(text: str) -> tuple[str, str | None, float]:
    """Read "FOLDER", "OWNER/NAME" or "OWNER/NAME@REVISION", each with ":WEIGHT" or without.

    Returns name, revision (None: the newest) and weight (1.0); DataError for a bad weight.
    """
    if Path(text).exists():
        return text, None, 1.0
    name, separator, tail = text.rpartition(":")
    weight = 1.0
    if separator:
        try:
            weight = float(tail)
        except ValueError:
            name = text
        if not (weight > 0.0 and math.isfinite(weight)):
            raise DataError(
                "A data set's weight makes no sense",
                got=text,
                expected="a finite number above 0",
                fix="write --data DIR:WEIGHT, for example data/a:2",
            )
    else:
        name = text
    if not Path(name).exists() and "@" in name:
        name, _, revision = name.rpartition("@")
        return name, revision, weight
    return name, None, weight


def open_sources(roots: Sequence[str | Path], config: DataConfig | None = None) -> list[Source]:
    """Open data sets that are to be trained on together; raise DataError if they do not fit.

    A name that is no folder and has the form owner/name is downloaded from the hub.
    """
    config = config or DataConfig()
    if not roots:
        raise DataError(
            "There is no data",
            got="no dataset folder",
            expected="at least one",
            fix="pass --data DIR, made by `vla-align collect`, or a LeRobot data set of yours",
        )
    sources = []
    for root in roots:
        reader, weight = open_source(str(root), config.cameras)
        selection = select_features(reader.schema, config, str(reader.root), reader.name)
        sources.append(Source(reader, weight, selection))
    _check_together(sources, config)
    return sources


def open_source(text: str, cameras: Sequence[str] = ()) -> tuple[LeRobotReader, float]:
    """Open what `split_source` reads, from the hub if it must be; return it with its weight.

    DataError if it is empty. `cameras`: see DataConfig; of the hub's videos only one is fetched.
    """
    name, revision, weight = split_source(text)
    folder, called = Path(name), None
    if not folder.exists() and is_repository(name):
        folder = download_dataset(name, revision=revision, cameras=cameras)
        called = name.rpartition("/")[2]
    reader = LeRobotReader(folder, name=called)
    if not len(reader):
        raise DataError(
            f"{folder} is empty",
            got="no frame",
            expected="at least one episode",
            fix=f"record episodes; {INFO_PATH} counts them",
        )
    return reader, weight


def check_names(sources: Sequence[Source], config: DataConfig) -> None:
    """DataError if `config` says something of a data set by a name that none of these has."""
    names = {source.reader.name for source in sources}
    if unknown := sorted(set(config.grippers or {}) - names):
        raise DataError(
            "No data set has this name",
            got=f"data.grippers of {', '.join(map(repr, unknown))}",
            expected="some of " + ", ".join(map(repr, sorted(names))),
            fix="correct --set data.grippers; a folder's name is its last part",
        )


def policy_spec(
    sources: Sequence[Source],
    config: DataConfig,
    *,
    horizon: int,
    with_state: bool,
    committed: int = 0,
) -> PolicySpec:
    """What a robot must offer to a policy trained on `sources`: the contract of both sides.

    `horizon` steps a chunk, of which the first `committed` can be told. DataError if a state is
    wanted and none was recorded, or if `data.rate_hz` is no data set's rate; ContractError if
    `data.frame` is no frame's name.
    """
    first = sources[0].selection
    rates = sorted({source.reader.rate_hz for source in sources})
    if config.rate_hz is not None and config.rate_hz not in rates:
        raise DataError(
            "No data set was recorded at the policy's rate",
            got=f"data.rate_hz {config.rate_hz:g} Hz",
            expected=" or ".join(f"{rate:g} Hz" for rate in rates),
            fix="leave data.rate_hz out: nothing is resampled, and at another rate the arm would"
            " move that much faster or slower than it was recorded",
        )
    if with_state and first.state_key is None:
        raise DataError(
            f"{sources[0].reader.root} has no proprioception",
            got=", ".join(sources[0].reader.schema.table_keys),
            expected=config.state_key,
            fix="--set data.state_key=NAME, or --set model.state=null for a policy without state",
        )
    return PolicySpec(
        cameras=(CameraSpec(first.camera_name, first.height, first.width),),
        state=StateSpec(first.state_names) if with_state else None,
        action=ActionSpec(
            frame=config.frame,
            rate_hz=config.rate_hz or sources[0].reader.rate_hz,
            horizon=horizon,
            committed=committed,
        ),
    )


def _check_together(sources: Sequence[Source], config: DataConfig) -> None:
    first = sources[0]
    for other in sources[1:]:
        names = other.selection.state_names
        if names != first.selection.state_names:
            raise DataError(
                f"{other.reader.root} cannot be trained on together with {first.reader.root}",
                got=f"state {names}",
                expected=f"state {first.selection.state_names}",
                fix="choose a feature that all record alike by --set data.state_key=NAME; for a"
                " policy without state, --set model.state=null and a NAME that none has",
            )
        if config.rate_hz is None and other.reader.rate_hz != first.reader.rate_hz:
            raise DataError(
                f"{other.reader.root} was recorded at another rate than {first.reader.root}",
                got=f"{other.reader.rate_hz:g} Hz",
                expected=f"{first.reader.rate_hz:g} Hz",
                fix="resample one of them; where the difference does not matter, choose one of the"
                " rates for the policy: --set data.rate_hz=... (nothing is resampled)",
            )
