"""The proof of a bundle measures in the arm's units, and a wrong graph fails it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sample_policy import make_bundle

from vla_align_ros.contract.spec import ACTION_NAMES
from vla_align_ros.errors import BundleError
from vla_align_ros.inference import FakeBackend, open_backend
from vla_align_ros.runtime.golden import (
    action_error,
    clip_gripper,
    compare_actions,
    judge_actions,
    judge_agreement,
    judge_errors,
    prove_bundle,
    replay_golden,
)
from vla_align_ros.runtime.limits import GOLDEN_LIMITS, GoldenLimits, find_golden_limits


def open_onnx(bundle):
    return open_backend("onnx", bundle.graph_path("policy"), threads=1)


def test_the_graph_that_the_samples_come_from_is_proved(tmp_path):
    bundle = make_bundle(tmp_path)
    proof = prove_bundle(bundle, open_onnx(bundle))
    assert proof["ok"] and list(proof["dimensions"]) == list(ACTION_NAMES)
    assert (proof["samples"], proof["backend"], proof["precision"]) == (3, "onnx", "fp32")
    # float32 against the float64 reference: there is an error, and it is tiny.
    assert 0.0 < proof["dimensions"]["dx"]["max"] < 0.001


def test_a_disturbed_graph_is_refused_by_the_dimensions_that_it_disturbs(tmp_path):
    bundle = make_bundle(tmp_path, noise=0.01)
    proof = prove_bundle(bundle, open_onnx(bundle))
    assert not proof["ok"]
    assert not all(entry["ok"] for entry in proof["dimensions"].values())


def test_int8_has_wider_limits_than_fp32(tmp_path):
    bundle = make_bundle(tmp_path, noise=0.01, precision="int8")
    assert prove_bundle(bundle, open_onnx(bundle))["ok"]


def test_errors_are_in_millimetres_degrees_and_fractions():
    reference = np.zeros((2, 4, 7))
    actions = reference.copy()
    actions[1, 2] = [0.001, -0.002, 0.0, np.pi / 180, 0.0, -np.pi / 90, 0.25]
    errors = compare_actions(actions, reference)
    assert [errors[name]["max"] for name in ACTION_NAMES] == pytest.approx([1, 2, 0, 1, 0, 2, 0.25])
    assert [errors[name]["unit"] for name in ACTION_NAMES] == ["mm"] * 3 + ["deg"] * 3 + [
        "fraction"
    ]
    assert 0.9 < errors["dx"]["p99"] < 1.0, "one step of eight, interpolated"


def test_the_gripper_of_a_reference_is_clipped_as_the_robot_does():
    reference = np.zeros((1, 1, 7))
    reference[..., 6] = 1.3
    actions = np.zeros((1, 1, 7))
    actions[..., 6] = 1.0
    assert compare_actions(actions, reference)["gripper"]["max"] == 0.0


@pytest.mark.parametrize(("name", "value"), [("dx", 2.0), ("drz", 3.0), ("gripper", 0.5)])
def test_one_dimension_beyond_its_limit_is_enough_to_fail(name, value):
    limits = GoldenLimits(1.0, 2.0, 0.1, noise=1.0, agreement=1.0)
    errors = compare_actions(np.zeros((1, 1, 7)), np.zeros((1, 1, 7)))
    assert judge_errors(errors, limits)["ok"]
    errors[name]["max"] = value
    verdict = judge_errors(errors, limits)
    failed = [key for key, entry in verdict["dimensions"].items() if not entry["ok"]]
    assert not verdict["ok"] and failed == [name]


def test_an_error_that_is_no_number_fails():
    errors = compare_actions(np.zeros((1, 1, 7)), np.zeros((1, 1, 7)))
    errors["dy"]["max"] = float("nan")
    assert not judge_errors(errors, GOLDEN_LIMITS["int8"])["ok"]


def test_the_replay_goes_through_the_given_backend(tmp_path):
    bundle = make_bundle(tmp_path)
    backend = FakeBackend(np.zeros((4, 7)))
    errors = compare_actions(replay_golden(bundle, backend), bundle.golden()["reference_actions"])
    assert len(backend.calls) == 3 and not backend.closed
    assert errors["dx"]["max"] > 1.0


def test_a_precision_without_limits_is_refused_with_those_there_are():
    with pytest.raises(
        BundleError, match=r"got 'fp4'; expected auto or auto_weights or .* or int8 or"
    ):
        find_golden_limits("fp4")


# -- each gate alone ----------------------------------------------------------------------------
LIMITS = GoldenLimits(1.0, 1.0, 0.1, noise=2.0, agreement=0.75)


def test_an_error_of_the_limit_itself_is_within_it():
    errors = compare_actions(np.zeros((1, 1, 7)), np.zeros((1, 1, 7)))
    errors["dx"]["max"] = 1.0
    assert judge_errors(errors, LIMITS)["ok"]


def test_tokens_agree_by_the_share_of_actions_that_are_the_same_but_for_rounding():
    reference = np.full((1, 4, 7), 0.5)
    reference[..., 6] = 1.2  # a robot's gripper opens to 1
    actions = np.full((1, 4, 7), 0.5 + 1e-7)
    actions[..., 6] = 1.0
    assert judge_agreement(actions, reference, LIMITS) == {"share": 1.0, "limit": 0.75, "ok": True}
    actions[0, 0] += 1e-5  # far from a bin, and no rounding
    assert judge_agreement(actions, reference, LIMITS)["share"] == 0.75
    assert judge_agreement(actions, reference, LIMITS)["ok"]
    actions[0, 1, 0] += 1e-5
    assert not judge_agreement(actions, reference, LIMITS)["ok"]


def test_errors_count_as_multiples_of_the_noise_of_bfloat16(tmp_path):
    bundle = make_bundle(tmp_path)
    reference = bundle.golden()["reference_actions"]
    actions = reference + 0.01
    assert judge_actions(bundle, actions, reference, LIMITS) is None, "the noise is not known"
    error = action_error(bundle.processor, actions, reference)
    for floor, ok in ((error / 1.9, True), (error / 2.1, False)):
        bundle.manifest["provenance"]["export"] = {"noise_floor": floor}
        judged = judge_actions(bundle, actions, reference, LIMITS)
        row = judged["outputs"]["policy.actions"]
        assert judged["ok"] is ok and row["ratio"] == pytest.approx(error / floor)


@pytest.mark.parametrize("told", [None, "x", [1], {}, {"noise_floor": None}])
def test_noise_that_is_not_told_is_not_known(tmp_path, told):
    bundle = make_bundle(tmp_path)
    bundle.manifest["provenance"]["export"] = told
    assert prove_bundle(bundle, open_onnx(bundle))["numbers"] is None


@pytest.mark.parametrize("floor", ["0.1", [0.1], True, {}])
def test_noise_that_is_no_number_is_refused(tmp_path, floor):
    bundle = make_bundle(tmp_path)
    bundle.manifest["provenance"]["export"] = {"noise_floor": floor}
    with pytest.raises(BundleError, match="noise of bfloat16 is no number"):
        prove_bundle(bundle, open_onnx(bundle))


def test_a_gripper_beyond_what_a_robot_does_is_no_error(tmp_path):
    processor = make_bundle(tmp_path).processor
    far, near = np.zeros((1, 1, 7)), np.zeros((1, 1, 7))
    far[..., 6], near[..., 6] = 1.5, 1.0
    assert action_error(processor, far, near) == action_error(processor, near, far) == 0.0
    assert action_error(processor, far, -far) > 0.0


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_a_proof_is_by_the_precision_that_the_backend_computes_in(tmp_path, precision):
    bundle = make_bundle(tmp_path, noise=0.01, precision="int8")
    proof = prove_bundle(bundle, open_onnx(bundle), precision)
    assert (proof["precision"], proof["ok"]) == (precision or "int8", precision is None)


@pytest.mark.parametrize(
    ("failing", "by"),
    [({}, []), ({"push": 1.0}, ["dimensions"]), ({"floor": 1e-9}, ["numbers"]),
     ({"decode": 1e-4}, ["agreement"])],
)  # fmt: skip
def test_any_gate_that_fails_fails_the_proof(tmp_path, monkeypatch, failing, by):
    bundle = make_bundle(tmp_path, precision="fp16")
    reference = bundle.golden()["reference_actions"]
    actions = clip_gripper(reference)
    actions[0, 0, 0] += failing.get("push", 0.0) * 2e-3
    actions[..., 1] += failing.get("decode", 5e-7)  # metres
    monkeypatch.setattr("vla_align_ros.runtime.golden.replay_golden", lambda *_: actions)
    marked = SimpleNamespace(
        manifest={
            "provenance": {
                "precision": "fp16",
                "export": {"noise_floor": failing.get("floor", 1.0)},
            }
        },
        golden=bundle.golden,
        processor=bundle.processor,
        acting_graphs=[SimpleNamespace(name="decode")] if "decode" in failing else [],
    )
    proof = prove_bundle(marked, FakeBackend(np.zeros((4, 7))))
    gates = {
        "dimensions": all(row["ok"] for row in proof["dimensions"].values()),
        "numbers": proof["numbers"]["ok"],
        "agreement": proof["agreement"] is None or proof["agreement"]["ok"],
    }
    assert [name for name, ok in gates.items() if not ok] == by
    assert proof["ok"] is (by == [])
