"""Downloads LeRobot data sets from the Hugging Face hub, and only the cameras that are used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from training.data.layout import DatasetSchema
from training.data.reader import read_info
from training.data.selection import find_camera
from vla_align_ros.errors import DataError

_SHOWN = 240  # characters of the client's own message
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a name has the form of a hub repository, "owner/name"."""
    return _REPOSITORY.fullmatch(name) is not None


def download_dataset(
    repository: str,
    *,
    revision: str | None = None,
    cameras: Sequence[str] = (),
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Bring a data set of the hub into the hub's own cache and return its folder.

    `meta` comes first and tells which camera (of `cameras`, see DataConfig) is used; of the
    videos only that camera's are fetched. What is in the cache already is not fetched again, and
    without a network (HF_HUB_OFFLINE=1) the cache alone serves. `endpoint`, `cache_dir`: see
    huggingface_hub. Raises DataError if the repository or the network is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                endpoint=endpoint,
                cache_dir=cache_dir,
            )
        )

    try:
        root = fetch(["meta/*"])
        info = read_info(root)
        schema = DatasetSchema.from_info(info)
        camera = find_camera(schema, cameras, str(root))
        patterns = ["meta/*", "data/*"]
        return fetch([*patterns, f"videos/*{camera}/*"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"The data set {repository} is no folder here, and cannot be had from the hub",
            got=" ".join(str(error).split())[:_SHOWN],
            expected="a public data set, or one that your token may read",
            fix="check the name and the network, run `hf auth login` for a private one, or give"
            " a folder",
        ) from error
