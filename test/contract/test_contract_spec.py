"""Specs refuse nonsense, come back from JSON unchanged, and have a fingerprint."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_align_ros.contract.spec import (
    ACTION_NAMES,
    ActionSpec,
    CameraSpec,
    PolicySpec,
    StateSpec,
)
from vla_align_ros.errors import ContractError

names = st.sampled_from(["front", "wrist", "x", "a_1", "z9_"])
counts = st.integers(1, 4096)
specs = st.builds(
    PolicySpec,
    cameras=st.lists(
        st.builds(CameraSpec, names, counts, counts),
        min_size=1,
        max_size=3,
        unique_by=lambda camera: camera.name,
    ).map(tuple),
    state=st.none()
    | st.builds(StateSpec, st.lists(names, min_size=1, max_size=4, unique=True).map(tuple)),
    action=st.builds(ActionSpec, st.just("base_link"), st.floats(0.1, 1e3), counts),
)


@given(specs)
def test_spec_comes_back_from_json_unchanged(spec):
    copy = PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert copy == spec
    assert copy.fingerprint() == spec.fingerprint()


@given(specs, specs)
def test_fingerprints_are_equal_exactly_for_equal_specs(one, other):
    assert (one.fingerprint() == other.fingerprint()) == (one == other)


def test_fingerprint_is_the_same_in_every_release():
    spec = PolicySpec((CameraSpec("front", 224, 224),), None, ActionSpec("base_link", 5, 8))
    assert spec.fingerprint()[:16] == "b517b8d7f7e3fe24"


def test_action_period_is_the_inverse_of_its_rate():
    action = ActionSpec("base_link", 5, 8)
    assert (action.period_s, action.dim, action.names) == (0.2, 7, ACTION_NAMES)


@pytest.mark.parametrize(
    ("horizon", "period_s"), [(8, 0.4), (4, 0.4), (3, 0.2), (2, 0.2), (1, 0.0)]
)
def test_two_actions_lie_between_observations_but_never_more_than_half_a_chunk(horizon, period_s):
    assert ActionSpec("base_link", 5, horizon).replan_period_s == pytest.approx(period_s)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CameraSpec("Front", 1, 1),
        lambda: CameraSpec("../front", 1, 1),
        lambda: CameraSpec("front", 0, 1),
        lambda: CameraSpec("front", 1, True),
        lambda: CameraSpec("front", 1, 2.0),
        lambda: StateSpec(()),
        lambda: StateSpec(("x", "x")),
        lambda: StateSpec("xyz"),
        lambda: ActionSpec("", 5.0, 8),
        lambda: ActionSpec("base_link", 0.0, 8),
        lambda: ActionSpec("base_link", float("nan"), 8),
        lambda: ActionSpec("base_link", 10**400, 8),
        lambda: ActionSpec("base_link", 5.0, 0),
        lambda: ActionSpec("base_link", 5.0, 8, committed=8),
        lambda: ActionSpec("base_link", 5.0, 8, committed=-1),
        lambda: ActionSpec("base_link", 5.0, 8, committed=True),
        lambda: ActionSpec("base_link", 5.0, 8, names=("dx", "dy")),
        lambda: PolicySpec((), None, ActionSpec("base_link", 5.0, 8)),
        lambda: PolicySpec(
            (CameraSpec("front", 1, 1), CameraSpec("front", 2, 2)),
            None,
            ActionSpec("base_link", 5.0, 8),
        ),
        lambda: PolicySpec((CameraSpec("front", 1, 1),), ("x",), ActionSpec("base_link", 5.0, 8)),
        lambda: PolicySpec((CameraSpec("front", 1, 1),), None, None),
    ],
)
def test_nonsense_is_refused(build):
    with pytest.raises(ContractError, match="expected"):
        build()


@pytest.mark.parametrize("key", ["cameras", "state", "action"])
def test_missing_and_unknown_keys_are_refused(key):
    spec = PolicySpec((CameraSpec("front", 8, 8),), None, ActionSpec("base_link", 5.0, 8))
    data = spec.to_dict()
    with pytest.raises(ContractError, match="wrong keys"):
        PolicySpec.from_dict({**data, "colour": 1})
    del data[key]
    with pytest.raises(ContractError, match="wrong keys"):
        PolicySpec.from_dict(data)


def test_specs_are_frozen():
    with pytest.raises(AttributeError):
        CameraSpec("front", 8, 8).height = 9


def test_what_takes_no_committed_actions_is_written_as_before_there_were_any():
    plain = ActionSpec("base_link", 5.0, 8)
    assert set(plain.to_dict()) == {"frame", "rate_hz", "horizon", "names"}
    told = ActionSpec("base_link", 5.0, 8, committed=3)
    assert ActionSpec.from_dict(told.to_dict()) == told != plain
