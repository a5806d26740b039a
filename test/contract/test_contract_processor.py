"""One processor for training and robot: the same bits on both sides, and a way back to metres."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_policy import HORIZON, INSTRUCTIONS, LENGTH, SIZE, make_processor, make_spec

from vla_align_ros.contract.images import to_rgb
from vla_align_ros.contract.normalize import Normalizer, compute_statistics
from vla_align_ros.contract.processor import PROCESSOR_FILES, Observation, Processor
from vla_align_ros.errors import ContractError, NonFiniteError, NormalizationError

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
STATE = np.linspace(-1.0, 1.0, 7)


def observe(*names: str, state: object = STATE, committed: object = None) -> Observation:
    images = {name: np.roll(IMAGE, i, axis=0) for i, name in enumerate(names or ("front",))}
    return Observation(images, state, INSTRUCTIONS[0], 12.5, committed)


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("committed", [0, 2])
def test_inputs_are_exactly_what_the_processor_declares(cameras, state, committed):
    processor = make_processor(make_spec(cameras=cameras, state=state, committed=committed))
    inputs = processor.prepare(observe("front", "wrist"))
    declared = processor.input_tensors()
    assert list(inputs) == [tensor.name for tensor in declared], "graphs take them in this order"
    for tensor in declared:
        array = inputs[tensor.name]
        assert (str(array.dtype), array.shape) == (tensor.dtype, tensor.shape)


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 2), st.just(7)), elements=st.floats(-1, 1)))
def test_committed_actions_are_told_as_training_tells_them(actions):
    processor = make_processor(make_spec(committed=2))
    inputs = processor.prepare(observe(committed=actions))
    assert inputs["committed_mask"].sum() == len(actions)
    assert inputs["committed_mask"][0, : len(actions)].all()
    np.testing.assert_array_equal(
        inputs["committed"][0, : len(actions)], processor.encode_actions(actions)
    )
    assert not inputs["committed"][0, len(actions) :].any(), "nothing is told there"
    chunks = np.concatenate([actions, np.full((2, 7), 0.3)])[None, :2]  # what follows is not told
    batch = processor.prepare_committed(np.repeat(chunks, 3, axis=0), [len(actions)] * 3)
    for name, array in batch.items():
        assert array[1:2].tobytes() == inputs[name].tobytes()


def test_more_committed_actions_than_the_policy_takes_are_refused():
    two = np.zeros((2, 7))
    for committed in (0, 1):
        processor = make_processor(make_spec(committed=committed))
        with pytest.raises(ContractError, match=f"got 2 actions; expected up to {committed}"):
            processor.prepare(observe(committed=two))


@pytest.mark.parametrize("committed", [np.zeros(7), np.zeros((1, 6)), np.full((1, 7), np.nan)])
def test_committed_actions_of_another_form_are_refused(committed):
    with pytest.raises(ContractError, match="committed actions are wrong"):
        observe(committed=committed)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))),
    hnp.arrays(np.float32, 7, elements=st.floats(-3, 3, width=32)),
    st.integers(0, 7),
)
def test_the_node_and_training_see_the_same_bits(rgb, state, padding):
    processor = make_processor()
    # The node: bytes of a padded bgr8 message, one observation at a time.
    height, width = rgb.shape[:2]
    rows = np.zeros((height, 3 * width + padding), np.uint8)
    rows[:, : 3 * width] = rgb[:, :, ::-1].reshape(height, -1)
    image = to_rgb(rows.tobytes(), "bgr8", height, width, rows.shape[1])
    node = processor.prepare(Observation({"front": image}, state, "Put the carrot. ", 0.0))
    # Training: pictures resized once into a cache, then normalised by the batch.
    cache = np.stack([processor.image_transform.resize(rgb)] * 3)
    batch = processor.image_transform.normalize(cache)
    assert node["pixel_values"].tobytes() == batch[1:2].tobytes()
    assert node["pixel_values"][0].tobytes() == processor.prepare_image(rgb).tobytes()
    states = processor.prepare_state(np.stack([state] * 3).astype(np.float64))
    assert node["state"].tobytes() == states[1:2].tobytes()
    assert node["input_ids"].tobytes() == processor.tokenizer.encode("put the carrot")[0].tobytes()


def test_several_cameras_come_in_the_order_of_the_spec():
    processor = make_processor(make_spec(cameras=2))
    seen = Observation({"wrist": IMAGE, "front": 255 - IMAGE, "other": IMAGE}, STATE, "put it", 0.0)
    pixels = processor.prepare(seen)["pixel_values"]
    assert pixels.shape == (1, 2, 3, SIZE, SIZE)
    np.testing.assert_array_equal(pixels[0, 0], processor.prepare_image(255 - IMAGE))
    np.testing.assert_array_equal(pixels[0, 1], processor.prepare_image(IMAGE))


@given(
    hnp.arrays(float, (1, HORIZON, 7), elements=st.floats(-1, 1)),
    st.sampled_from(["quantile", "mean_std"]),
)
def test_decode_undoes_encode_within_float32(model_values, mode):
    processor = make_processor(mode=mode)
    seen = observe()
    metric = processor.normalizers["action"].denormalize(model_values)
    metric[..., 6] = np.clip(metric[..., 6], 0.0, 1.0)
    chunk = processor.decode({"actions": processor.encode_actions(metric)}, seen)
    np.testing.assert_allclose(chunk.actions, metric[0], atol=1e-6)
    assert (chunk.period_s, chunk.stamp_s, chunk.instruction) == (0.2, 12.5, INSTRUCTIONS[0])


def test_gripper_is_clipped_to_its_range_and_nothing_else_is():
    processor = make_processor()
    actions = np.full((1, HORIZON, 7), 3.0, np.float32)
    actions[:, 1:] = -3.0
    found = processor.decode({"actions": actions, "other": actions}, observe()).actions
    assert found[0, 6] == 1.0 and found[1, 6] == 0.0
    expected = processor.normalizers["action"].denormalize(actions[0])
    np.testing.assert_array_equal(found[:, :6], expected[:, :6])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_refused(value):
    actions = np.zeros((1, HORIZON, 7), np.float32)
    actions[0, -1, 3] = value
    with pytest.raises(NonFiniteError, match="do not execute"):
        make_processor().decode({"actions": actions}, observe())


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"action": np.zeros((1, HORIZON, 7), np.float32)},
        {"actions": np.zeros((HORIZON, 7), np.float32)},
        {"actions": np.zeros((1, HORIZON + 1, 7), np.float32)},
        {"actions": np.zeros((2, HORIZON, 7), np.float32)},
        {"actions": np.zeros((1, HORIZON, 7), np.int64)},
    ],
)
def test_an_answer_of_another_form_is_refused(outputs):
    with pytest.raises(ContractError, match="actions"):
        make_processor().decode(outputs, observe())


def test_a_missing_camera_or_state_is_named():
    with pytest.raises(
        ContractError, match=r"got \['wrist'\]; expected \['front'\]; fix: connect front"
    ):
        make_processor().prepare(observe("wrist"))
    with pytest.raises(ContractError, match="no state"):
        make_processor().prepare(observe(state=None))
    with pytest.raises(NormalizationError, match="do not fit"):
        make_processor().prepare(observe(state=[1.0]))
    with pytest.raises(ContractError, match="reads no state"):
        make_processor(make_spec(state=False)).prepare_state(STATE)


@pytest.mark.parametrize("keys", [[], ["action"], ["state"], ["action", "state", "other"]])
def test_normalisation_of_exactly_the_right_keys_is_required(keys):
    whole = make_processor()
    normalizer = whole.normalizers["action"]
    with pytest.raises(NormalizationError, match=r"expected \{'action': 7, 'state': 7\}"):
        Processor(
            whole.spec, whole.image_transform, dict.fromkeys(keys, normalizer), whole.tokenizer
        )


def test_normalisation_of_another_dimension_is_refused():
    whole = make_processor()
    narrow = Normalizer("identity", compute_statistics([[0.0] * 6]))
    with pytest.raises(NormalizationError, match="does not fit the policy"):
        Processor(
            whole.spec,
            whole.image_transform,
            {**whole.normalizers, "action": narrow},
            whole.tokenizer,
        )


@pytest.mark.parametrize("state", [True, False])
def test_processor_comes_back_from_a_folder_and_prepares_the_same_bits(tmp_path, state):
    processor = make_processor(make_spec(state=state))
    processor.save(tmp_path / "run")
    copy_ = Processor.load(tmp_path / "run")
    assert sorted(p.relative_to(tmp_path / "run").as_posix() for p in tmp_path.rglob("*.json")) == (
        sorted(PROCESSOR_FILES)
    )
    assert copy_.to_dict() == processor.to_dict() and copy_.spec == processor.spec
    seen = observe()
    for name, array in processor.prepare(seen).items():
        assert copy_.prepare(seen)[name].tobytes() == array.tobytes()
    values = np.random.default_rng(1).normal(size=(1, HORIZON, 7)).astype(np.float32)
    np.testing.assert_array_equal(
        copy_.decode({"actions": values}, seen).actions,
        processor.decode({"actions": values}, seen).actions,
    )


@pytest.mark.parametrize("name", PROCESSOR_FILES)
def test_a_missing_file_is_one_clear_error(tmp_path, name):
    make_processor().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ContractError, match=name.rpartition("/")[2].split(".")[0]):
        Processor.load(tmp_path)


def test_statistics_of_another_policy_are_refused(tmp_path):
    make_processor().save(tmp_path)
    path = tmp_path / "stats.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({"action": data["action"]}))
    with pytest.raises(NormalizationError, match="do not fit the processor"):
        Processor.load(tmp_path)


def test_another_schema_version_is_refused(tmp_path):
    make_processor().save(tmp_path)
    path = tmp_path / "processor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    with pytest.raises(ContractError, match="another schema"):
        Processor.load(tmp_path)


def find_places(data: object, place: tuple = ()) -> list[tuple]:
    """List the path of every value in a JSON tree."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [place, *(found for key, item in items for found in find_places(item, (*place, key)))]


odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_stands_in_the_files_only_contract_errors_come_out(tmp_path, data):
    processor = make_processor()
    processor.save(tmp_path)
    path = tmp_path / data.draw(st.sampled_from(["processor.json", "stats.json"]))
    tree = json.loads(path.read_text())
    place = data.draw(st.sampled_from(find_places(tree)[1:]))
    odd = copy.deepcopy(tree)
    node = odd
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = data.draw(odd_values)
    path.write_text(json.dumps(odd).replace("Infinity", "1e999"))
    try:
        loaded = Processor.load(tmp_path)
    except ContractError:
        return
    # What was accepted must work.
    inputs = loaded.prepare_image(IMAGE)
    assert np.isfinite(inputs).all()
    assert len(loaded.tokenizer.encode("put it")[0]) <= max(LENGTH, loaded.tokenizer.max_length)
