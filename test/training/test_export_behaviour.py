"""The gate of behaviour runs both policies on the same scenes, and says what it cannot know."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from sample_policy import make_bundle

from training.export.behaviour import prove_behaviour
from vla_align_ros.contract.bundle import Bundle, write_bundle
from vla_align_ros.errors import ExportError
from vla_align_ros.runtime.golden import replay_golden
from vla_align_ros.runtime.policy import Policy

pytestmark = pytest.mark.skipif(  # not imported: the simulator chooses how it draws
    importlib.util.find_spec("mujoco") is None, reason="needs the extra [sim]"
)

SHIPPED = Path(__file__).resolve().parents[2] / "bundles" / "tabletop"


@pytest.fixture(scope="module")
def golden():
    """Golden samples of which the shipped graph itself is the exact model."""
    with Policy.open(SHIPPED) as policy:
        actions = replay_golden(policy.bundle, policy.backend)
        return {**policy.bundle.golden(), "reference_actions": actions}


def write_twin(folder, golden, precision, samples):
    """The shipped graph, as another bundle: the number of golden samples makes another id."""
    shipped = Bundle.open(SHIPPED)
    return write_bundle(
        folder / f"{precision}-{samples}",
        processor=shipped.processor,
        graphs={"policy": shipped.graph_path()},
        golden={name: values[:samples] for name, values in golden.items()},
        provenance={"precision": precision},
    )


def prove(reference, candidate, episodes):
    with Policy.open(candidate) as policy:
        return prove_behaviour(reference, policy, episodes)


def test_a_policy_beside_its_reference_loses_nothing_and_two_episodes_decide_nothing(
    tmp_path, golden
):
    reference = write_twin(tmp_path, golden, "fp32", 3)
    verdict = prove(reference, write_twin(tmp_path, golden, "int8", 2), 2)
    assert (verdict["lost"], verdict["won"], verdict["episodes"]) == (0, 0, 2)
    assert verdict["reference"] == verdict["candidate"] > 0, "it can do the task"
    assert verdict["verdict"] == "undecided" and not verdict["ok"]
    assert verdict["reference_id"] == reference.id


def test_a_policy_is_no_reference_of_itself(tmp_path, golden):
    exact = write_twin(tmp_path, golden, "fp32", 2)
    with pytest.raises(ExportError, match="twice the bundle"):
        prove(exact, exact, 1)


def test_the_reference_must_be_in_fp32(tmp_path, golden):
    with pytest.raises(ExportError, match="got a reference in auto_weights; expected fp32"):
        prove(Bundle.open(SHIPPED), write_twin(tmp_path, golden, "int8", 2), 1)


def test_the_reference_must_act_as_the_model_that_the_candidate_was_made_from(tmp_path, golden):
    reference = write_twin(tmp_path, golden, "fp32", 2)
    with pytest.raises(ExportError, match=r"another policy than the candidate: got .* off by"):
        prove(reference, Bundle.open(SHIPPED), 1)


def test_a_policy_of_another_robot_cannot_be_compared(tmp_path):
    other = make_bundle(tmp_path)
    with pytest.raises(ExportError, match="behaviour cannot be compared"):
        prove(Bundle.open(SHIPPED), other, 1)


def test_verify_asks_for_the_reference(tmp_path, capsys):
    from vla_align_ros.cli import main

    copy = shutil.copytree(SHIPPED, tmp_path / "bundle")
    assert main(["verify", str(copy), "--episodes", "2"]) == 1
    assert "--reference" in capsys.readouterr().err


def test_verify_names_the_reference_in_its_table(tmp_path, golden, capsys):
    from vla_align_ros.cli import main

    exact = write_twin(tmp_path, golden, "fp32", 3)
    candidate = write_twin(tmp_path, golden, "int8", 2)
    options = ["--episodes", "1", "--reference", str(exact.path)]
    assert main(["verify", str(candidate.path), *options]) == 1
    printed = capsys.readouterr().out
    assert f"of {exact.short_id}: undecided" in printed and "REFUSED" in printed
    assert candidate.report()["verify"]["behaviour"]["reference_id"] == exact.id
