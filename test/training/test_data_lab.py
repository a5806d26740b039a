"""A lab's own data set as it is: features are found or asked for by name, batches fit the robot."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_data import TASKS, correct_tasks, make_episodes, write_v2, write_v3
from tiny_data import tokenizer_bytes

from training.data.chunks import moves
from training.data.config import DataConfig
from training.data.dataset import ActionChunkDataset, dataset_statistics
from training.data.sources import Source, check_names, open_sources, policy_spec, split_source
from training.data.statistics import STATISTICS_PATH
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTokenizer
from vla_align_ros.errors import ConfigurationError, DataError

TOP = DataConfig(cameras=("top",), validation=0.5)
HORIZON = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v2(tmp_path_factory.mktemp("lab"), make_episodes())


def make_processor(sources: list[Source], config: DataConfig, with_state: bool = True) -> Processor:
    spec = policy_spec(sources, config, horizon=HORIZON, with_state=with_state)
    statistics = dataset_statistics(sources, config)
    keys = ("action", "state") if with_state else ("action",)
    return Processor(
        spec,
        ImageTransform(size=32, crop=config.crop),
        {key: Normalizer("quantile", statistics[key]) for key in keys},
        PromptTokenizer(tokenizer_bytes(), max_length=24),
    )


def open_data(roots: list[Any], config: DataConfig = TOP, **options: Any) -> ActionChunkDataset:
    sources = open_sources(roots, config)
    return ActionChunkDataset(sources, make_processor(sources, config, **options), config)


def change_feature(root: Path, key: str, **changes: Any) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][key].update(changes)
    (root / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("decode", ["once", "online"])
def test_a_batch_is_bitwise_what_the_robot_computes(root: Path, decode: Any) -> None:
    data = open_data([root], replace(TOP, decode=decode))
    episodes = make_episodes()
    assert data.processor.spec.cameras[0].to_dict() == {"name": "top", "height": 48, "width": 64}
    assert data.processor.spec.state is not None
    assert data.processor.spec.state.names == ("left_x", "left_y", "yaw_pos", "gripper_pos")
    assert data.environment_state.shape == (25, 0) and data.environment_names == ()
    rows = np.random.default_rng(2).permutation(25)
    batch = {name: tensor.numpy() for name, tensor in data.batch(rows).items()}
    shown = data.camera_pictures(rows)
    for place, row in enumerate(rows):
        episode = int(data.episode[row])
        frame = int(data.frame_index[row])
        recorded = episodes[episode].images["top"][frame].astype(int)
        assert np.abs(shown[place] - recorded).mean() < 6
        observation = Observation(
            images={"top": shown[place]},
            state=episodes[episode].state[frame],
            instruction=TASKS[episodes[episode].task],
            stamp_s=0.0,
        )
        for name, array in data.processor.prepare(observation).items():
            assert batch[name][place].tobytes() == array[0].tobytes(), name


def test_chunks_are_the_following_actions_and_padding_is_told(root: Path) -> None:
    data = open_data([root])
    actions = np.concatenate([episode.action for episode in make_episodes()])
    batch = data.batch(np.array([0, 3, 13]))
    assert data.has_padding and data.action_chunk.shape == (25, 4, 7)
    pad = batch["is_pad"].numpy()
    assert pad.tolist() == [[False] * 4, [False, False, True, True], [False, True, True, True]]
    np.testing.assert_array_equal(data.chunks(np.array([0]))[0][0], actions[:4])
    np.testing.assert_array_equal(data.chunks(np.array([3]))[0][0][:2], actions[3:5])
    still = data.chunks(np.array([13]))[0][0][1:]
    assert not still[:, :6].any() and (still[:, 6] == actions[13, 6]).all()


def test_a_mixture_finds_each_data_set_s_camera_and_keeps_its_weight(
    root: Path, tmp_path: Path
) -> None:
    other = write_v3(tmp_path / "b", make_episodes((3, 6, 5, 2)))
    info = (other / "meta/info.json").read_text().replace("images.top", "images.image_0")
    (other / "meta/info.json").write_text(info)
    (other / "videos/observation.images.top").rename(other / "videos/observation.images.image_0")
    path = other / "meta/episodes/chunk-000/file-000.parquet"
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = [name.replace("images.top", "images.image_0") for name in table.column_names]
    pq.write_table(table.rename_columns(names), path)
    config = replace(TOP, cameras=("image_0", "top"))
    data = open_data([root, f"{other}:2.5"], config)
    assert data.weights == [1.0, 2.5] and len(data) == 41
    shown = data.camera_pictures(np.arange(41)).astype(int)
    recorded = [e.images["top"] for e in (*make_episodes(), *make_episodes((3, 6, 5, 2)))]
    assert np.abs(shown - np.concatenate(recorded)).mean(axis=(1, 2, 3)).max() < 6


def test_frames_without_motion_are_left_out_and_counted(tmp_path: Path) -> None:
    episodes = make_episodes()
    for episode in episodes:
        episode.action[:, 3:6] = 0.0
        episode.action[1:3, :3] = 0.001
        episode.action[:, 6] = 1.0
    root = write_v2(tmp_path, episodes)
    config = replace(TOP, drop_near_zero=True)
    data = open_data([root], config)
    actions = np.concatenate([episode.action for episode in episodes])
    kept = moves(actions, data.episode, 0.01, 0.06)
    assert data.dropped == int((~kept).sum()) >= 8
    used = np.sort(np.concatenate([data.indices("train"), data.indices("val")]))
    np.testing.assert_array_equal(used, np.flatnonzero(kept))
    np.testing.assert_array_equal(data.chunks(np.array([0]))[0][0][1], actions[3])
    found = dataset_statistics([root], config)["action"]
    np.testing.assert_allclose(found.mean, actions[kept].astype(float).mean(0), rtol=1e-6)


def test_data_in_which_nothing_moves_far_enough_are_one_clear_error(tmp_path: Path) -> None:
    episodes = make_episodes()
    for episode in episodes:
        episode.action[:, :6], episode.action[:, 6] = 0.002, 1.0
    root = write_v2(tmp_path, episodes)
    expected = r"No frame moves: got 25 frames, all within 0\.01 m and 0\.06 rad.*near_zero_m"
    with pytest.raises(DataError, match=expected):
        open_data([root], replace(TOP, drop_near_zero=True))
    config = replace(TOP, drop_near_zero=True, near_zero_m=0.001)
    assert open_data([root], config).dropped == 0


def test_only_the_instructions_asked_for_are_trained_on_and_the_rest_is_counted(
    tmp_path: Path,
) -> None:
    root = write_v2(tmp_path, make_episodes())
    whole = open_data([root])
    data = open_data([root], replace(TOP, instructions=(TASKS[1],)))
    used = np.concatenate([data.indices("train"), data.indices("val")])
    assert {data.tasks[number] for number in data.task_id[used]} == {TASKS[1]}
    others = int((whole.task_id != whole.tasks.index(TASKS[1])).sum())
    assert data.left_out["frames_of_other_instructions"] == others == len(data) - len(used) > 0
    assert "frames_of_other_instructions" not in whole.left_out
    with pytest.raises(DataError, match=r"got 'open the window'; expected some of .*instructions"):
        open_data([root], replace(TOP, instructions=(TASKS[1], "open the window")))


def test_episodes_without_words_are_left_out_and_counted(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes())
    tasks = (root / "meta/tasks.jsonl").read_text().replace(TASKS[1], "  ")
    (root / "meta/tasks.jsonl").write_text(tasks)
    data = open_data([root])
    used = np.concatenate([data.indices("train"), data.indices("val")])
    assert set(data.episode[used]) == {0, 2}
    assert data.left_out == {"broken_episodes": 0, "still_frames": 0, "unlabelled_frames": 16}
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "a"}\n')
    with pytest.raises(DataError, match=r"tasks of .* are incomplete: got 1 texts, task 1"):
        open_data([root])


def test_a_task_without_a_text_is_one_without_words(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes())
    tasks = (root / "meta/tasks.jsonl").read_text().replace(f'"{TASKS[1]}"', "null")
    (root / "meta/tasks.jsonl").write_text(tasks)
    assert open_data([root]).left_out["unlabelled_frames"] == 16


def test_episodes_with_nothing_but_dots_for_words_are_left_out_like_those_without(
    tmp_path: Path,
) -> None:
    root = write_v2(tmp_path, make_episodes())
    correct_tasks(root, lambda text: " . " if text == TASKS[1] else text)
    assert open_data([root]).left_out["unlabelled_frames"] == 16


@pytest.mark.parametrize("odd", ["move the\u200b cup", " ".join(["and on"] * 90), "a <s> b"])
def test_an_odd_instruction_is_named_with_its_episodes_and_can_be_left_out(
    tmp_path: Path, odd: str
) -> None:
    root = write_v2(tmp_path, make_episodes())
    correct_tasks(root, lambda text: odd if text == TASKS[1] else text)
    expected = rf"{re.escape(str(root))} has an instruction.*in episode 1, 3 \(.*data\.instructions"
    with pytest.raises(DataError, match=expected):
        open_data([root])
    assert not (root / "cache").exists()  # it is said before any picture is decoded
    data = open_data([root], replace(TOP, instructions=(TASKS[0],)))
    assert data.left_out["frames_of_other_instructions"] == 16


@pytest.mark.parametrize("row", [None, [0.0, None, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 6])
def test_a_row_without_its_values_is_one_clear_error(tmp_path: Path, row: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = write_v2(tmp_path, make_episodes())
    path = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[2] = row
    place = table.column_names.index("action")
    column = pa.array(rows, type=pa.list_(pa.float32()))
    pq.write_table(table.set_column(place, "action", column), path)
    with pytest.raises(DataError, match=r"action.*lacks values|not finite: got action"):
        open_data([root])


def test_rows_longer_than_the_description_are_told_from_empty_ones(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes())
    change_feature(root, "observation.state", shape=[3])
    with pytest.raises(
        DataError, match=r"more values than meta/info\.json says.*expected 3.*shape"
    ):
        open_data([root])


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "half", "nested"])
def test_actions_are_read_from_any_kind_of_column(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root, floats = write_v2(tmp_path, make_episodes()), pa.float32()
    types = {
        "list": pa.list_(pa.float64()),
        "large_list": pa.large_list(floats),  # as polars writes it
        "fixed": pa.list_(floats, 7),
        "half": pa.list_(pa.float16()),
        "nested": pa.list_(pa.list_(floats)),
    }
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        column = table["action"]
        if kind == "nested":
            column = pa.chunked_array([[[row] for row in column.to_pylist()]], types[kind])
        place = table.column_names.index("action")
        pq.write_table(table.set_column(place, "action", column.cast(types[kind])), path)
    if kind == "nested":
        change_feature(root, "action", shape=[1, 7])
    actions = np.concatenate([episode.action for episode in make_episodes()])
    data = open_data([root])
    np.testing.assert_allclose(data.action_chunk[:, 0], actions, rtol=0, atol=1e-4)
    assert data.action_chunk.dtype == np.float32


def test_an_environment_s_state_of_doubles_comes_as_floats(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = write_v2(tmp_path, make_episodes())
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        values = pa.array([[0.5, 1.5]] * len(table), type=pa.list_(pa.float64()))
        pq.write_table(table.append_column("observation.environment_state", values), path)
    info = json.loads((root / "meta/info.json").read_text())
    feature = {"dtype": "float64", "shape": [2], "names": None}
    info["features"]["observation.environment_state"] = feature
    (root / "meta/info.json").write_text(json.dumps(info))
    assert open_data([root]).environment_state.dtype == np.float32


def test_cameras_are_asked_for_by_name(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"several cameras: got top, wrist_cam.*data\.cameras.*--camera top"
    ):
        open_sources([root], DataConfig())
    with pytest.raises(DataError, match=r"lacks the camera: got top, wrist_cam; expected front"):
        open_sources([root], DataConfig(cameras=("front",)))
    with pytest.raises(
        DataError, match=r'"top"\]\' \(in a mixture \["front", "top"\]\); of `data`'
    ):
        open_sources([root], DataConfig(cameras=("front",)))
    full = open_sources([root], DataConfig(cameras=("observation.images.wrist_cam",)))
    assert full[0].selection.camera == "observation.images.wrist_cam"


def test_the_wrong_number_of_actions_is_one_clear_error(tmp_path: Path) -> None:
    root = write_v2(tmp_path, make_episodes())
    names = [f"joint_{n}" for n in range(6)] + ["gripper"]
    change_feature(root, "action", shape=[14], names=[*names, *(f"r_{name}" for name in names)])
    with pytest.raises(DataError, match=r"wrong size: got 14 values: joint_0.*expected 7: dx dy"):
        open_sources([root], TOP)
    wanted = tuple(f"r_{name}" for name in names)
    source = open_sources([root], replace(TOP, action_names=wanted))[0]
    assert source.selection.action_columns == tuple(range(7, 14))
    with pytest.raises(DataError, match=r"wrong size: got 14 values.*expected x, y"):
        open_sources([root], replace(TOP, action_names=("x", "y", "z", "a", "b", "c", "d")))
    with pytest.raises(DataError, match=r"lacks the actions.*expected delta.*data\.action_key"):
        open_sources([root], replace(TOP, action_key="delta"))
    with pytest.raises(ConfigurationError, match=r"data\.action_names.*seven names"):
        replace(TOP, action_names=("x",))


JOINTS = [*(f"joint_{n}.pos" for n in range(1, 7)), "gripper.pos"]


@pytest.mark.parametrize(
    "names",
    [
        JOINTS,
        [*(f"v{axis}" for axis in ("x", "y", "z", "roll", "pitch", "yaw")), "gripper"],
        [*(f"ee.{axis}" for axis in ("x", "y", "z", "rx", "ry", "rz")), "gripper.pos"],
        [f"motor_{n}" for n in range(7)],
        ["gripper", "x", "y", "z", "roll", "pitch", "yaw"],
        [*(f"{axis}.pos" for axis in ("x", "y", "z", "roll", "pitch", "yaw")), "gripper.pos"],
        [*(f"world_vector_{n}" for n in (2, 0, 1)), "roll", "pitch", "yaw", "gripper"],
    ],
)
def test_seven_values_that_are_named_as_something_else_are_no_deltas(
    tmp_path: Path, names: list[str]
) -> None:
    root = write_v2(tmp_path, make_episodes())
    change_feature(root, "action", names={"motors": names})
    with pytest.raises(DataError, match=r"not look like end-effector deltas.*data\.action_names="):
        open_sources([root], TOP)
    source = open_sources([root], replace(TOP, action_names=tuple(names)))[0]
    assert source.selection.action_columns == tuple(range(7))


@pytest.mark.parametrize(
    "names",
    [
        ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
        ["delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz", "gripper.pos"],
        ["X", "Y", "Z", "Roll", "Pitch", "Yaw", "gripper"],
        ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "grip"],
        ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"],
        [*(f"delta_{part}_{axis}" for part in ("pos", "rot") for axis in "xyz"), "gripper"],
        [*(f"delta_{name}.pos" for name in ("x", "y", "z", "roll", "pitch", "yaw")), "gripper.pos"],
        [*(f"{p}_{a}" for p in ("world_vector", "rotation_delta") for a in "xyz"), "open_gripper"],
        [
            *(f"{part}_{n}" for part in ("world_vector", "rotation_delta") for n in range(3)),
            "gripper_closedness_action",
        ],
        ["actions"],
        None,
    ],
)
def test_deltas_are_known_by_the_names_that_recorders_give(
    tmp_path: Path, names: list[str] | None
) -> None:
    root = write_v2(tmp_path, make_episodes())
    change_feature(root, "action", names=names)
    assert open_sources([root], TOP)[0].selection.action_columns == tuple(range(7))


@pytest.mark.parametrize("own", [["dx", "dy", "dz", "drx", "dry", "drz", "gripper"], None, JOINTS])
def test_names_that_one_data_set_of_a_mixture_has_are_not_asked_of_another(
    tmp_path: Path, own: list[str] | None
) -> None:
    motors = tuple(f"motor_{n}" for n in range(7))
    roots = [write_v2(tmp_path / name, make_episodes()) for name in ("one", "other")]
    change_feature(roots[0], "action", names=list(reversed(motors)))
    change_feature(roots[1], "action", names=own)
    config = replace(TOP, action_names=motors)
    if own == JOINTS:
        with pytest.raises(DataError, match="not look like end-effector deltas"):
            open_sources(roots, config)
        return
    one, other = open_sources(roots, config)
    assert one.selection.action_columns == tuple(reversed(range(7)))
    assert other.selection.action_columns == tuple(range(7))


def test_a_name_that_is_misspelt_does_not_undo_the_order_that_was_asked_for(
    tmp_path: Path,
) -> None:
    root = write_v2(tmp_path, make_episodes())
    change_feature(root, "action", names=["x", "y", "z", "roll", "pitch", "yaw", "gripper"])
    swapped = ("y", "x", "z", "roll", "pitch", "jaw", "gripper")
    with pytest.raises(DataError, match="expected y, x, z, roll, pitch, jaw"):
        open_sources([root], replace(TOP, action_names=swapped))


def test_named_actions_are_read_in_the_asked_order(root: Path) -> None:
    order = ("z", "y", "x", "yaw", "pitch", "roll", "gripper")
    data = open_data([root], replace(TOP, action_names=order))
    actions = np.concatenate([episode.action for episode in make_episodes()])
    np.testing.assert_array_equal(data.action_chunk[:, 0], actions[:, [2, 1, 0, 5, 4, 3, 6]])


@pytest.mark.parametrize(
    ("convention", "opened", "closed"),
    [
        ("fraction_closed", 0.0, 1.0),
        ("signed_closed", -1.0, 1.0),
        ("signed_open", 1.0, -1.0),
        ("percent_open", 100.0, 0.0),
        ("percent_closed", 0.0, 100.0),
    ],
)
def test_grippers_of_other_conventions_become_the_fraction_open(
    tmp_path: Path, convention: Any, opened: float, closed: float
) -> None:
    episodes = make_episodes()
    truth = np.concatenate([episode.action[:, 6] for episode in episodes])
    for episode in episodes:
        episode.action[:, 6] = np.where(episode.action[:, 6] > 0.5, opened, closed)
    root = write_v2(tmp_path, episodes)
    data = open_data([root], replace(TOP, gripper=convention))
    np.testing.assert_array_equal(data.action_chunk[:, 0, 6], truth)


def test_each_data_set_of_a_mixture_may_have_a_gripper_of_its_own(
    root: Path, tmp_path: Path
) -> None:
    episodes = make_episodes()
    truth = np.concatenate([episode.action[:, 6] for episode in episodes])
    for episode in episodes:
        episode.action[:, 6] = 1.0 - 2.0 * episode.action[:, 6]
    other = write_v2(tmp_path / "libero", episodes)
    with pytest.raises(
        DataError, match=r"in a mixture --set 'data\.grippers=\{\"libero\": \.\.\.\}'"
    ):
        open_data([root, other])
    config = replace(TOP, grippers={"libero": "signed_closed"})
    data = open_data([root, other], config)
    np.testing.assert_array_equal(data.action_chunk[:, 0, 6], np.tile(truth, 2))
    assert [source.selection.gripper for source in data.sources] == [
        "fraction_open",
        "signed_closed",
    ]
    assert dataset_statistics([root, other], config)["action"].min[6] == 0.0


def test_grippers_are_asked_for_by_names_that_there_are(root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.grippers\['a'\]: got 'ajar'.*signed_open"):
        DataConfig(grippers={"a": "ajar"})
    config = replace(TOP, grippers={"liberro": "signed_closed"})
    with pytest.raises(DataError, match=rf"grippers of 'liberro'; expected some of '{root.name}'"):
        check_names(open_sources([root], config), config)


@pytest.mark.parametrize(("shut", "opened"), [(0.0, 100.0), (-1.0, 1.0), (0.0, 1.2)])
def test_grippers_beyond_their_convention_are_refused(
    tmp_path: Path, shut: float, opened: float
) -> None:
    episodes = make_episodes()
    for episode in episodes:
        episode.action[:, 6] = shut + episode.action[:, 6] * (opened - shut)
    with pytest.raises(DataError, match=r"grippers of .*data\.gripper.*percent_open"):
        open_data([write_v2(tmp_path, episodes)])


def test_grippers_that_hardly_move_are_asked_about_but_still_ones_are_not(tmp_path: Path) -> None:
    episodes = make_episodes()
    for episode in episodes:
        episode.action[:, 6] *= 0.08  # metres
    with pytest.warns(UserWarning, match=r"from 0 to 0\.08 alone, read as fraction_open"):
        open_data([write_v2(tmp_path / "metres", episodes)])
    for episode in episodes:
        episode.action[:, 6] = 1.0
    open_data([write_v2(tmp_path / "still", episodes)])


def test_a_gripper_of_the_state_that_is_no_fraction_is_asked_about(tmp_path: Path) -> None:
    episodes = make_episodes()
    for episode in episodes:
        episode.state[:, 3] = np.linspace(0.0, 100.0, len(episode))
    root = write_v2(tmp_path, episodes)
    open_data([root])  # called gripper_pos, which no robot supplies
    change_feature(root, "observation.state", names=["x", "y", "yaw", "gripper"])
    with pytest.warns(
        UserWarning, match=r"state's gripper of .* goes from 0 to 100, where a robot"
    ):
        open_data([root])


def test_a_policy_with_state_needs_a_recorded_one(root: Path) -> None:
    config = replace(TOP, state_key="observation.joints")
    with pytest.raises(DataError, match=r"no proprioception.*expected observation\.joints"):
        open_data([root], config)
    data = open_data([root], config, with_state=False)
    assert data.state.shape == (25, 0) and "state" not in data.batch(np.array([0]))


def test_data_sets_that_do_not_fit_together_are_refused(root: Path, tmp_path: Path) -> None:
    other = write_v2(tmp_path / "b", make_episodes())
    change_feature(other, "observation.state", names=["a", "b", "c", "d"])
    with pytest.raises(DataError, match=r"state \('a', 'b', 'c', 'd'\).*left_x.*a NAME that none"):
        open_sources([root, other], TOP)
    stateless = open_data([root, other], replace(TOP, state_key="none"), with_state=False)
    assert stateless.state.shape == (50, 0)
    third = write_v2(tmp_path / "c", make_episodes())
    info = json.loads((third / "meta/info.json").read_text())
    (third / "meta/info.json").write_text(json.dumps({**info, "fps": 20}))
    with pytest.raises(DataError, match=r"another rate.*got 20 Hz; expected 10 Hz.*rate_hz"):
        open_sources([root, third], TOP)
    config = replace(TOP, rate_hz=10.0)
    assert len(open_sources([root, third], config)) == 2


@pytest.mark.parametrize("rate_hz", [50.0, 5.0, 10.5])
def test_a_policy_s_rate_is_one_of_its_data(root: Path, rate_hz: float) -> None:
    with pytest.raises(DataError, match=r"recorded at the policy's rate.*expected 10 Hz"):
        open_data([root], replace(TOP, rate_hz=rate_hz))
    spec = open_data([root], replace(TOP, rate_hz=10.0)).processor.spec
    assert spec.action.rate_hz == 10.0


def test_numbers_that_are_not_finite_name_the_episode(tmp_path: Path) -> None:
    episodes = make_episodes()
    episodes[2].action[1, 3] = np.nan
    with pytest.raises(DataError, match=r"not finite: got action in episode 2, and 1 frames"):
        open_data([write_v2(tmp_path, episodes)])


@pytest.mark.parametrize(
    ("text", "name", "revision", "weight"),
    [
        ("data/a", "data/a", None, 1.0),
        ("data/a:2", "data/a", None, 2.0),
        ("lerobot/droid:0.5", "lerobot/droid", None, 0.5),
        ("lerobot/droid@v2.1:3", "lerobot/droid", "v2.1", 3.0),
        ("C:data", "C:data", None, 1.0),
    ],
)
def test_a_source_is_a_name_a_revision_and_a_weight(
    text: str, name: str, revision: str | None, weight: float
) -> None:
    assert split_source(text) == (name, revision, weight)


def test_a_folder_whose_name_has_a_colon_is_itself(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert split_source(str(tmp_path / "run:2")) == (str(tmp_path / "run:2"), None, 1.0)
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(DataError, match="weight makes no sense"):
            split_source(f"data/a:{weight}")


def test_statistics_are_computed_once_and_kept_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_v2(tmp_path / "a", make_episodes())
    first = dataset_statistics([root], TOP)
    kept = root / STATISTICS_PATH
    assert len(json.loads(kept.read_text())) == 1
    monkeypatch.setattr("training.data.statistics.compute", _never)
    again = dataset_statistics([root], TOP)
    assert {k: v.to_dict() for k, v in again.items()} == {k: v.to_dict() for k, v in first.items()}
    for other in (
        replace(TOP, drop_near_zero=True),
        replace(TOP, gripper="signed_open"),
        replace(TOP, state_key="none"),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            dataset_statistics([root], other)
    assert dataset_statistics([root], replace(TOP, image_size=96, cameras=("wrist_cam",)))
    more = make_episodes((5, 9, 4, 7, 3))
    changed = write_v2(tmp_path / "b", more)
    kept_there = changed / STATISTICS_PATH
    kept_there.write_text(kept.read_text())  # another content has another key
    with pytest.raises(AssertionError, match="computed again"):
        dataset_statistics([changed], TOP)


def test_statistics_go_to_the_cache_where_one_is_given(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "a", make_episodes())
    dataset_statistics([root], TOP, cache_dir=tmp_path / "cache")
    assert not (root / STATISTICS_PATH).exists()
    assert (tmp_path / "cache/vla_align_stats.json").exists()
    (tmp_path / "cache/vla_align_stats.json").write_text("{damaged")
    actions = np.concatenate([episode.action for episode in make_episodes()]).astype(float)
    found = dataset_statistics([root], TOP, cache_dir=tmp_path / "cache")["action"]
    np.testing.assert_allclose(found.q01, np.quantile(actions, 0.01, axis=0))
    assert found.mask.tolist() == [True] * 6 + [False]


def _never(*_: object) -> None:
    raise AssertionError("computed again")


def test_an_episode_stays_in_one_split(root: Path) -> None:
    data = open_data([root])
    train, held_out = data.indices("train"), data.indices("val")
    assert len(train) + len(held_out) == 25
    assert not set(data.episode[train]) & set(data.episode[held_out])
