"""A policy runs by a proof of what it runs on here; one from elsewhere is made again."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from sample_engines import make_engine_set
from sample_policy import make_bundle

from vla_align_ros.errors import BundleError
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.limits import GOLDEN_LIMITS
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import (
    DEVICE,
    complete_proof,
    find_proof,
    keep_proof,
    require_proof,
)


class Counting:
    """A backend that counts its inferences, and gives all actions a push."""

    def __init__(self, inner: Any, push: float = 0.0) -> None:
        self.inner, self.push, self.count = inner, push, 0
        self.name, self.runs_on = inner.name, inner.runs_on
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def infer(self, inputs: Any) -> Any:
        self.count += 1
        return {name: values + self.push for name, values in self.inner.infer(inputs).items()}

    def close(self) -> None:
        self.inner.close()


def open_proved(folder: Path, *, push: float = 0.0, **changes: object) -> Policy:
    """A policy whose kept proof says what it measured, but for some changes."""
    policy = Policy.open(make_bundle(folder))
    keep_proof(policy, {**prove_bundle(policy.bundle, policy.backend), **changes})
    return Policy(policy.bundle, Counting(policy.backend, push))


def test_a_proof_names_library_version_and_processor(tmp_path: Path) -> None:
    policy = open_proved(tmp_path)
    proof = find_proof(policy)
    assert proof is not None and proof["runs_on"] == policy.backend.runs_on
    library, _, processor = proof["runs_on"].partition(" on ")
    assert library.startswith("onnxruntime 1.") and processor


def test_a_proof_of_this_machine_is_enough(tmp_path: Path) -> None:
    policy = open_proved(tmp_path)
    assert require_proof(policy) == (find_proof(policy), False)
    assert policy.backend.count == 0


@pytest.mark.parametrize("place", ["onnxruntime 1.2.3 on another processor", None])
def test_a_proof_from_elsewhere_is_made_again_and_not_kept(
    tmp_path: Path, place: str | None
) -> None:
    behaviour = {"ok": True, "verdict": "not worse"}
    policy = open_proved(tmp_path, runs_on=place, behaviour=behaviour)
    kept, (made, now) = find_proof(policy), require_proof(policy)
    assert now and policy.backend.count == made["samples"]
    assert made["runs_on"] == policy.backend.runs_on and made["behaviour"] == behaviour
    assert find_proof(policy) == kept


def test_a_proof_of_engines_that_were_made_since_is_none_of_those_that_run(tmp_path: Path) -> None:
    policy = Policy.open(make_bundle(tmp_path))
    folder = make_engine_set(policy.bundle)
    policy.backend.engines = policy.bundle.engine("sm89")
    proof = prove_bundle(policy.bundle, policy.backend, policy.precision)
    assert find_proof(policy) is None
    keep_proof(policy, proof)
    assert find_proof(policy) == proof and require_proof(policy) == (proof, False)
    shutil.rmtree(folder)
    make_engine_set(policy.bundle, engines={"policy": b"another"}, gates={DEVICE: proof})
    with pytest.raises(BundleError, match="made again since they were opened"):
        require_proof(policy)


def change_limit(proof: dict[str, Any], gate: str) -> dict[str, Any]:
    """The same proof, as if it had been judged by another limit."""
    proof = copy.deepcopy(proof)
    rows = {
        "dimensions": proof["dimensions"]["dx"],
        "numbers": proof["numbers"]["outputs"]["policy.actions"],
        "agreement": proof["agreement"],
    }
    rows[gate]["limit"] = 50.0
    return proof


@pytest.mark.parametrize("gate", ["dimensions", "numbers", "agreement"])
def test_a_proof_by_other_limits_is_made_again_and_judged_by_todays(
    tmp_path: Path, gate: str
) -> None:
    row = {"ratio": 0.0, "limit": GOLDEN_LIMITS["fp32"].noise}
    measured = {
        "numbers": {"ok": True, "outputs": {"policy.actions": row}},
        "agreement": {"ok": True, "share": 1.0, "limit": GOLDEN_LIMITS["fp32"].agreement},
    }
    policy = open_proved(tmp_path, **measured)
    kept = find_proof(policy)
    assert kept is not None and not require_proof(policy)[1]
    keep_proof(policy, change_limit(kept, gate))
    made, now = require_proof(policy)
    assert now and policy.backend.count == made["samples"]
    assert made["dimensions"] == kept["dimensions"]
    policy.backend.push = 0.5
    with pytest.raises(BundleError, match="a proof by other limits, which fails"):
        require_proof(policy)


@pytest.mark.parametrize("dimensions", [None, [], {}, {"dx": 1}, {"dx": {"limit": 0.01}}])
def test_a_proof_without_its_limits_is_made_again(tmp_path: Path, dimensions: object) -> None:
    policy = open_proved(tmp_path, dimensions=dimensions)
    assert require_proof(policy)[1]


def test_what_does_not_hold_here_is_refused_with_where_it_did(tmp_path: Path) -> None:
    policy = open_proved(tmp_path, push=0.5, runs_on="onnxruntime 1.2.3 on another processor")
    with pytest.raises(BundleError, match=r"a proof of onnxruntime 1\.2\.3 .*, which fails on"):
        require_proof(policy)


@pytest.mark.parametrize("changes", [{"ok": False}, {"behaviour": {"ok": False}}])
@pytest.mark.parametrize("place", [{}, {"runs_on": "elsewhere"}])
def test_a_proof_that_failed_anywhere_is_refused(
    tmp_path: Path, changes: dict[str, object], place: dict[str, object]
) -> None:
    policy = open_proved(tmp_path, **changes, **place)
    with pytest.raises(BundleError, match="a proof that failed"):
        require_proof(policy)
    assert policy.backend.count == 0


@pytest.mark.parametrize("proofs", [None, [1], "onnx", {"onnx": [1]}, {"onnx": None}])
def test_a_report_that_holds_something_else_proves_nothing(tmp_path: Path, proofs: object) -> None:
    policy = open_proved(tmp_path)
    policy.bundle.change_report(lambda report: {"proofs": proofs})
    with pytest.raises(BundleError, match="no proof"):
        require_proof(policy)


BEHAVIOUR = {"ok": True, "reference_id": "ab" * 32}


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ({"behaviour": BEHAVIOUR}, BEHAVIOUR),
        ({"behaviour": BEHAVIOUR, "precision": "fp16"}, None),
        ({"behaviour": {"ok": True}}, None),
        ({"behaviour": None}, None),
        ({"behaviour": 5}, None),
        ({}, None),
    ],
)
def test_behaviour_that_was_measured_stays_for_the_same_precision_and_a_named_reference(
    tmp_path: Path, before: dict[str, object], kept: object
) -> None:
    policy = open_proved(tmp_path, **before)
    proof = prove_bundle(policy.bundle, policy.backend)
    assert complete_proof(policy, proof) == ({**proof, "behaviour": kept} if kept else proof)
    again = {**proof, "behaviour": {"ok": False, "reference_id": "cd" * 32}}
    assert complete_proof(policy, again) == again, "what was measured now counts"


def test_a_proof_takes_the_place_of_its_own_backend_alone_and_is_the_last(tmp_path: Path) -> None:
    policy = open_proved(tmp_path)
    first = find_proof(policy)
    policy.backend.name = "other"
    keep_proof(policy, {"ok": False, "number": 2})
    report = policy.bundle.report()
    assert report["proofs"] == {"onnx": first, "other": {"ok": False, "number": 2}}
    assert report["verify"] == {"ok": False, "number": 2}


def test_a_proof_that_is_made_again_is_by_the_precision_of_the_backend(tmp_path: Path) -> None:
    policy = open_proved(tmp_path, runs_on="elsewhere", precision="fp16")
    policy.backend.precision = "fp16"
    assert require_proof(policy)[0]["precision"] == policy.precision == "fp16"
