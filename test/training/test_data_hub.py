"""Data sets come from the hub through its own client: the cameras in use, once, at a revision.

A server on this machine stands in for the hub; the client and its cache are the real ones.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_data import make_episodes, write_v2, write_v3
from tiny_data import tokenizer_bytes

from training.data import sources
from training.data.config import DataConfig
from training.data.dataset import ActionChunkDataset, dataset_statistics
from training.data.hub import download_dataset, is_repository
from training.data.reader import LeRobotReader
from training.provenance import describe_data
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha1(path: Path) -> str:
    """The name of a file's content, in the form that git gives it."""
    return hashlib.sha1(path.read_bytes()).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for one data set at one commit (and for the tag "v2.1")."""

    root: Path
    served: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *args: object) -> None: ...

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        files = sorted(p for p in self.root.rglob("*") if p.is_file())
        names = [str(p.relative_to(self.root)) for p in files]
        known = [f"/api/datasets/lab/cubes/revision/{r}" for r in ("main", "v2.1", COMMIT)]
        if path in known:
            siblings = [{"rfilename": name} for name in names]
            body = json.dumps({"id": "lab/cubes", "sha": COMMIT, "siblings": siblings}).encode()
            self._send(body, with_body, {"Content-Type": "application/json"})
            return
        if path == f"/api/datasets/lab/cubes/tree/{COMMIT}":  # what newer clients ask for
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": sha1(file)}
                for name, file in zip(names, files, strict=True)
            ]
            self._send(json.dumps(tree).encode(), with_body, {"Content-Type": "application/json"})
            return
        prefix = f"/datasets/lab/cubes/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and name in names:
            body = (self.root / name).read_bytes()
            if with_body:
                self.served.append(name)
            etag = f'"{sha1(self.root / name)}"'
            self._send(body, with_body, {"X-Repo-Commit": COMMIT, "ETag": etag})
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"root": tmp_path / "remote", "served": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_only_the_camera_in_use_is_downloaded_and_only_once(
    hub: tuple[str, type[Hub]], tmp_path: Path, write: object
) -> None:
    endpoint, handler = hub
    write(handler.root, make_episodes())  # type: ignore[operator]
    options = {"endpoint": endpoint, "cache_dir": tmp_path / "cache"}
    root = download_dataset("lab/cubes", cameras=("wrist_cam",), **options)
    reader = LeRobotReader(root)
    assert len(reader.columns(["action"])["action"]) == len(reader) == 25
    assert all(path.exists() for path, _ in reader.video_files("observation.images.wrist_cam"))
    assert not any("images.top" in name for name in handler.served)
    known = reader.content_hash("observation.images.wrist_cam"), reader.content_hash()
    count = len(handler.served)
    again = download_dataset("lab/cubes", cameras=("wrist_cam",), revision="v2.1", **options)
    assert again == root and len(handler.served) == count
    assert len(set(handler.served)) == count
    download_dataset("lab/cubes", cameras=("top",), **options)
    now = reader.content_hash("observation.images.wrist_cam"), LeRobotReader(root).content_hash()
    assert now[0] == known[0], "another camera's videos do not change what a run has seen"
    assert now[1] != known[1]


def test_an_unknown_camera_is_refused_before_any_video_is_downloaded(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, handler = hub
    write_v2(handler.root, make_episodes())
    with pytest.raises(DataError, match="lacks the camera: got top, wrist_cam; expected front"):
        download_dataset(
            "lab/cubes", cameras=("front",), endpoint=endpoint, cache_dir=tmp_path / "cache"
        )
    assert all(name.startswith("meta/") for name in handler.served)


def test_an_unknown_repository_is_one_clear_error(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, handler = hub
    handler.root.mkdir()
    with pytest.raises(
        DataError, match=r"lab/spheres is no folder here, and cannot be had from the hub.*hf auth"
    ):
        download_dataset("lab/spheres", endpoint=endpoint, cache_dir=tmp_path / "cache")


def test_names_of_repositories_are_told_from_paths() -> None:
    assert is_repository("lerobot/pusht") and is_repository("a-b.c/d_e")
    for name in ("data/a/b", "/data/a", "./data/a", "../a", "./a", "data", "a b/c"):
        assert not is_repository(name)


def test_a_data_set_of_the_hub_is_called_as_it_was_asked_for_not_by_its_commit(
    hub: tuple[str, type[Hub]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = hub
    write_v2(handler.root, make_episodes())
    here = functools.partial(download_dataset, endpoint=endpoint, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(sources, "download_dataset", here)
    config = DataConfig(cameras=("top",), validation=0.5)
    opened = sources.open_sources(["lab/cubes@v2.1:2", str(handler.root)], config)
    assert opened[0].reader.root.name == COMMIT
    spec = sources.policy_spec(opened, config, horizon=4, with_state=True)
    normalizers = {
        key: Normalizer("quantile", value)
        for key, value in dataset_statistics(opened, config).items()
    }
    tokenizer = PromptTokenizer(tokenizer_bytes(), max_length=24)
    processor = Processor(spec, ImageTransform(size=32), normalizers, tokenizer)
    data = ActionChunkDataset(opened, processor, config)
    assert describe_data(data)["name"] == "cubes+remote"
