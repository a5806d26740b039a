"""The third gate: closed-loop episodes beside the fp32 reference, seed by seed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from tqdm import tqdm

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.contract.golden import iterate_observations
from vla_align_ros.contract.spec import EXECUTED_ACTIONS, PolicySpec
from vla_align_ros.errors import ExportError
from vla_align_ros.runtime.golden import compare_actions, judge_errors
from vla_align_ros.runtime.limits import BEHAVIOUR_LIMITS, find_golden_limits
from vla_align_ros.runtime.paired import judge_pairs
from vla_align_ros.runtime.policy import Policy

FIRST_SEED = 500_000
"""Far from the seeds of training data and of the tables in the README."""

REFERENCE_BACKEND = "onnx"


def check_gate(spec: PolicySpec, episodes: int) -> None:
    """Look, before any work, whether so many pairs of episodes can pass the gate.

    Raises:
        ExportError: if the policy is not one of the table-top, or if even policies that always
            succeed would be undecided.
    """
    _check_cameras(spec)
    if not _can_pass(episodes):
        least = next(count for count in itertools.count(episodes + 1) if _can_pass(count))
        raise ExportError(
            "so few episodes cannot pass the gate of behaviour",
            got=f"--episodes {episodes}",
            expected=f"{least} or more: with fewer a drop of the success rate by"
            f" {BEHAVIOUR_LIMITS.worse_by:g} is missed too often",
            fix="--episodes 60, which also passes where the policies differ in a few, or 0",
        )


def _can_pass(episodes: int) -> bool:
    always = [True] * episodes
    return bool(judge_pairs(always, always, BEHAVIOUR_LIMITS)["ok"])


def _check_cameras(spec: PolicySpec) -> None:
    from vla_align_ros.sim.tabletop import CAMERA

    names = [camera.name for camera in spec.cameras]
    if names != [CAMERA]:
        raise ExportError(
            "behaviour cannot be compared",
            got=f"cameras {names}",
            expected=f"a policy of the simulator's camera, {CAMERA!r} alone",
            fix="compare on the real arm, or leave --episodes out",
        )


def prove_behaviour(
    reference: Bundle,
    candidate: Policy,
    episodes: int,
    *,
    threads: int = 1,
    shift: str = "none",
    seed: int = FIRST_SEED,
) -> dict[str, Any]:
    """Run both policies on the same scenes of the table-top, and judge the candidate.

    Args:
        reference: the same policy in fp32, to run on ONNX Runtime. candidate: the policy in
            question, as it is open; it stays so. episodes: pairs. threads: of the reference.
            shift: of the scenes. seed: of the first.

    Returns:
        As `judge_pairs`, with "shift", "seed", "backend", and the reference's "reference_id".

    Raises:
        ExportError: if the policy is not one of the table-top, or the reference is not the fp32
            policy that the candidate was made from.
    """
    from training.closed_loop import run_episode
    from vla_align_ros.sim.tabletop import TabletopEnv

    _check_cameras(candidate.spec)
    if reference.spec.fingerprint() != candidate.spec.fingerprint():
        raise ExportError(
            "behaviour cannot be compared",
            got="policies that see or do different things",
            expected="two of one specification",
            fix="export the candidate's run with --precision fp32, and give that as the reference",
        )
    env = TabletopEnv()
    try:
        with Policy.open(reference, REFERENCE_BACKEND, threads) as first:
            _check_reference(first, candidate)
            outcomes: list[list[bool]] = [[], []]
            for number in tqdm(range(episodes), desc="behaviour", unit="pair"):
                for policy, found in zip((first, candidate), outcomes, strict=True):
                    episode = run_episode(
                        policy, env, seed + number, shift, executed=EXECUTED_ACTIONS, swap=False
                    )
                    found.append(episode.success)
    finally:
        env.close()
    verdict = judge_pairs(outcomes[0], outcomes[1], BEHAVIOUR_LIMITS)
    return {
        **verdict,
        "shift": shift,
        "seed": seed,
        "backend": candidate.backend.name,
        "reference_id": reference.id,
    }


def _check_reference(reference: Policy, candidate: Policy) -> None:
    """Refuse a reference beside which success would say nothing of the candidate.

    Where a bundle says that it comes from is not asked: its actions on the candidate's golden
    samples must be those of the fp32 model that the candidate was made from.
    """
    fix = "export the candidate's run with --precision fp32, and give that bundle as the reference"
    same = (candidate.bundle_id, candidate.backend.name)
    if (reference.bundle_id, reference.backend.name) == same:
        raise ExportError(
            "behaviour cannot be compared",
            got=f"twice the bundle {reference.bundle.short_id} on {reference.backend.name}",
            expected="a reference that is not the candidate itself",
            fix=fix,
        )
    if reference.precision != "fp32":
        raise ExportError(
            "behaviour cannot be compared",
            got=f"a reference in {reference.precision}",
            expected="fp32",
            fix=fix,
        )
    golden = candidate.bundle.golden()
    seen = iterate_observations(golden, candidate.spec)
    actions = np.stack([reference.infer(observation).actions for observation in seen])
    errors = compare_actions(actions, golden["reference_actions"])
    verdict = judge_errors(errors, find_golden_limits("fp32"))
    if not verdict["ok"]:
        raise ExportError(
            "the reference is another policy than the candidate",
            got=", ".join(
                f"{name} off by {entry['max']:.3g} {entry['unit']}"
                for name, entry in verdict["dimensions"].items()
                if not entry["ok"]
            ),
            expected="the candidate's golden actions, within the limits of fp32",
            fix=fix,
        )
