"""Every backend that is present gives the same actions, on one exported network and by one path."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [train]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

from tiny_export import make_run

from training.export.bundle import export_run
from vla_align_ros.commands.engine_checks import check_engine
from vla_align_ros.contract.bundle import Bundle
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import BACKENDS
from vla_align_ros.inference.pipeline import LIBRARIES, open_graphs
from vla_align_ros.runtime.golden import prove_bundle, replay_golden
from vla_align_ros.runtime.limits import find_golden_limits
from vla_align_ros.runtime.policy import Policy

HEADS = ("chunk", "chunk, vision apart", "tokens")


@pytest.fixture(scope="module", params=HEADS)
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    run = make_run(folder / "run", tokens=request.param == "tokens")
    split = request.param.endswith("apart")
    export_run(run, folder / "bundle", split_vision=split, say=lambda text: None)
    return Bundle.open(folder / "bundle")


def open_or_skip(bundle, name):
    """Open a backend; skip, with the reason, where its library or its hardware is absent."""
    finding = check_engine(name)
    if not finding.ok:
        pytest.skip(f"{name}: {finding.found}; {finding.fix}")
    if name in LIBRARIES:
        pytest.skip(f"{name} needs engines built for this GPU, which its own tests do")
    return open_graphs(bundle, name)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_backend_gives_the_actions_of_the_trained_network(bundle, name):
    backend = open_or_skip(bundle, name)
    try:
        policy = Policy(bundle, backend)
        proof = prove_bundle(bundle, backend, policy.precision)
        assert proof["ok"], proof
        assert backend.name == name == proof["backend"]
        actions = [replay_golden(bundle, backend) for _ in range(2)]
        np.testing.assert_array_equal(actions[0], actions[1])  # no state is left of a call
    finally:
        backend.close()
    if policy.precision == "fp32":
        reference = bundle.golden()["reference_actions"]
        reference[..., -1] = np.clip(reference[..., -1], 0.0, 1.0)
        np.testing.assert_allclose(actions[0], reference, atol=1e-6)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_backend_names_a_precision_that_has_limits(bundle, name):
    backend = open_or_skip(bundle, name)
    find_golden_limits(Policy(bundle, backend).precision)
    backend.close()


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_closed_backend_refuses_work(bundle, name):
    backend = open_or_skip(bundle, name)
    backend.close()
    backend.close()
    ones = {t.name: np.ones(t.shape, t.dtype) for t in bundle.processor.input_tensors()}
    with pytest.raises(BackendError, match="closed"):
        backend.infer(ones)
