"""Every fault of the catalogue, on real processes: the arm stands in time, for the right reason."""

from __future__ import annotations

from typing import Any

import pytest

from vla_align_ros.bench.catalogue import FAULTS, Fault

pytestmark = [
    pytest.mark.slow,
    # preexec_fn forks; other tests of this process may have left threads. The child calls prctl.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_arm_stands_in_time(laboratory: Any, fault: Fault) -> None:
    outcome = laboratory.run(fault)
    assert outcome.ok, outcome
    if fault.stops:
        assert outcome.stop_s is not None
        assert outcome.stop_s <= outcome.bar_s
        assert outcome.reason in fault.reasons
    else:
        assert outcome.stop_s is None
    assert outcome.recovered is (None if fault.lift is None else True)
