"""Strict JSON, streamed hashes and durable writes: what is read is exactly what was written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_align_ros.errors import BundleError, ContractError, VlaAlignError

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_JSON_LEVELS = 64  # what only just can be read can be neither hashed nor named in an error
_CHUNK_BYTES = 1024 * 1024
_DIGEST_BYTES = hashlib.sha256().digest_size
_OWN = 0o700


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of ``value``: sorted keys, no blanks, no NaN, UTF-8."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as cause:
        raise ContractError(
            "value has no exact JSON form",
            got=cause,
            expected="None, bool, int, finite float, str, list or dict with str keys",
        ) from cause
    return text.encode()


def readable_json(value: object) -> bytes:
    """Return indented JSON of ``value`` with sorted keys, for files that people read."""
    canonical_json(value)
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def user_cache(name: str) -> Path:
    """Return the user's own folder of one cache: $XDG_CACHE_HOME/vla_align_ros/<name>."""
    return xdg_home("XDG_CACHE_HOME", "~/.cache") / "vla_align_ros" / name


def xdg_home(variable: str, default: str) -> Path:
    """Return a base folder of the user's; a path that is not absolute is ignored.

    So the XDG Base Directory Specification: it would be another one from folder to folder.
    """
    home = Path(os.environ.get(variable, ""))
    return home if home.is_absolute() else Path(default).expanduser()


def claim_folder(folder: Path) -> None:
    """Make a folder that is the user's alone, or see that it is: for caches of code, not of data.

    A hash beside a file shows damage, not malice; whoever may write here may have it run.

    Raises:
        OSError: if it cannot be made, or another user owns it or can reach into it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=_OWN)
    found = folder.stat()
    if (found.st_uid, found.st_mode & 0o777) != (os.getuid(), _OWN):
        raise PermissionError(f"{folder} is not the user's alone: remove it, or chmod 700")


def seal(content: bytes) -> bytes:
    """Return the content behind its sha256 (32 bytes), for a cache that may be damaged."""
    return hashlib.sha256(content).digest() + content


def read_sealed(path: Path) -> bytes:
    """Return what was sealed in a file; nothing if it is missing or damaged."""
    try:
        stored = path.read_bytes()
    except OSError:
        return b""
    content = stored[_DIGEST_BYTES:]
    return content if seal(content) == stored else b""


def read_json_object(path: Path, error: type[VlaAlignError] = ContractError) -> dict[str, Any]:
    """Read a JSON object; refuse duplicate keys, NaN, infinity, other types, huge and deep files.

    Raises:
        VlaAlignError: of the class ``error``, for every way in which the file can be unreadable.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        value = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_read_finite,
        )
        _require_flat(value)
    except (OSError, ValueError, RecursionError) as cause:
        raise error(
            f"cannot read {path.name}", got=cause, expected=f"a JSON object in {path}"
        ) from cause
    if not isinstance(value, dict):
        raise error(f"cannot read {path.name}", got=type(value).__name__, expected="a JSON object")
    return value


def require_keys(data: object, names: Iterable[str], what: str) -> Mapping[str, Any]:
    """Return ``data`` if it is a mapping with exactly the keys ``names``.

    Raises:
        ContractError: if it is no mapping, or a key is missing or unknown.
    """
    wanted = sorted(names)
    if not isinstance(data, Mapping):
        raise ContractError(f"{what} is not an object", got=type(data).__name__, expected=wanted)
    if sorted(map(str, data)) != wanted:
        raise ContractError(
            f"{what} has the wrong keys", got=sorted(map(str, data)), expected=wanted
        )
    return data


def hash_file(path: Path) -> tuple[str, int]:
    """Return (sha256 in hex, size in bytes) of a regular file, streamed, never following a link.

    Raises:
        OSError: if the file cannot be opened, is a symbolic link, or is not a regular file.
    """
    digest = hashlib.sha256()
    size = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        while block := stream.read(_CHUNK_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def write_durably(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and wait until the disk has it."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def replace_durably(
    path: Path, content: bytes, workplace: Path, *, prefix: str = ".", mode: int = 0o600
) -> None:
    """Put a file in the place of another, or of none, in one step that lasts.

    Args:
        path: of the file. content: all of it. workplace: a folder of the same file system, where it
            grows under a name of its own that begins with the prefix. mode: its permissions.

    Raises:
        OSError: if it cannot be written; then the former file is as it was.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=prefix, dir=workplace)
    os.close(descriptor)
    try:
        write_durably(Path(temporary), content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_path(path.parent)


def replace_in_bundle(bundle: Path, name: str, content: bytes) -> None:
    """Put a file in the place of another of the same name, in one step that lasts.

    Until then it lies beside the bundle, which is refused while it holds a file of no name.

    Args:
        bundle: the folder. name: of the file, relative to it.

    Raises:
        BundleError: if one may not write there, or both places are not on one file system.
    """
    try:
        replace_durably(
            bundle / name, content, bundle.parent, prefix=f".{bundle.name}.", mode=0o644
        )
    except OSError as cause:
        raise BundleError(
            f"{name} cannot be written",
            got=cause,
            expected=f"{bundle} and the folder that holds it writable, on one file system",
            fix="copy the bundle into a folder of yours that has room, and use the copy",
        ) from cause


@contextlib.contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Keep out whoever else locks the folder, in this process or another, until the end.

    Leaves nothing behind. A file system that locks no folders goes without.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def sync_path(path: Path) -> None:
    """Wait until the disk has a file's content, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _require_flat(value: object) -> None:
    level = [value]
    for _ in range(MAX_JSON_LEVELS):
        level = [inner for outer in level for inner in _list_inner(outer)]
    if level:
        raise ValueError(f"more than {MAX_JSON_LEVELS} levels of lists and objects")


def _list_inner(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _read_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
