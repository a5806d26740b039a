"""RLDS folders become LeRobot data once: nothing lost, damage refused, interruptions continued.

The folder is written here byte by byte from the formats' descriptions, not by the code under test.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.convert import RldsMapping, _make_schema, convert_rlds, find_mapping
from training.data.layout import EpisodeRecord
from training.data.reader import LeRobotReader
from training.data.rlds import RldsFolder, parse_example, read_records
from vla_align_ros.cli import main
from vla_align_ros.errors import DataError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("google_crc32c") is None, reason="needs the extra [rlds]"
)
LENGTHS = (4, 6, 3)
WORDS = "put the corn in the pot"


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative int64 values take ten bytes
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def encode_example(features: dict[str, Any]) -> bytes:
    """A tf.train.Example by protobuf's wire format: lists of bytes, packed floats and integers."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            kind = field(1, b"".join(field(1, value) for value in values))
        elif values.dtype.kind == "f":
            kind = field(2, field(1, values.astype("<f4").tobytes()))
        else:
            kind = field(3, field(1, b"".join(varint(int(value)) for value in values)))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def crc32c(content: bytes) -> int:
    """CRC-32C bit by bit, masked as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def encode_record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    checks = [struct.pack("<I", crc32c(part)) for part in (length, content)]
    return length + checks[0] + content + checks[1]


def jpeg(episode: int, step: int, camera: int) -> bytes:
    file = io.BytesIO()
    colour = (60 * camera + 30, 40 + 60 * episode, 30 + 25 * step)
    Image.new("RGB", (32, 24), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def make_episode(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    steps = LENGTHS[number]
    return {
        "steps/observation/image": [jpeg(number, step, 0) for step in range(steps)],
        "steps/observation/wrist": [jpeg(number, step, 1) for step in range(steps)],
        "steps/observation/state": rng.normal(size=steps * 8).astype(np.float32),
        "steps/action/world_vector": rng.normal(size=steps * 3).astype(np.float32),
        "steps/action/rotation_delta": rng.normal(size=steps * 3).astype(np.float32),
        "steps/action/open_gripper": rng.integers(0, 2, steps),
        "steps/is_first": np.array([1] + [0] * (steps - 1)),
        "steps/reward": np.full(steps, -1),
        "steps/language_instruction": [WORDS.encode()] * steps,
        "episode_metadata/file_path": [b"/raw/x.h5"],
    }


def tensor(dtype: str, *dimensions: int) -> dict[str, Any]:
    shape = {"dimensions": [str(n) for n in dimensions]} if dimensions else {}
    return {"pythonClassName": "t", "tensor": {"shape": shape, "dtype": dtype, "encoding": "none"}}


def nested(**features: Any) -> dict[str, Any]:
    return {"pythonClassName": "d", "featuresDict": {"features": features}}


def write_rlds(root: Path, *, files: int = 2) -> Path:
    folder = root / "pots/1.0.0"
    folder.mkdir(parents=True)
    size = {"dimensions": ["24", "32", "3"]}
    image = {"image": {"shape": size, "dtype": "uint8", "encodingFormat": "jpeg"}}
    action = nested(
        world_vector=tensor("float32", 3),
        rotation_delta=tensor("float32", 3),
        open_gripper=tensor("bool"),
    )
    step = nested(
        observation=nested(image=image, wrist=image, state=tensor("float32", 8)),
        action=action,
        is_first=tensor("bool"),
        reward=tensor("int64"),
        language_instruction={"text": {}},
    )
    metadata = nested(file_path={"text": {}})
    sequence = {"sequence": {"feature": step, "length": "-1"}}
    features = nested(steps=sequence, episode_metadata=metadata)
    (folder / "features.json").write_text(json.dumps(features))
    parts = np.array_split(np.arange(len(LENGTHS)), files)
    lengths = [str(len(part)) for part in parts]
    info = {
        "name": "pots",
        "fileFormat": "tfrecord",
        "splits": [{"name": "train", "shardLengths": lengths}],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for number, part in enumerate(parts):
        path = folder / f"pots-train.tfrecord-{number:05d}-of-{files:05d}"
        records = [encode_record(encode_example(make_episode(int(n)))) for n in part]
        path.write_bytes(b"".join(records))
    return folder


ACTION = ("action/world_vector", "action/rotation_delta", "action/open_gripper")
MAPPING = RldsMapping(
    ("observation/image",), ACTION, ("observation/state",), "language_instruction"
)


def test_an_example_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = write_rlds(tmp_path)
    records = [r for path in sorted(folder.glob("*.tfrecord-*")) for r in read_records(path)]
    assert len(records) == 3
    for number, record in enumerate(records):
        found = parse_example(record)
        for name, values in make_episode(number).items():
            if isinstance(values, list):
                assert found[name] == values
            else:
                np.testing.assert_array_equal(found[name], values)
                assert found[name].dtype in (np.float32, np.int64)


def test_every_episode_is_converted(tmp_path: Path) -> None:
    folder = RldsFolder(write_rlds(tmp_path).parent)  # the one version in it is found
    assert folder.episode_count == 3 and folder.features["observation/state"].shape == (8,)
    mapping = find_mapping(folder, action=ACTION)
    assert mapping == MAPPING
    out = tmp_path / "out"
    assert convert_rlds(folder, out, mapping, fps=5, progress=False) == 3
    reader = LeRobotReader(out)
    columns = reader.columns()
    episodes = [make_episode(number) for number in range(3)]
    state = np.concatenate([e["steps/observation/state"].reshape(-1, 8) for e in episodes])
    np.testing.assert_array_equal(columns["observation.state"], state)
    for columns_of, name in (
        (slice(0, 3), "world_vector"),
        (slice(3, 6), "rotation_delta"),
        (slice(6, 7), "open_gripper"),
    ):
        values = [e[f"steps/action/{name}"].reshape(LENGTHS[n], -1) for n, e in enumerate(episodes)]
        np.testing.assert_array_equal(columns["action"][:, columns_of], np.concatenate(values))
    assert reader.tasks == [WORDS] and reader.rate_hz == 5.0
    assert reader.schema.features["action"].names == (
        *("dx", "dy", "dz", "drx", "dry", "drz"),
        "gripper",
    )
    shown = np.stack(list(reader.frames("observation.images.image"))).mean((1, 2))
    recorded = [
        np.asarray(Image.open(io.BytesIO(content))).mean((0, 1))
        for episode in episodes
        for content in episode["steps/observation/image"]
    ]
    assert np.abs(shown - np.stack(recorded)).max() < 4


def test_several_cameras_and_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_rlds(tmp_path)
    out = tmp_path / "out"
    words = ["data", "convert", str(folder), "--from", "rlds", "--out", str(out), "--fps", "5"]
    cameras = ["--image", "observation/image", "observation/wrist"]
    assert main([*words, *cameras, "--action", *ACTION, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"] == 3
    keys = LeRobotReader(out).schema.video_keys
    assert keys == ("observation.images.image", "observation.images.wrist")
    assert main(["data", "info", str(out)]) == 0
    assert main(words[:-2]) == 1
    assert "lacks settings" in capsys.readouterr().err
    assert main([*words[:-2], "--fps", "10", "--action", *ACTION]) == 1
    assert "converted with other settings: got fps=10" in capsys.readouterr().err


def test_an_interrupted_conversion_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RldsFolder(write_rlds(tmp_path))
    options: dict[str, Any] = {"fps": 5, "episodes_per_file": 1, "progress": False}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    convert_rlds(folder, whole, MAPPING, **options)
    original = RldsFolder.episodes

    def stop_after_two(self: RldsFolder, first: int = 0) -> Any:
        for number, episode in enumerate(original(self, first), first):
            if number == 2:
                raise KeyboardInterrupt
            yield episode

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RldsFolder, "episodes", stop_after_two)
        convert_rlds(folder, broken, MAPPING, **options)
    assert LeRobotReader(broken).episodes.num_rows == 2
    assert convert_rlds(folder, broken, MAPPING, **options) == 3
    mended, once = LeRobotReader(broken), LeRobotReader(whole)
    for key, values in once.columns().items():
        np.testing.assert_array_equal(mended.columns()[key], values)
    for key in once.schema.video_keys:
        for number in range(3):  # not their bytes: x264 is not exact (see lab_data.encode)
            frames = [np.stack(list(r.episode_frames(key, number))) for r in (mended, once)]
            assert np.abs(frames[0].astype(int) - frames[1]).mean() < 2
            assert np.abs(np.diff(frames[1].astype(int), axis=0)).mean() > 2  # so others would show
    files = [{path.relative_to(root) for path in root.rglob("*.*")} for root in (broken, whole)]
    assert files[0] == files[1]


@pytest.mark.parametrize("other", ["split", "version"])
def test_another_split_or_version_is_not_added_to_a_conversion(tmp_path: Path, other: str) -> None:
    first, out = write_rlds(tmp_path), tmp_path / "out"
    convert_rlds(RldsFolder(first), out, MAPPING, fps=5, progress=False)
    second = first
    if other == "version":
        second = shutil.copytree(first, first.with_name("1.1.0"))
    else:
        for path in sorted(first.glob("*-train.*")):
            shutil.copy(path, path.with_name(path.name.replace("-train.", "-val.")))
        info = json.loads((first / "dataset_info.json").read_text())
        info["splits"].append({**info["splits"][0], "name": "val"})
        (first / "dataset_info.json").write_text(json.dumps(info))
    folder = RldsFolder(second, "val" if other == "split" else "train")
    with pytest.raises(DataError, match=f"converted with other settings: got {other}="):
        convert_rlds(folder, out, MAPPING, fps=5, progress=False)
    assert LeRobotReader(out).episodes.num_rows == 3


def test_an_older_conversion_goes_on_with_the_split_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = RldsFolder(write_rlds(tmp_path)), tmp_path / "out"
    convert_rlds(folder, out, MAPPING, fps=5, progress=False)
    path = out / "meta/conversion.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "split": "val"}))
    with pytest.raises(DataError, match="got split=train; expected split=val"):
        convert_rlds(folder, out, MAPPING, fps=5, progress=False)
    older = {key: value for key, value in held.items() if key not in ("split", "version")}
    path.write_text(json.dumps(older))
    assert not capsys.readouterr().err
    assert convert_rlds(folder, out, MAPPING, fps=5, progress=False) == 3
    assert "does not tell the version and split" in capsys.readouterr().err


def test_names_of_the_state_are_written_and_counted(tmp_path: Path) -> None:
    folder, names = RldsFolder(write_rlds(tmp_path)), tuple("abcdefgh")
    mapping = find_mapping(folder, action=ACTION, state_names=names)
    convert_rlds(folder, tmp_path / "out", mapping, fps=5, progress=False)
    assert LeRobotReader(tmp_path / "out").schema.features["observation.state"].names == names
    for wrong in (names[:7], (*names[:7], "a")):
        with pytest.raises(DataError, match=r"expected 8 different names.*--state-names"):
            find_mapping(folder, action=ACTION, state_names=wrong)


def test_what_would_be_read_as_something_else_is_refused(tmp_path: Path) -> None:
    root = write_rlds(tmp_path)
    folder = RldsFolder(root)
    with pytest.raises(DataError, match=r"for --instruction.*one of language_instruction"):
        find_mapping(folder, action=ACTION, instruction="observation/state")
    features = json.loads((root / "features.json").read_text())
    step = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    inner = step["featuresDict"]["features"]
    inner["other"] = nested(image=inner["observation"]["featuresDict"]["features"]["image"])
    inner["words"] = tensor("string")
    inner["joint_velocity"] = tensor("float32", 7)
    (root / "features.json").write_text(json.dumps(features))
    folder = RldsFolder(root)
    assert find_mapping(folder, action=ACTION, instruction="words").instruction == "words"
    with pytest.raises(DataError, match="would be one camera"):
        find_mapping(folder, action=ACTION, images=["observation/image", "other/image"])
    mapping = replace(MAPPING, action=("joint_velocity",))
    record = EpisodeRecord("", {}, {"action": np.zeros((1, 7), np.float32)})
    names = _make_schema(folder, mapping, record, 5).features["action"].names
    assert names == tuple(f"joint_velocity_{number}" for number in range(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-3], "is damaged"),
        (lambda c: c[:40] + bytes([c[40] ^ 1]) + c[41:], "a checksum is wrong"),
        (lambda c: bytes([c[0] ^ 1]) + c[1:], "a checksum is wrong"),
        (lambda c: b"", "is incomplete: got 1 episodes; expected 3"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = write_rlds(tmp_path)
    path = sorted(folder.glob("*.tfrecord-*"))[0]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        list(RldsFolder(folder).episodes())


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("action/world_vector", None, "no action/world_vector"),
        ("action/world_vector", [b"x"] * 4, r"action/world_vector in bytes, .*encoding none"),
        ("observation/image", None, "no observation/image"),
        ("observation/image", [], "no observation/image"),
    ],
)
def test_a_feature_that_an_episode_lacks_or_has_compressed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, values: Any, told: str
) -> None:
    whole = make_episode

    def make_part(number: int) -> dict[str, Any]:
        changed = {**whole(number), f"steps/{name}": values}
        return {key: value for key, value in changed.items() if value is not None}

    monkeypatch.setitem(globals(), "make_episode", make_part)
    folder = RldsFolder(write_rlds(tmp_path))
    with pytest.raises(DataError, match=f"A feature of episode 0 cannot be read: got {told}"):
        convert_rlds(folder, tmp_path / "out", MAPPING, fps=5, progress=False)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = write_rlds(tmp_path)
    with pytest.raises(DataError, match=r"for --action: got action; expected one of .*world_vec"):
        find_mapping(RldsFolder(root))
    with pytest.raises(DataError, match=r"for --image: got observation/depth.*observation/wrist"):
        find_mapping(RldsFolder(root), images=["observation/depth"], action=ACTION)
    with pytest.raises(DataError, match=r"splits \['train'\]; expected .*a split val"):
        RldsFolder(root, "val")
    with pytest.raises(DataError, match="no RLDS data set"):
        RldsFolder(tmp_path / "nowhere")
    sorted(root.glob("*.tfrecord-*"))[1].unlink()
    with pytest.raises(DataError, match="got 1 files of the split train; expected 2"):
        RldsFolder(root)
