"""A torch module behind the seam: precision, threads, captured graphs, and who may open one."""

from __future__ import annotations

import importlib.metadata
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [train]")

import torch

from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference import open_backend
from vla_align_ros.inference import torch as module
from vla_align_ros.inference.torch import TorchBackend, TorchPolicy

INPUTS = (TensorSpec("x", "float32", (2, 4)), TensorSpec("ids", "int64", (2, 3)))
OUTPUTS = (TensorSpec("y", "float32", (2, 5)), TensorSpec("sum", "int64", (2,)))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 5)
        self.seen: list[torch.dtype] = []

    def forward(self, x, ids):
        self.seen.append(x.dtype)
        return {"y": self.linear(x), "sum": ids.sum(dim=1)}


def make_backend(precision="fp32", **options):
    net = Net().to(module.find_dtype(precision))
    return TorchBackend(TorchPolicy(net, INPUTS, OUTPUTS), precision=precision, **options), net


def make_inputs():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(2, 4)).astype(np.float32),
        "ids": rng.integers(0, 9, (2, 3)),
    }


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("bf16", 3e-2), ("fp16", 3e-3)])
def test_a_module_runs_in_the_precision_asked_for(precision, error):
    backend, net = make_backend(precision)
    inputs = make_inputs()
    found = backend.infer(inputs)
    weight = net.linear.weight.detach().double().numpy(), net.linear.bias.detach().double().numpy()
    assert found["y"].dtype == np.float32 and found["sum"].dtype == np.int64
    np.testing.assert_allclose(found["y"], inputs["x"] @ weight[0].T + weight[1], atol=error)
    np.testing.assert_array_equal(found["sum"], inputs["ids"].sum(axis=1))
    assert net.seen == [module.DTYPES[precision]]
    assert backend.name == ("torch" if precision == "fp32" else f"torch_{precision}")


@pytest.mark.parametrize(("precision", "kept"), [("fp32", False), ("bf16", True)])
def test_fp32_takes_no_tf32(precision, kept, monkeypatch):
    for part in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(part, "allow_tf32", True)
    make_backend(precision)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is kept


def test_inputs_that_cannot_be_written_to_are_taken_and_outputs_survive():
    backend, _ = make_backend()
    inputs = make_inputs()
    for value in inputs.values():
        value.setflags(write=False)
    first = backend.infer(inputs)["y"]
    kept = first.copy()
    backend.infer({**inputs, "x": inputs["x"] + 1})
    np.testing.assert_array_equal(first, kept)


def test_no_gradient_is_kept():
    backend, net = make_backend()
    backend.infer(make_inputs())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_a_module_that_gives_other_outputs_is_refused():
    policy = TorchPolicy(Net(), INPUTS, (TensorSpec("actions", "float32", (1,)),))
    with pytest.raises(BackendError, match=r"other outputs: got \['sum', 'y'\]; expected actions"):
        TorchBackend(policy).infer(make_inputs())


def test_a_module_that_fails_is_named():
    class Broken(Net):
        def forward(self, x, ids):
            raise ZeroDivisionError("on purpose")

    with pytest.raises(BackendError, match="failed while it ran: got on purpose"):
        TorchBackend(TorchPolicy(Broken(), INPUTS, OUTPUTS)).infer(make_inputs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "thread count"),
        ({"device": "abacus"}, "no such device"),
        ({"cuda_graph": True}, "CUDA graphs need a GPU"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(BackendError, match=message):
        make_backend(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(BackendError, match="no such device"):
        make_backend(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_graph_gives_what_the_module_gives(precision):
    inputs = make_inputs()
    net = Net().to("cuda", module.find_dtype(precision))
    policy = TorchPolicy(net, INPUTS, OUTPUTS)
    eager = TorchBackend(policy, precision=precision, device="cuda").infer(inputs)
    captured = TorchBackend(policy, precision=precision, device="cuda", cuda_graph=True)
    for _ in range(2):
        for name, value in captured.infer(inputs).items():
            np.testing.assert_array_equal(value, eager[name])
    captured.close()
    with pytest.raises(BackendError, match="closed"):
        captured.infer(inputs)


def test_a_closed_backend_refuses_work():
    backend, _ = make_backend()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer(make_inputs())


def test_without_the_training_code_the_way_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "entry_points", lambda group: ())
    with pytest.raises(BackendError, match=r"needs the training code.*fix: install the whole"):
        open_backend("torch", tmp_path)


def test_without_a_library_of_the_training_code_its_extra_is_named(tmp_path, monkeypatch):
    point = importlib.metadata.EntryPoint("x", "training.export.torch_policy:load_policy", "x")
    monkeypatch.setattr(module, "entry_points", lambda group: (point,))
    monkeypatch.delitem(sys.modules, "training.export.torch_policy", raising=False)
    monkeypatch.setitem(sys.modules, "training.model", None)
    with pytest.raises(BackendError, match=r"needs the training code.*fix: install"):
        open_backend("torch", tmp_path)


def test_a_graph_outside_of_a_bundle_is_no_network(tmp_path):
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"")
    with pytest.raises(BackendError, match="more than a graph"):
        open_backend("torch", path)


def test_other_precisions_are_refused(tmp_path):
    with pytest.raises(BackendError, match="got 'int3'; expected fp32 or bf16 or fp16"):
        open_backend("torch", tmp_path, precision="int3")
