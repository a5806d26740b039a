"""The gate of behaviour runs both policies on the same scenes, and says what it cannot know."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from sample_policy import make_bundle

from training.export.behaviour import prove_behaviour
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ExportError

pytestmark = pytest.mark.skipif(  # not imported: the simulator chooses how it draws
    importlib.util.find_spec("mujoco") is None, reason="needs the extra [sim]"
)

SHIPPED = Path(__file__).resolve().parents[2] / "bundles" / "tabletop"


def test_a_policy_beside_itself_wins_and_loses_nothing_and_two_episodes_decide_nothing():
    shipped = Bundle.open(SHIPPED)
    verdict = prove_behaviour(shipped, shipped, 2)
    assert (verdict["lost"], verdict["won"], verdict["episodes"]) == (0, 0, 2)
    assert verdict["reference"] == verdict["candidate"] > 0, "it can do the task"
    assert verdict["verdict"] == "undecided" and not verdict["ok"]


def test_a_policy_of_another_robot_cannot_be_compared(tmp_path):
    other = make_bundle(tmp_path)
    with pytest.raises(ExportError, match="behaviour cannot be compared"):
        prove_behaviour(Bundle.open(SHIPPED), other, 1)


def test_verify_asks_for_the_reference(tmp_path, capsys):
    from vla_align_ros.cli import main

    copy = shutil.copytree(SHIPPED, tmp_path / "bundle")
    assert main(["verify", str(copy), "--episodes", "2"]) == 1
    assert "--reference" in capsys.readouterr().err
