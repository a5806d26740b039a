"""Runners of a small bundle, taken down after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rig import STILL, MakeRig, Rig
from sample_policy import make_bundle

from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.inference.fake import FakeBackend
from vla_align_ros.runtime.policy import Policy


@pytest.fixture(scope="session")
def runner_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def make_rig(runner_bundle: Bundle) -> Iterator[MakeRig]:
    """make_rig(answer, ...): the backend answers so; the rest is `Rig`'s."""
    rigs: list[Rig] = []

    def make(answer: object = STILL, **options: object) -> Rig:
        backend = FakeBackend(answer)  # type: ignore[arg-type]
        rig = Rig(Policy(runner_bundle, backend), **options)  # type: ignore[arg-type]
        rig.backend = backend
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.runner.deactivate()
