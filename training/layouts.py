"""What a training step will need on each GPU, found by laying the network out without storage.

The network is built, adapted and run forward as training does it, in float32 or bfloat16 under
autocast, with tensors that have shapes and no data; what autograd would keep is counted from that
run. Only quantised weights, optimizer states and shards are reckoned by formula.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from training.adapters import AdapterConfig, apply_adapter, find_targets
from training.memory import find_blocks
from training.model import PrismaticVLA, VlaConfig
from training.model.openvla import build_empty

RANKS = (2, 4, 8, 16)
_NF4_BLOCK, _NF4_NESTED = 64, 256  # weights a scale, and scales a scale of their own
_ADAM8_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that autograd keeps for one forward pass.

    outside: of blocks. inner: within each block, in order. inputs: what the blocks start from, of
    which checkpointing keeps all and a plain pass only what its sums need (then in `inner`).
    """

    outside: int
    inner: tuple[int, ...]
    inputs: int

    def peak(self, checkpointing: bool) -> int:
        """Most bytes at once: all of them, or one block's beside what the others start from."""
        if checkpointing:
            return self.outside + self.inputs + max(self.inner)
        return self.outside + sum(self.inner)


def estimate_layouts(
    config: VlaConfig,
    *,
    batch_size: int = 1,
    prompt_tokens: int = 32,
    rank: int = 32,
    checkpointing: bool = False,
    divided: bool = False,
    frozen: torch.dtype = torch.bfloat16,
) -> dict[str, dict[str, float]]:
    """Return GB (1e9 bytes) a GPU by layout, in parts and in "total".

    Layouts: "full" (every weight, AdamW), "full_adamw8bit", "lora", "lora_int8", "qlora_nf4", and
    "full_fsdp_N", "lora_fsdp_N" over N GPUs. Parts: "weights", "gradients", "optimizer",
    "gathered" (what a rank holds of others' shards, at most) and "activations". Not in it: the
    teacher, CUDA's own 0.5 to 1 GB, fragmentation.

    Args:
        config: of the network; with a tokens head its action tokens are part of the sequence.
        batch_size: samples a GPU computes at once. prompt_tokens: of each.
        rank: of LoRA. checkpointing: whether blocks are computed again in the backward pass.
        divided: whether the N GPUs of a layout share `batch_size`; else each computes as many.
        frozen: dtype in which an adapter leaves what it freezes, where that is not quantised.
    """
    adapter = AdapterConfig(kind="lora", rank=rank)
    full = _Layout.build(config, torch.float32, None, (batch_size, prompt_tokens))
    lora = _Layout.build(config, frozen, adapter, (batch_size, prompt_tokens))

    @functools.cache
    def count(made: AdapterConfig | None, samples: int) -> Activations:
        # FSDP gathers bfloat16 parameters, so that autocast makes no copies of them.
        return _Layout.build(config, torch.bfloat16, made, (samples, prompt_tokens)).activations

    quantised = lora
    if frozen != torch.bfloat16:
        quantised = _Layout.build(config, frozen, adapter, (batch_size, prompt_tokens), packed=True)
    packed = {kind: _packed_weights(quantised, kind) for kind in ("int8", "nf4")}
    layouts = {
        "full": full.parts(checkpointing),
        "full_adamw8bit": full.parts(checkpointing, moments=2 * (1 + 4 / _ADAM8_BLOCK)),
        "lora": lora.parts(checkpointing),
        "lora_int8": quantised.parts(checkpointing, weights=packed["int8"]),
        "qlora_nf4": quantised.parts(checkpointing, weights=packed["nf4"]),
    }
    for ranks in RANKS:
        size = max(1, batch_size // ranks) if divided else batch_size
        kept = lora.activations if size == batch_size else count(adapter, size)
        for name, layout, activations in (("full", full, count(None, size)), ("lora", lora, kept)):
            shared = dataclasses.replace(layout, activations=activations)
            layouts[f"{name}_fsdp_{ranks}"] = shared.parts(checkpointing, ranks=ranks)
    return {
        name: {key: value / 1e9 for key, value in {**parts, "total": sum(parts.values())}.items()}
        for name, parts in layouts.items()
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """A network without storage, in the dtypes in which it trains, and what its step keeps."""

    model: PrismaticVLA
    linears: tuple[str, ...]
    activations: Activations

    @classmethod
    def build(
        cls,
        config: VlaConfig,
        dtype: torch.dtype,
        adapter: AdapterConfig | None,
        size: tuple[int, int],
        *,
        packed: bool = False,
    ) -> _Layout:
        """Lay out `config`; size: samples, and prompt tokens of each.

        packed: the language model's linear layers will be quantised: they keep bfloat16's
        activations, as autocast makes no copies of their weights.
        """
        model = build_empty(config).to(dtype)
        linears = tuple(find_targets(model, ["llm"])["llm"])
        for name in linears if packed else ():
            model.get_submodule(name).to(torch.bfloat16)
        if adapter is not None:
            apply_adapter(model, adapter)
        return cls(model, linears, count_activations(model, *size))

    def parts(
        self,
        checkpointing: bool,
        *,
        ranks: int = 1,
        weights: float | None = None,
        moments: float = 8.0,
    ) -> dict[str, float]:
        """Bytes a rank; moments: bytes of optimizer state a trained parameter."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        whole = sum(map(_bytes, self.model.parameters())) if weights is None else weights
        return {
            "weights": whole / ranks,
            "gradients": sum(map(_bytes, trained)) / ranks,
            "optimizer": moments * sum(p.numel() for p in trained) / ranks,
            "gathered": 0.0 if ranks == 1 else self._gathered(),
            "activations": float(self.activations.peak(checkpointing)),
        }

    def _gathered(self) -> float:
        """What FSDP holds whole: the parts outside of blocks and two blocks, in bfloat16.

        Their gradients stand there in bfloat16 and, to be summed, in float32.
        """
        blocks = [list(block.parameters()) for _, block in find_blocks(self.model)]
        inside = {id(p) for block in blocks for p in block}
        root = [p for p in self.model.parameters() if id(p) not in inside]
        largest = max(blocks, key=lambda block: sum(p.numel() for p in block))
        return sum(
            times * 2 * p.numel() + (6 * p.numel() if p.requires_grad else 0)
            for unit, times in ((root, 1), (largest, 2))
            for p in unit
        )


def _packed_weights(layout: _Layout, kind: str) -> float:
    """Bytes of all weights when the language model's linear layers are quantised."""
    total = float(sum(map(_bytes, layout.model.parameters())))
    for name in layout.linears:
        weight = layout.model.get_submodule(f"{name}.base_layer").weight
        assert isinstance(weight, Tensor)
        count = weight.numel()
        nf4 = count / 2 + count / _NF4_BLOCK * (1 + 4 / _NF4_NESTED)
        total += (nf4 if kind == "nf4" else count + 4 * weight.shape[0]) - _bytes(weight)
    return total


@torch.enable_grad()
def count_activations(model: PrismaticVLA, batch_size: int, prompt_tokens: int) -> Activations:
    """Run `model`, which may lie on the meta device, forward and count what autograd keeps.

    Its parameters are replaced by ones without data. Under autocast to bfloat16.
    """
    with FakeTensorMode():
        _give_shapes(model)
        inputs = _make_inputs(model, batch_size, prompt_tokens)
        with _counting(model) as counter, torch.autocast("cpu", torch.bfloat16):
            model(**inputs)
    return Activations(counter.outside, tuple(counter.inner.values()), counter.inputs)


class _Counter:
    """Bytes of saved tensors by the block in which each storage was first kept."""

    def __init__(self, model: nn.Module) -> None:
        self.block: str | None = None
        self.outside = 0
        self.inputs = 0
        self.inner: dict[str, int] = {}
        self._kept: list[Tensor] = list(model.parameters())  # alive, so that no id comes twice
        self._known = {_storage(p) for p in self._kept}

    def enter(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.inputs += int(inputs[0].untyped_storage().nbytes())
        self.block, self.inner[name] = name, 0

    def leave(self, *_: object) -> None:
        self.block = None

    def pack(self, value: Tensor) -> Tensor:
        size = self._add(value)
        if self.block is None:
            self.outside += size
        else:
            self.inner[self.block] += size
        return value

    def _add(self, value: Tensor) -> int:
        if _storage(value) in self._known:
            return 0
        self._known.add(_storage(value))
        self._kept.append(value)
        return int(value.untyped_storage().nbytes())


@contextmanager
def _counting(model: PrismaticVLA) -> Iterator[_Counter]:
    counter = _Counter(model)
    hooks = []
    for name, block in find_blocks(model):
        hooks.append(block.register_forward_pre_hook(functools.partial(counter.enter, name)))
        hooks.append(block.register_forward_hook(counter.leave))
    try:
        with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda value: value):
            yield counter
    finally:
        for hook in hooks:
            hook.remove()


def _give_shapes(model: PrismaticVLA) -> None:
    """Replace parameters and buffers on the meta device by data-less ones on the CPU."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and value.is_meta:
                empty = torch.empty(value.shape, dtype=value.dtype)
                module._parameters[name] = nn.Parameter(empty, value.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _make_inputs(model: PrismaticVLA, batch: int, prompt: int) -> dict[str, Tensor]:
    config = model.config
    size, towers = config.vision[0].image_size, len(config.vision)
    ones = torch.ones(batch, prompt, dtype=torch.int64)
    inputs = {
        "pixel_values": torch.zeros(batch, 3 * towers, size, size),
        "input_ids": ones,
        "attention_mask": ones,
    }
    if config.state is not None:
        inputs["state"] = torch.zeros(batch, config.state.dim)
    if config.head.kind == "tokens":
        inputs["action_tokens"] = torch.ones(batch, config.head.action_dim, dtype=torch.int64)
    return inputs


def name_dtype(dtype: torch.dtype) -> str:
    """A dtype as a word: bfloat16."""
    return str(dtype).removeprefix("torch.")


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)
