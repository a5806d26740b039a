"""A policy is a bundle and an engine that fit each other, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sample_policy import (
    HORIZON,
    INSTRUCTIONS,
    make_bundle,
    make_golden,
    make_processor,
    make_spec,
    run_reference,
)

from vla_align_ros.contract.bundle import write_bundle
from vla_align_ros.contract.observation import Observation
from vla_align_ros.errors import BackendError, BundleError, ContractError, NonFiniteError
from vla_align_ros.inference import FakeBackend
from vla_align_ros.runtime.policy import Policy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("policy"))


def observe(instruction: str = INSTRUCTIONS[0]) -> Observation:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Observation({"front": image}, rng.normal(size=7), instruction, 7.0)


def test_observation_in_metres_out_through_the_real_engine(bundle):
    with Policy.open(bundle.path, backend="onnx", threads=1) as policy:
        assert policy.spec == bundle.spec and policy.bundle_id == bundle.id
        seen = observe()
        chunk = policy.infer(seen)
    model = run_reference(bundle.processor.prepare(seen))[0]
    expected = bundle.processor.normalizers["action"].denormalize(model)
    expected[:, 6] = np.clip(expected[:, 6], 0.0, 1.0)
    np.testing.assert_allclose(chunk.actions, expected, atol=1e-6)
    assert (chunk.stamp_s, chunk.period_s, chunk.instruction) == (7.0, 0.2, INSTRUCTIONS[0])


def test_words_and_picture_both_reach_the_graph(bundle):
    with Policy.open(bundle) as policy:
        first = policy.infer(observe()).actions
        assert (policy.infer(observe()).actions == first).all()
        assert (policy.infer(observe(INSTRUCTIONS[1])).actions != first).any()
        seen = observe()
        dark = Observation({"front": seen.images["front"] // 2}, seen.state, seen.instruction, 7.0)
        assert (policy.infer(dark).actions != first).any()


def test_timings_of_each_stage_are_kept(bundle):
    times = iter([0.0, 0.001, 0.004, 0.0045])
    policy = Policy(bundle, FakeBackend(np.zeros((HORIZON, 7))), clock=lambda: next(times))
    policy.infer(observe())
    assert policy.last_timings_ms == pytest.approx({"prepare": 1.0, "infer": 3.0, "decode": 0.5})


def test_warm_up_runs_the_whole_path_as_often_as_asked(bundle):
    backend = FakeBackend(np.zeros((HORIZON, 7)))
    policy = Policy(bundle, backend)
    policy.warm_up(4)
    assert len(backend.calls) == 4
    golden = make_golden(make_processor())
    expected = bundle.processor.prepare_image(golden["image_front"][0])
    np.testing.assert_array_equal(backend.calls[0]["pixel_values"][0], expected)


def test_the_backend_is_closed_with_the_policy(bundle):
    backend = FakeBackend(np.zeros((HORIZON, 7)))
    with Policy(bundle, backend):
        assert not backend.closed
    assert backend.closed


def test_an_answer_that_is_not_finite_never_becomes_a_chunk(bundle):
    policy = Policy(bundle, FakeBackend(np.full((HORIZON, 7), np.nan)))
    with pytest.raises(NonFiniteError):
        policy.infer(observe())


def test_failures_of_either_side_come_out_unchanged(bundle):
    with pytest.raises(BackendError, match="as asked"):
        Policy(bundle, FakeBackend(np.zeros((HORIZON, 7)), fail_after=0)).infer(observe())
    with pytest.raises(ContractError, match="wrong form"):
        Policy(bundle, FakeBackend(np.zeros((HORIZON + 1, 7)))).infer(observe())
    with pytest.raises(ContractError, match="empty"):
        Policy(bundle, FakeBackend(np.zeros((HORIZON, 7)))).infer(observe("..."))
    with pytest.raises(BundleError, match="no folder"):
        Policy.open(bundle.path / "nowhere")
    with pytest.raises(BackendError, match="expected onnx"):
        Policy.open(bundle, backend="abacus")


def test_a_graph_that_does_not_fit_its_own_bundle_is_refused_before_it_runs(bundle, tmp_path):
    processor = make_processor(make_spec(horizon=HORIZON + 1))
    golden = make_golden(make_processor())
    golden["reference_actions"] = np.zeros((3, HORIZON + 1, 7))
    wrong = write_bundle(
        tmp_path / "wrong",
        processor=processor,
        graphs={"policy": bundle.graph_path()},
        golden=golden,
        provenance={"precision": "fp32"},
    )
    with pytest.raises(BackendError, match=r"graph output 'actions' does not fit the bundle"):
        Policy.open(wrong)
