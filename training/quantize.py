"""Frozen linear layers in 4 or 8 bits (bitsandbytes), and back to dense weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.extras import install_hint

OUTLIER_THRESHOLD = 6.0  # LLM.int8's: activation columns beyond it are multiplied in 16 bits
_DENSE_DTYPE = "dense_dtype"


def quantize_linears(
    model: nn.Module,
    names: Sequence[str],
    kind: str,
    *,
    compute_dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> int:
    """Replace the linear layers called `names` by frozen quantised ones; returns how many.

    kind: "nf4" (QLoRA: 4-bit NormalFloat in blocks of 64, their scales in 8 bits) or "int8"
    (LLM.int8: a scale a row). compute_dtype: in which 4-bit weights are multiplied. device: where
    each layer goes; None leaves it. All are quantised on the CPU, so that the same weights give the
    same bits on every machine and a run can be rebuilt without its GPU. Refuses
    (ConfigurationError) if nothing would be quantised.
    """
    if not names:
        raise ConfigurationError(
            "Nothing would be quantised",
            got=f"no linear layer for {kind}",
            expected="at least one, so that the asked memory is saved",
            fix="--set adapter.quantize=none",
        )
    bnb = import_bitsandbytes()
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        dense = cast(nn.Linear, getattr(parent, child))
        target = device if device is not None else dense.weight.device
        build = _build_nf4 if kind == "nf4" else _build_int8
        layer = build(bnb, dense, compute_dtype).to("cpu").to(target)
        setattr(layer, _DENSE_DTYPE, dense.weight.dtype)
        setattr(parent, child, layer.requires_grad_(False))
    return len(names)


def is_quantized(module: nn.Module) -> bool:
    """Whether `module` is a layer that `quantize_linears` put there."""
    return hasattr(module, _DENSE_DTYPE)


def count_packed(module: nn.Module) -> int:
    """By how many parameters a layer stands for more than it stores numbers (two a byte)."""
    if not is_quantized(module):
        return 0
    layer = cast(nn.Linear, module)
    return layer.in_features * layer.out_features - layer.weight.numel()


@torch.no_grad()
def dense_weight(module: nn.Module) -> Tensor:
    """The (out, in) weight of a linear layer, in the dtype that it had before quantisation.

    For a quantised layer these are the values that its forward multiplies with, not the original.
    """
    layer = cast(Any, module)
    if not is_quantized(module):
        return cast(Tensor, layer.weight)
    bnb = import_bitsandbytes()
    if isinstance(module, bnb.nn.Linear4bit):
        dense = bnb.functional.dequantize_4bit(layer.weight.data, layer.quant_state)
    else:
        scale = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
        dense = bnb.functional.int8_vectorwise_dequant(layer.weight.data, scale)
    return cast(Tensor, dense.to(layer.dense_dtype))


def import_bitsandbytes() -> Any:
    """The library, or a ConfigurationError with the command that installs it."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigurationError(
            "Quantised weights and 8-bit optimizers need bitsandbytes",
            got=str(error),
            expected="an importable bitsandbytes",
            fix=install_hint("bitsandbytes") or "install bitsandbytes",
        ) from error
    # It warns in every forward that LLM.int8 casts its inputs, which is its definition.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return bitsandbytes


def _build_nf4(bnb: Any, dense: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    shape, has_bias = (dense.in_features, dense.out_features), dense.bias is not None
    layer = bnb.nn.Linear4bit(
        *shape, bias=has_bias, compute_dtype=compute_dtype, quant_type="nf4", device="meta"
    )
    layer.weight = bnb.nn.Params4bit(
        dense.weight.data.cpu(), compress_statistics=True, quant_type="nf4", module=layer
    )
    layer.bias = dense.bias
    # On CPUs with AVX512-BF16 the first evaluation would repack the weight for a kernel that has no
    # backward, and training could not go on.
    layer.support_avx512bf16_for_cpu = False
    return cast(nn.Module, layer)


def _build_int8(bnb: Any, dense: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    layer = bnb.nn.Linear8bitLt(
        dense.in_features,
        dense.out_features,
        bias=dense.bias is not None,
        has_fp16_weights=False,
        threshold=OUTLIER_THRESHOLD,
        device="meta",
    )
    layer.weight = bnb.nn.Int8Params(dense.weight.data.cpu(), requires_grad=False)
    layer.bias = dense.bias
    return cast(nn.Module, layer)
