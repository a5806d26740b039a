"""`vla-align verify` and `vla-align inspect` on real bundles, through their own arguments."""

from __future__ import annotations

import argparse
import contextlib
import json
from types import SimpleNamespace

import pytest
from sample_engines import make_engine_set
from sample_policy import make_bundle

from vla_align_ros.commands import inspect, verify
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import BundleError, ConfigurationError
from vla_align_ros.runtime.golden import prove_bundle
from vla_align_ros.runtime.policy import Policy
from vla_align_ros.runtime.proofs import DEVICE, keep_proof, require_proof


def run(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_verify_proves_a_good_bundle_and_keeps_the_proof_in_it(tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    result = run(verify, bundle.path)
    assert result["ok"] is True and result["bundle_id"] == bundle.id
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "proved" and "TOO FAR" not in output and "mm" in output
    report = Bundle.open(bundle.path).report()["verify"]
    assert report["ok"] is True and report["dimensions"] == result["dimensions"]
    json.dumps(result, allow_nan=False)


def test_verify_fails_a_bad_bundle_says_where_and_keeps_that_too(tmp_path, capsys):
    bundle = make_bundle(tmp_path, noise=0.01)
    assert run(verify, bundle.path)["ok"] is False
    output = capsys.readouterr().out
    assert "TOO FAR" in output and output.splitlines()[-1].startswith("REFUSED")
    assert Bundle.open(bundle.path).report()["verify"]["ok"] is False


def test_verify_tells_its_verdict_though_it_cannot_be_kept(tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    unwritable = bundle.path.rename(tmp_path / (250 * "b"))  # no room for a longer name beside it
    with pytest.raises(BundleError, match=r"report.json cannot be written.*fix: copy the bundle"):
        run(verify, unwritable)
    assert capsys.readouterr().out.splitlines()[-1] == "proved"


def test_verify_refuses_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="no policy bundle"):
        run(verify, tmp_path)


def test_inspect_shows_the_limits_that_a_policy_asks_for(tmp_path, capsys):
    run(inspect, make_bundle(tmp_path, limits={"max_linear_m_s": 0.25}).path)
    assert "no more than max_linear_m_s 0.25" in capsys.readouterr().out


def test_inspect_shows_what_a_bundle_sees_does_and_comes_from(tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    result = run(inspect, bundle.path)
    output = capsys.readouterr().out
    for text in (
        bundle.id,
        "camera front: 32x24",
        "4 actions of dx, dy, dz, drx, dry, drz, gripper",
        "5 Hz in base_link",
        "action: quantile",
        "dataset.seed: 3",
        "model/policy.onnx",
        "none; run `vla-align verify`",
    ):
        assert text in output
    assert result["manifest"]["id"] == bundle.id and result["report"] == {}
    json.dumps(result, allow_nan=False)


def test_inspect_writes_out_what_a_terminal_would_obey_or_cannot_show(tmp_path, capsys):
    run(inspect, make_bundle(tmp_path, precision="grün \x1b[2J\ud800").path)
    assert r"precision: grün \x1b[2J\ud800" in capsys.readouterr().out


def test_inspect_shows_the_verdict_of_the_last_proof(tmp_path, capsys):
    bundle = make_bundle(tmp_path, noise=0.01)
    run(verify, bundle.path)
    capsys.readouterr()
    assert run(inspect, bundle.path)["report"]["verify"]["ok"] is False
    assert "REFUSED on 3 samples (onnx, fp32; onnxruntime " in capsys.readouterr().out


@pytest.mark.parametrize(("ok", "verdict"), [(True, "proved"), (False, "REFUSED")])
def test_inspect_calls_proved_what_the_node_would_run(tmp_path, capsys, ok, verdict):
    """A gate of behaviour that failed stands beside golden samples that passed."""
    bundle = make_bundle(tmp_path)
    make_engine_set(bundle)
    with Policy.open(bundle) as policy:
        proof = {**prove_bundle(bundle, policy.backend), "behaviour": {"ok": ok}}
        keep_proof(policy, proof)
        with contextlib.nullcontext() if ok else pytest.raises(BundleError, match="not proved"):
            require_proof(policy)
    bundle.engine("sm89").add_gates({DEVICE: proof})
    run(inspect, bundle.path)
    output = capsys.readouterr().out
    assert f"{verdict} on 3 samples (onnx, fp32; {proof['runs_on']})" in output
    (line,) = (line for line in output.splitlines() if line.startswith("  sm89: "))
    assert line.endswith(", proved") is ok


def test_inspect_tells_of_the_bundle_whatever_became_of_its_engines(tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    sidecar = make_engine_set(bundle) / "engine.json"
    sidecar.write_bytes(sidecar.read_bytes()[:-9])
    assert run(inspect, bundle.path)["bundle_id"] == bundle.id
    output = capsys.readouterr().out
    assert bundle.id in output and "  sm89: REFUSED: cannot read engine.json" in output


def test_verify_leaves_out_behaviour_beside_an_unnamed_reference(tmp_path):
    bundle = make_bundle(tmp_path)
    with Policy.open(bundle) as policy:
        measured = {"ok": True, "verdict": "not worse"}
        keep_proof(policy, {**prove_bundle(bundle, policy.backend), "behaviour": measured})
    assert "behaviour" not in run(verify, bundle.path)
    assert "behaviour" not in bundle.report()["proofs"]["onnx"]


def test_verify_runs_the_policy_that_is_open_and_as_many_threads_in_episodes(tmp_path, monkeypatch):
    """A second engine beside the first would need its memory twice, on a GPU above all."""
    for folder in ("a", "reference"):
        (tmp_path / folder).mkdir()
    candidate, reference = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "reference")
    opened, asked = [], {}
    real = Policy.open

    def count(bundle, *options):
        opened.append((bundle.path, *options))
        return real(bundle, *options)

    def gate(first, policy, episodes, *, threads):
        policy.warm_up(1)
        asked.update(reference=first.path, policy=policy, episodes=episodes, threads=threads)
        return {"ok": True, "verdict": "not worse", "reference_id": first.id}

    point = SimpleNamespace(name="behaviour", load=lambda: gate)
    monkeypatch.setattr(verify, "entry_points", lambda group: [point])
    monkeypatch.setattr(Policy, "open", count)
    monkeypatch.setattr(verify, "describe_proof", lambda proof: [])
    options = ["--episodes", 42, "--reference", reference.path, "--threads", 2]
    result = run(verify, candidate.path, *options)
    assert opened == [(candidate.path, "onnx", 2)]
    assert asked["policy"].bundle.path == candidate.path
    assert (asked["reference"], asked["episodes"], asked["threads"]) == (reference.path, 42, 2)
    assert result["behaviour"]["verdict"] == "not worse"


def test_verify_refuses_fewer_episodes_than_none_and_keeps_the_proof(tmp_path):
    bundle = make_bundle(tmp_path)
    run(verify, bundle.path)
    kept = bundle.report()
    with pytest.raises(ConfigurationError, match=r"wrong number of episodes: got -3.*--episodes"):
        run(verify, bundle.path, "--episodes", -3, "--reference", tmp_path)
    assert bundle.report() == kept


def test_verify_refuses_a_reference_that_nothing_is_compared_with(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--reference has no effect.*--episodes 60"):
        run(verify, make_bundle(tmp_path).path, "--reference", tmp_path)


def test_inspect_refuses_a_tampered_bundle(tmp_path):
    bundle = make_bundle(tmp_path)
    (bundle.path / "stats.json").write_text("{}")
    with pytest.raises(BundleError, match="altered"):
        run(inspect, bundle.path)
