"""LoRA on every linear layer of vision, projector and LLM, on dense or quantised weights (peft)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from training.model import PrismaticVLA, group_of
from training.quantize import count_packed, is_quantized, quantize_linears
from vla_align_ros.errors import ConfigurationError, TrainingError
from vla_align_ros.extras import install_hint

ADAPTER = "default"  # peft's name of the one adapter; not part of names on disk
PARTS = ("vision", "projector", "llm")  # modules of the network and groups of parameters alike


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Which weights train, and how the others are stored; the defaults train all of them.

    kind "lora": rank-`rank` matrices beside every linear layer of the vision tower, the projector
    and the LLM (not its vocabulary output), scaled by alpha / rank. Rank 32, alpha 16, dropout 0
    and "gaussian" (A normal with deviation 1 / rank, B zero) are the paper's and OpenVLA's;
    "kaiming" is peft's own default. What these models do not bring along (action head and queries,
    state encoder, grounding, positions of visual tokens) trains in full, and so do the parts named
    in `full` ("vision", "projector", "llm"): a projector that is new, for instance.
    quantize: the frozen LLM in 4-bit NF4 with double quantisation (QLoRA) or in int8 (LLM.int8);
    the vision tower only with `quantize_vision`.
    """

    kind: Literal["none", "lora"] = "none"
    rank: int = 32
    alpha: int = 16
    dropout: float = 0.0
    init: Literal["gaussian", "kaiming"] = "gaussian"
    full: tuple[str, ...] = ()
    quantize: Literal["none", "nf4", "int8"] = "none"
    quantize_vision: bool = False

    def __post_init__(self) -> None:
        """Check every value, and that frozen weights have an adapter that trains."""
        quantized = self.quantize != "none"
        _check("kind", self.kind, self.kind in ("none", "lora"), '"none" or "lora"')
        _check("rank", self.rank, self.rank >= 1, "1 or more")
        _check("alpha", self.alpha, self.alpha > 0, "more than 0")
        _check("dropout", self.dropout, 0.0 <= self.dropout < 1.0, "0 or more, below 1")
        _check("init", self.init, self.init in ("gaussian", "kaiming"), '"gaussian" or "kaiming"')
        _check(
            "full", self.full, set(self.full) < set(PARTS), f"some, not all, of {', '.join(PARTS)}"
        )
        _check(
            "quantize",
            self.quantize,
            self.quantize in ("none", "nf4", "int8"),
            '"none", "nf4" or "int8"',
        )
        _check(
            "quantize",
            f"{self.quantize} with adapter.kind {self.kind} and adapter.full {self.full}",
            not quantized or (self.kind == "lora" and "llm" not in self.full),
            "adapter.kind lora, as quantised weights cannot train",
        )
        _check(
            "quantize_vision",
            f"{self.quantize_vision} with quantize {self.quantize} and full {self.full}",
            not self.quantize_vision or (quantized and "vision" not in self.full),
            "adapter.quantize nf4 or int8, and a vision tower that does not train in full",
        )


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What `apply_adapter` did.

    adapted: names of the layers with an adapter. quantized: names of the quantised layers.
    trained: names of all parameters that train. Parameters are counted as before quantisation.
    """

    adapted: tuple[str, ...]
    quantized: tuple[str, ...]
    trained: tuple[str, ...]
    trained_parameters: int
    frozen_parameters: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready counts: layers by group, parameters, and what trains in full."""
        full = sorted({name.split(".")[0] for name in self.trained if ".lora_" not in name})
        return {
            "adapted_layers": _count_groups(self.adapted),
            "quantized_layers": _count_groups(self.quantized),
            "trained_in_full": full,
            "trained_parameters": self.trained_parameters,
            "frozen_parameters": self.frozen_parameters,
        }


def apply_adapter(
    model: PrismaticVLA,
    config: AdapterConfig,
    *,
    compute_dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
) -> AdapterReport:
    """Quantise and adapt `model` in place, and freeze what then does not train.

    Matrices that train are kept in float32; A is drawn from torch's global random state.
    compute_dtype: of products with quantised weights (the run's precision). device: where
    quantised layers go, one by one, so that the dense model never has to fit there; None leaves
    them. Call it once, on a model that has its weights, before building the optimizer. Raises
    ConfigurationError if peft or bitsandbytes is missing or nothing fits, TrainingError if the
    model has an adapter already.
    """
    if config.kind == "none":
        return describe_adapter(model)
    if has_adapter(model):
        raise TrainingError(
            "The model has an adapter already",
            got="a second apply_adapter",
            expected="one adapter a model",
            fix="merge_adapter first",
        )
    peft = _import_peft()
    targets = find_targets(model, [part for part in PARTS if part not in config.full])
    if config.quantize != "none":
        chosen = targets["llm"] + (targets["vision"] if config.quantize_vision else [])
        quantize_linears(model, chosen, config.quantize, compute_dtype=compute_dtype, device=device)
    names = [name for members in targets.values() for name in members]
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        init_lora_weights="gaussian" if config.init == "gaussian" else True,
        target_modules=_name_pattern(names, [name for name, _ in model.named_modules()]),
    )
    _tell_peft(model, config.quantize)
    peft.inject_adapter_in_model(lora, model, adapter_name=ADAPTER)
    adapted = {name for name, _ in adapted_layers(model)}
    if adapted != set(names):
        raise TrainingError(
            "peft adapted other layers than asked",
            got=sorted(adapted ^ set(names))[:4],
            expected=f"exactly {len(names)} linear layers",
            fix="install a version of peft in the range of the extra [lora]",
        )
    _freeze_base(model, list(targets))
    return describe_adapter(model)


def describe_adapter(model: PrismaticVLA) -> AdapterReport:
    """Report on `model` as it is: layers with adapters, quantised layers, parameters."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    count = sum(parameter.numel() for parameter in trained.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    total += sum(count_packed(module) for module in model.modules())
    return AdapterReport(
        adapted=tuple(name for name, _ in adapted_layers(model)),
        quantized=tuple(
            name.removesuffix(".base_layer")
            for name, module in model.named_modules()
            if is_quantized(module)
        ),
        trained=tuple(trained),
        trained_parameters=count,
        frozen_parameters=total - count,
    )


def find_targets(model: PrismaticVLA, parts: Sequence[str] = PARTS) -> dict[str, list[str]]:
    """Names of the linear layers of `parts`, by part; the LLM's vocabulary output is left out."""
    output = model.llm.get_output_embeddings()
    targets: dict[str, list[str]] = {part: [] for part in parts}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not output and group_of(name) in targets:
            targets[group_of(name)].append(name)
    if empty := [group for group, names in targets.items() if not names]:
        raise ConfigurationError(
            "There is nothing to adapt",
            got=f"no linear layer in {', '.join(empty)}",
            expected="linear layers in " + ", ".join(parts),
            fix="name these parts in adapter.full, or set adapter.kind=none",
        )
    return targets


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer of `model` has an adapter."""
    return next(adapted_layers(model), None) is not None


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of each layer with an adapter (peft's wrapper, not the layer within)."""
    for name, module in model.named_modules():
        if ADAPTER in getattr(module, "lora_A", ()):
            yield name, module


def lora_config(model: nn.Module) -> Any:
    """The peft LoraConfig of `model`'s adapter; its target_modules is a pattern of our names."""
    return model.peft_config[ADAPTER]  # type: ignore[index]


def _freeze_base(model: PrismaticVLA, adapted: Sequence[str]) -> None:
    """Freeze the adapted parts but for their adapters; what trains is made float32."""
    for name, parameter in model.named_parameters():
        trains = ".lora_" in name or name.split(".")[0] not in adapted
        if trains and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trains)


def _tell_peft(model: PrismaticVLA, quantize: str) -> None:
    """Say what the linear layers are, by the attributes in which peft looks for it."""
    for kind, attribute in (("nf4", "is_loaded_in_4bit"), ("int8", "is_loaded_in_8bit")):
        if quantize == kind:
            setattr(model, attribute, True)


def _name_pattern(names: list[str], every: list[str]) -> str:
    """A regular expression that matches `names` and none of the others in `every`."""
    short = {re.sub(r"(?<=\.)\d+(?=\\)", lambda _: r"\d+", re.escape(name)) for name in names}
    pattern = "|".join(sorted(short))
    if {name for name in every if re.fullmatch(pattern, name)} == set(names):
        return pattern
    return "|".join(re.escape(name) for name in names)


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigurationError(
            f"Wrong value for adapter.{name}",
            got=value,
            expected=expected,
            fix=f"correct --set adapter.{name}",
        )


def _count_groups(names: tuple[str, ...]) -> dict[str, int]:
    groups = [group_of(name) for name in names]
    return {group: groups.count(group) for group in dict.fromkeys(groups)}


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError(
            "LoRA needs peft",
            got=str(error),
            expected="an importable peft",
            fix=install_hint("peft") or "install peft",
        ) from error
    return peft
