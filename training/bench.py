"""What alignment costs: steps without it, with the teacher online, and with cached features."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from training.alignment import Teacher, compute_targets
from training.config import RunConfig
from training.data.feature_file import fill_feature_file, open_feature_file
from training.model import PrismaticVLA
from training.objective import Objective
from training.optimizers import build_optimizer, set_rates, trained_parameters
from training.provenance import describe_machine
from training.setup_model import build_objective, compute_dtype, find_teacher
from vla_align_ros.errors import ConfigurationError

VARIANTS = ("default", "online", "cached", "default_again")
WARM_UP = 2
POOL = 64  # different pictures, so that the cache is read at different places
PROMPT_TOKENS = 32
WORDS = 512  # vocabulary of an LLM from scratch, which otherwise comes from the data

Batch = dict[str, Any]


def bench_training(
    config: RunConfig,
    steps: int,
    *,
    batch_size: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Time whole training steps of `config`, interleaved in one process, on seeded random data.

    A step is what the trainer does to a batch on its device: forward, loss, backward, clipping and
    the optimizer, with everything that the recipe ever trains in training, activation
    checkpointing as it says. The student sees pixels in each variant. `default` is lambda 0,
    `online` runs the teacher on the pictures, its preprocessing included, `cached` reads its
    features from a memory-mapped file; `default_again` is `default` once more, and its ratio the
    noise. Each round times every variant once, in changing order. Weights are random where the
    recipe would load some: they change no time.

    Returns medians and 90 % quantiles in ms, ratios of the medians to `default`'s, samples a
    second, the peak of the memory of each variant in GB on CUDA (on a CPU the process's), and what
    was measured.
    """
    if steps < 1:
        raise ConfigurationError(
            "Nothing to time", got=f"{steps} steps", expected="1 or more", fix="correct --steps"
        )
    if config.alignment.weight == 0:
        raise ConfigurationError(
            "This recipe does not align",
            got="alignment.weight 0",
            expected="a weight above 0",
            fix="choose an aligned recipe, or --set alignment.weight=0.2",
        )
    where = _pick_device(device)
    size = batch_size or config.optim.batch_size
    teacher = find_teacher(config)
    assert teacher is not None  # the weight is above 0
    objective = _build(config, teacher, where)
    teacher.to(where)
    optimizer = build_optimizer(objective, config.optim)
    set_rates(optimizer, config.optim, config.optim.steps - 1)
    bench = _Bench(config, objective, optimizer, teacher, where, size)
    with bench.cache():
        times, peaks = bench.time(steps, progress)
    return _summarise(times, peaks, config, objective, size, where)


class _Bench:
    """The parts that every timed step uses."""

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        teacher: Teacher,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.config, self.objective, self.optimizer = config, objective, optimizer
        self.teacher, self.device, self.batch_size = teacher, device, batch_size
        self.grid = objective.model.grid
        self.rng = np.random.default_rng(config.seed)
        side = config.data.image_size
        self.pictures = self.rng.integers(0, 256, (POOL, side, side, 3), dtype=np.uint8)
        self.features: NDArray[np.float16] | None = None

    @contextmanager
    def cache(self) -> Any:
        """Fill a cache as training would, and give it back afterwards."""

        def teach(start: int, stop: int) -> NDArray[np.float16]:
            found = compute_targets(self.teacher, self.pictures[start:stop], self.grid)
            half: NDArray[np.float16] = found.float().cpu().numpy().astype(np.float16)
            return half

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.npy"
            fill_feature_file(path, POOL, teach, block=8)
            self.features = open_feature_file(path, POOL)
            yield
            self.features = None

    def time(self, steps: int, progress: bool) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Milliseconds of each step by variant, and the peak of CUDA's memory in bytes."""
        times: dict[str, list[float]] = {name: [] for name in VARIANTS}
        peaks = dict.fromkeys(VARIANTS, 0.0)
        rounds = range(WARM_UP + steps)
        for number in tqdm(rounds, desc="steps", unit="round", disable=not progress):
            for name in self.rng.permutation(VARIANTS):
                elapsed_ms, peak = self._time_step(name)
                if number >= WARM_UP:
                    times[name].append(elapsed_ms)
                    peaks[name] = max(peaks[name], peak)
        return times, peaks

    def _time_step(self, variant: str) -> tuple[float, float]:
        indices = self.rng.integers(0, POOL, self.batch_size)
        batch = self._load(indices)
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start_s = time.perf_counter()
        self._step(variant, batch, indices)
        self._wait()
        elapsed_ms = 1e3 * (time.perf_counter() - start_s)
        cuda = self.device.type == "cuda"
        return elapsed_ms, float(torch.cuda.max_memory_allocated(self.device)) if cuda else 0.0

    def _step(self, variant: str, batch: Batch, indices: NDArray[np.int64]) -> None:
        objective = self.objective
        objective.train()
        objective.align_weight = 0.0
        if variant in ("online", "cached"):
            objective.align_weight = self.config.alignment.weight
            batch["teacher_features"] = self._targets(variant, indices)
        self.optimizer.zero_grad(set_to_none=True)
        enabled = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            loss, _ = objective(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            trained_parameters(self.optimizer), self.config.optim.clip, error_if_nonfinite=True
        )
        self.optimizer.step()

    def _targets(self, variant: str, indices: NDArray[np.int64]) -> Tensor:
        if variant == "online":
            return compute_targets(self.teacher, self.pictures[indices], self.grid)
        assert self.features is not None
        rows = np.sort(indices)  # as the store does: in the file's order, then back
        read = torch.from_numpy(self.features[rows][np.argsort(np.argsort(indices))])
        return read.to(self.device, torch.float32)

    def _load(self, indices: NDArray[np.int64]) -> Batch:
        """A batch on the device, as the loader has it ready when the step begins."""
        model, size = self.objective.model, len(indices)
        head, towers = model.config.head, len(model.config.vision)
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**31)))
        side = self.config.data.image_size
        words = int(model.llm.config.vocab_size)
        batch: Batch = {
            "pixel_values": torch.randn(size, 3 * towers, side, side, generator=generator),
            "input_ids": torch.randint(words, (size, PROMPT_TOKENS), generator=generator),
            "attention_mask": torch.ones(size, PROMPT_TOKENS, dtype=torch.int64),
            "actions": torch.rand(size, head.horizon, head.action_dim, generator=generator) * 2 - 1,
        }
        if model.config.state is not None:
            batch["state"] = torch.randn(size, model.config.state.dim, generator=generator)
        if self.config.loss.grounding > 0 and model.config.grounding is not None:
            shape = (size, model.config.grounding.maps, self.grid**2)
            batch["grounding"] = torch.rand(shape, generator=generator).softmax(-1)
        if model.action_tokens is not None:
            batch["action_tokens"] = model.action_tokens.encode(batch["actions"][:, 0])
        return {name: value.to(self.device) for name, value in batch.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _build(config: RunConfig, teacher: Teacher, device: torch.device) -> Objective:
    from training.adapters import apply_adapter

    llm = config.model.llm
    if llm.config is not None and "vocab_size" not in llm.config:
        llm = dataclasses.replace(llm, config={**llm.config, "vocab_size": WORDS})
    model_config = dataclasses.replace(config.model, llm=llm)
    torch.manual_seed(config.seed)
    with torch.device(device):
        model = PrismaticVLA(model_config, pretrained=False)
    if config.adapter.kind != "none":
        model.to(compute_dtype(config))
    apply_adapter(model, config.adapter, compute_dtype=compute_dtype(config), device=device)
    return build_objective(config, model, teacher).to(device)


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _summarise(
    times: Mapping[str, list[float]],
    peaks: Mapping[str, float],
    config: RunConfig,
    objective: Objective,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    medians = {name: float(np.median(values)) for name, values in times.items()}
    memory: Callable[[str], float] = lambda name: peaks[name] / 1e9  # noqa: E731
    if device.type != "cuda":
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        memory = lambda name: peak_gb  # noqa: E731
    result: dict[str, Any] = {f"{name}_ms": value for name, value in medians.items()}
    for name, values in times.items():
        result[f"{name}_p90_ms"] = float(np.quantile(values, 0.9))
        result[f"{name}_samples_per_s"] = 1e3 * batch_size / medians[name]
        result[f"{name}_peak_gb"] = memory(name)
        if name != "default":
            result[f"{name}_ratio"] = medians[name] / medians["default"]
    return {
        **result,
        "recipe": config.recipe,
        "steps": len(times["default"]),
        "batch_size": batch_size,
        "image_size": config.data.image_size,
        "parameters": sum(p.numel() for p in objective.model.parameters()),
        "trained": sum(p.numel() for p in objective.model.parameters() if p.requires_grad),
        "teacher": config.teacher.name,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "machine": describe_machine(),
        "torch": torch.__version__,
    }
