"""OpenVLA's shape on a GPU: both heads, eager and as one CUDA graph, with random weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from training.export.torch_policy import ActingModule
from training.model import HeadConfig, PrismaticVLA, VlaConfig
from training.model.openvla.configuration import openvla_7b_json, openvla_config
from training.model.openvla.load import build_empty, compute_buffers
from vla_align_ros.contract.spec import TensorSpec
from vla_align_ros.errors import BackendError
from vla_align_ros.inference.torch import TorchBackend, TorchPolicy, find_dtype

HORIZON = 8
PROMPT_TOKENS = 32
WARM_UPS = 3


def openvla_shapes() -> dict[str, VlaConfig]:
    """OpenVLA-7B as published, and with the chunk head that reads 8 steps in one pass."""
    tokens = openvla_config(openvla_7b_json())
    return {
        "chunk": dataclasses.replace(tokens, head=HeadConfig(horizon=HORIZON)),
        "tokens": tokens,
    }


def bench_openvla(
    *, rounds: int = 30, precision: str = "bf16", say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure both heads on this machine's GPU.

    Returns:
        Rows as `measure_head` gives them.

    Raises:
        BackendError: without a GPU.
    """
    if not torch.cuda.is_available():
        raise BackendError(
            "shape openvla_7b needs a GPU",
            got="no CUDA device, or a build of torch without CUDA",
            expected="an NVIDIA GPU of 24 GB or more",
            fix="run it where there is one; --shape smol runs on a CPU",
        )
    rows = []
    for head, config in openvla_shapes().items():
        say(f"building OpenVLA-7B with the {head} head")
        rows += measure_head(head, config, rounds=rounds, precision=precision, device="cuda")
        torch.cuda.empty_cache()
    return rows


def measure_head(
    head: str, config: VlaConfig, *, rounds: int, precision: str, device: str
) -> list[dict[str, Any]]:
    """Time one network eager, eager again (the noise), and on a GPU as one CUDA graph, in turns.

    Returns:
        For each: head, mode, precision, p50_ms, p90_ms, p99_ms, first_ms, steps (a call's actions),
        largest difference of the actions to the eager ones, and the GPU's peak memory in MiB.
    """
    model = build_random(config, find_dtype(precision), torch.device(device))
    policy = TorchPolicy(ActingModule(model), *list_tensors(config))
    options = {"precision": precision, "device": device}
    backends = {mode: TorchBackend(policy, **options) for mode in ("eager", "eager again")}
    if device != "cpu":
        backends["CUDA graph"] = TorchBackend(policy, **options, cuda_graph=True)
    rng = np.random.default_rng(0)
    samples = [make_inputs(policy, rng) for _ in range(4)]
    taken: dict[str, list[float]] = {mode: [] for mode in backends}
    for backend in backends.values():
        for _ in range(WARM_UPS):
            backend.infer(samples[0])
    for turn in range(rounds):
        for mode, backend in backends.items():
            start_s = time.perf_counter()
            backend.infer(samples[turn % len(samples)])
            taken[mode].append(1e3 * (time.perf_counter() - start_s))
    expected = backends["eager"].infer(samples[0])["actions"]
    errors = {
        m: np.abs(b.infer(samples[0])["actions"] - expected).max() for m, b in backends.items()
    }
    peak = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None
    for backend in backends.values():
        backend.close()
    return list(_summarise(head, config, precision, taken, errors, peak))


def build_random(config: VlaConfig, dtype: torch.dtype, device: torch.device) -> PrismaticVLA:
    """Build a network of random weights right on its device, in its dtype."""
    model = build_empty(config).to_empty(device=device)
    for module in model.modules():  # tables that are computed, not stored, were emptied, too
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name in module._non_persistent_buffers_set:
                module.register_buffer(name, buffer.to("meta"), persistent=False)
    compute_buffers(model, device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = torch.empty_like(parameter, dtype=dtype).normal_(
                0.0, 0.02, generator=generator
            )
    return model.eval().requires_grad_(False)


def list_tensors(config: VlaConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a policy without a state, of one camera."""
    side = config.vision[0].image_size
    inputs = [TensorSpec("pixel_values", "float32", (1, 3 * len(config.vision), side, side))]
    inputs += [TensorSpec(n, "int64", (1, PROMPT_TOKENS)) for n in ("input_ids", "attention_mask")]
    outputs = (TensorSpec("actions", "float32", (1, config.head.horizon, config.head.action_dim)),)
    return tuple(inputs), outputs


def make_inputs(policy: TorchPolicy, rng: np.random.Generator) -> dict[str, Any]:
    """A random picture and a prompt of which two thirds are words."""
    pixels, ids, mask = policy.inputs
    words = np.arange(PROMPT_TOKENS) < 2 * PROMPT_TOKENS // 3
    return {
        pixels.name: rng.standard_normal(pixels.shape, dtype=np.float32),
        ids.name: rng.integers(3, 300, (1, PROMPT_TOKENS)),
        mask.name: words.astype(np.int64)[None],
    }


def _summarise(
    head: str,
    config: VlaConfig,
    precision: str,
    taken: dict[str, list[float]],
    errors: dict[str, Any],
    peak: float | None,
) -> Iterator[dict[str, Any]]:
    base = float(np.median(taken["eager"]))
    for mode, times in taken.items():
        p50, p90, p99 = (float(q) for q in np.quantile(times, (0.5, 0.9, 0.99)))
        yield {
            **{"head": head, "mode": mode, "precision": precision, "steps": config.head.horizon},
            **{"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "first_ms": times[0]},
            **{"speedup": base / p50, "difference": float(errors[mode]), "peak_mib": peak},
        }
