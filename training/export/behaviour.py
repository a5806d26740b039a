"""The third gate: closed-loop episodes beside the fp32 reference, seed by seed."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import ExportError
from vla_align_ros.runtime.limits import BEHAVIOUR_LIMITS
from vla_align_ros.runtime.paired import judge_pairs
from vla_align_ros.runtime.policy import Policy

FIRST_SEED = 500_000
"""Far from the seeds of training data and of the tables in the README."""

EXECUTED = 2


def prove_behaviour(
    reference: Bundle,
    candidate: Bundle,
    episodes: int,
    *,
    backend: str = "onnx",
    shift: str = "none",
    seed: int = FIRST_SEED,
) -> dict[str, Any]:
    """Run both policies on the same scenes of the table-top, and judge the candidate.

    Args:
        reference: usually the same policy in fp32, on ONNX Runtime. candidate: the bundle in
            question, run on `backend`. episodes: pairs. shift: of the scenes. seed: of the first.

    Returns:
        As `judge_pairs`, with "shift", "seed" and "backend".

    Raises:
        ExportError: if the policy is not one of the table-top.
    """
    from training.closed_loop import run_episode
    from vla_align_ros.sim.tabletop import CAMERA, TabletopEnv

    names = [camera.name for camera in candidate.spec.cameras]
    if names != [CAMERA] or reference.spec.fingerprint() != candidate.spec.fingerprint():
        raise ExportError(
            "behaviour cannot be compared",
            got=f"cameras {names}, specs {'equal' if reference.spec == candidate.spec else 'not'}",
            expected=f"two policies of one specification, with the simulator's camera {CAMERA!r}",
            fix="compare on the real arm, or leave --episodes out",
        )
    env = TabletopEnv()
    try:
        with Policy.open(reference) as first, Policy.open(candidate, backend) as second:
            outcomes: list[list[bool]] = [[], []]
            for number in tqdm(range(episodes), desc="behaviour", unit="pair"):
                for policy, found in zip((first, second), outcomes, strict=True):
                    episode = run_episode(
                        policy, env, seed + number, shift, executed=EXECUTED, swap=False
                    )
                    found.append(episode.success)
    finally:
        env.close()
    verdict = judge_pairs(outcomes[0], outcomes[1], BEHAVIOUR_LIMITS)
    return {**verdict, "shift": shift, "seed": seed, "backend": backend}
