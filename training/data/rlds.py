"""Reads RLDS episodes (TFDS folders of TFRecord files) without TensorFlow.

A record is a tf.train.Example of one episode, whose steps lie end to end in flat lists. Sources:
tensorflow/datasets (`core/example_serializer.py`, `core/features`), the TFRecord format in
TensorFlow's guide, and `tensorflow/core/example/*.proto`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.reader import read_json
from vla_align_ros.errors import DataError

_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True, slots=True)
class StepFeature:
    """One feature of a step: kind "image", "text" or "tensor", its shape and dtype."""

    kind: str
    shape: tuple[int, ...]
    dtype: str


class RldsFolder:
    """One split of a TFDS folder, `.../NAME/VERSION` or `.../NAME` with a single version in it.

    Attributes: `features`: path below the step ("observation/image") -> StepFeature; `name`;
    `split`; `episode_count` as dataset_info.json says.
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        """Read the descriptions; DataError for another layout, format or split."""
        self.path = _find_version(Path(path))
        self.split = split
        info = read_json(self.path / "dataset_info.json")
        self.name = str(info.get("name", self.path.parent.name))
        splits = {str(entry["name"]): entry for entry in info.get("splits", [])}
        if info.get("fileFormat", "tfrecord") != "tfrecord" or split not in splits:
            raise DataError(
                f"{self.path} cannot be read",
                got=f"format {info.get('fileFormat')}, splits {sorted(splits)}",
                expected=f"format tfrecord, a split {split}",
                fix="pass --split, or rewrite the data as TFRecord files with tensorflow_datasets",
            )
        lengths = [int(n) for n in splits[split].get("shardLengths", [])]
        self.episode_count = sum(lengths)
        self.files = sorted(self.path.glob(f"*-{split}.tfrecord-*"))
        if len(self.files) != len(lengths):
            raise DataError(
                f"{self.path} is incomplete",
                got=f"{len(self.files)} files of the split {split}",
                expected=f"{len(lengths)} as dataset_info.json says",
                fix="download the missing files",
            )
        steps = _nested(read_json(self.path / "features.json")).get("steps", {})
        self.features = dict(_flatten(steps.get("sequence", {}).get("feature", {}), ""))
        if not self.features:
            raise DataError(
                f"{self.path} holds no episodes of steps",
                got="features.json without steps",
                expected="an RLDS data set",
                fix="convert another kind of data with a script of your own",
            )

    def episodes(self, first: int = 0) -> Iterator[dict[str, Any]]:
        """Episodes from number `first` on: feature path -> (T, *shape) array or list of T bytes."""
        number = 0
        for file in self.files:
            for record in read_records(file):
                if number >= first:
                    yield self._unpack(parse_example(record), f"episode {number} in {file}")
                number += 1
        if number != self.episode_count:
            raise DataError(
                f"{self.path} is incomplete",
                got=f"{number} episodes",
                expected=f"{self.episode_count} as dataset_info.json says",
                fix="download the data again",
            )

    def _unpack(self, example: Mapping[str, Any], what: str) -> dict[str, Any]:
        episode = {}
        for path, feature in self.features.items():
            values = example.get(f"steps/{path}")
            if values is None:  # encoded in a way that only TFDS knows; unused, most likely
                continue
            if isinstance(values, list):
                episode[path] = values
                continue
            size = int(np.prod(feature.shape))
            if not size or len(values) % size:
                raise DataError(
                    f"A feature of {what} has the wrong length",
                    got=f"{len(values)} numbers of {path}",
                    expected=f"a multiple of {size}",
                    fix="download the data again",
                )
            episode[path] = values.reshape(-1, *feature.shape)
        return episode


def read_records(path: Path) -> Iterator[bytes]:
    """Records of a TFRecord file; DataError if it is cut short or a checksum is wrong."""
    with path.open("rb") as file:
        while header := file.read(12):
            try:
                length, check = struct.unpack("<QI", header)
                _verify(header[:8], check)
                record = file.read(length)
                (check,) = struct.unpack("<I", file.read(4))
                if len(record) != length:
                    raise ValueError(f"{len(record)} of {length} bytes")
                _verify(record, check)
            except (struct.error, ValueError) as error:
                raise DataError(
                    f"The file {path} is damaged",
                    got=str(error),
                    expected="whole TFRecord records",
                    fix="download the file again",
                ) from error
            yield record


def parse_example(record: bytes) -> dict[str, Any]:
    """A serialized tf.train.Example: name -> float32 or int64 array, or list of bytes."""
    features = _example_class().FromString(record).features.feature
    values: dict[str, Any] = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            values[name] = list(feature.bytes_list.value)
        elif kind is not None:
            dtype = np.float32 if kind == "float_list" else np.int64
            values[name] = np.array(getattr(feature, kind).value, dtype=dtype)
    return values


def _verify(content: bytes, check: int) -> None:
    import google_crc32c

    crc = google_crc32c.value(content)
    if ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF != check:
        raise ValueError("a checksum is wrong")


@functools.cache
def _example_class() -> Any:
    """The message class of tf.train.Example, described here because no small package carries it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="vla_align/example.proto", package="vla_align", syntax="proto3"
    )

    def add(name: str, fields: list[tuple[str, int, int, int, str]], parent: Any = file) -> Any:
        is_file = parent is file
        message = (parent.message_type if is_file else parent.nested_type).add(name=name)
        for field, number, value_type, label, of in fields:
            entry = message.field.add(name=field, number=number, type=value_type, label=label)
            if of:
                entry.type_name = f".vla_align.{of}"
        return message

    many, one = kind.LABEL_REPEATED, kind.LABEL_OPTIONAL
    add("BytesList", [("value", 1, kind.TYPE_BYTES, many, "")])
    add("FloatList", [("value", 1, kind.TYPE_FLOAT, many, "")])
    add("Int64List", [("value", 1, kind.TYPE_INT64, many, "")])
    lists = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    feature = add(
        "Feature",
        [(name, n + 1, kind.TYPE_MESSAGE, one, of) for n, (name, of) in enumerate(lists)],
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = add("Features", [("feature", 1, kind.TYPE_MESSAGE, many, "Features.FeatureEntry")])
    entry = add(
        "FeatureEntry",
        [("key", 1, kind.TYPE_STRING, one, ""), ("value", 2, kind.TYPE_MESSAGE, one, "Feature")],
        features,
    )
    entry.options.map_entry = True
    add("Example", [("features", 1, kind.TYPE_MESSAGE, one, "Features")])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vla_align.Example"))


def _find_version(path: Path) -> Path:
    if (path / "features.json").exists():
        return path
    versions = sorted(child.parent for child in path.glob("*/features.json"))
    if len(versions) == 1:
        return versions[0]
    raise DataError(
        f"{path} is no RLDS data set",
        got=", ".join(version.name for version in versions) or "no features.json",
        expected="a TFDS folder with features.json and dataset_info.json",
        fix="give the folder of one version, such as .../bridge_orig/1.0.0",
    )


def _nested(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    features: Mapping[str, Any] = spec.get("featuresDict", {}).get("features", {})
    return features


def _flatten(spec: Mapping[str, Any], path: str) -> Iterator[tuple[str, StepFeature]]:
    """Features by their path below `spec`, as TFDS names them in an Example."""
    for name, child in _nested(spec).items():
        below = f"{path}/{name}" if path else name
        if "featuresDict" in child:
            yield from _flatten(child, below)
            continue
        for kind in ("image", "tensor", "text"):
            if kind in child:
                entry = child[kind]
                sizes = entry.get("shape", {}).get("dimensions", [])
                shape = tuple(int(n) for n in sizes)
                yield below, StepFeature(kind, shape, str(entry.get("dtype", "string")))
