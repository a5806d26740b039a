"""Builder options by trtexec's names, so that what is known of one tool serves in the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_align_ros.errors import ConfigurationError
from vla_align_ros.inference.tensorrt.library import Library

POOLS = {
    "workspace": "WORKSPACE",
    "dlaSRAM": "DLA_MANAGED_SRAM",
    "dlaLocalDRAM": "DLA_LOCAL_DRAM",
    "dlaGlobalDRAM": "DLA_GLOBAL_DRAM",
    "tacticDRAM": "TACTIC_DRAM",
    "tacticSharedMem": "TACTIC_SHARED_MEMORY",
}
_UNITS = {"": 20, "B": 0, "K": 10, "M": 20, "G": 30}  # trtexec, too, takes a bare number as MiB
_GONE = ("fp16", "bf16", "int8", "fp8", "int4", "best", "calib", "precisionConstraints")
SETTINGS = 2
"""Version of `set_defaults`, in the names of what is cached; raise it when they change."""
_LEVELS = {"0": "NONE", "1": "FAST", "2": "MODERATE", "3": "FULL"}

Apply = Callable[[Any, Any, str], None]
"""Takes the library's module, its IBuilderConfig and the value as text; ValueError if it is bad."""


@dataclass(frozen=True, slots=True)
class Option:
    """A builder option: how it is set, the form of its value, and the attribute that it needs."""

    form: str
    apply: Apply
    needs: str = ""


def parse_options(words: Iterable[str]) -> dict[str, str]:
    """Read ["memPoolSize=workspace:4096M", "noTF32"] into {name: value}; a bare name has "".

    Raises:
        ConfigurationError: for an unknown name, a precision flag, or a name that is given twice.
    """
    options: dict[str, str] = {}
    for word in words:
        name, _, value = word.strip().removeprefix("--").partition("=")
        if name in _GONE:
            raise ConfigurationError(
                "precision is no builder option",
                got=word,
                expected="--precision: the types in the graph decide",
                fix=f"drop it, and give --precision {name if name in _GONE[:5] else 'auto'}",
            )
        if name not in OPTIONS:
            raise ConfigurationError(
                "TensorRT option is unknown",
                got=repr(word),
                expected="one of " + ", ".join(f"{n}{o.form}" for n, o in sorted(OPTIONS.items())),
            )
        if name in options:
            raise ConfigurationError("TensorRT option is given twice", got=word)
        options[name] = value
    return options


def set_defaults(library: Library, config: Any) -> None:
    """Set on an IBuilderConfig what holds for every build, unless an option says otherwise."""
    # TensorRT lets float32 products be rounded to TF32 by default, strongly typed or not.
    config.clear_flag(library.module.BuilderFlag.TF32)


def apply_options(library: Library, config: Any, options: Mapping[str, str]) -> None:
    """Set options on an IBuilderConfig; ConfigurationError if the library lacks or refuses one."""
    for name, value in options.items():
        option = OPTIONS[name]
        if option.needs and not hasattr(config, option.needs):
            raise ConfigurationError(
                f"{library.title} has no option {name}", got=name, fix="leave it out"
            )
        try:
            option.apply(library.module, config, value)
        except (ValueError, TypeError, AttributeError, OverflowError) as cause:
            why = cause if type(cause) is ValueError else "no such value"
            raise ConfigurationError(
                f"TensorRT option {name} cannot be set",
                got=f"{value!r} ({why})",
                expected=f"{name}{option.form}",
            ) from cause


def read_bytes(text: str) -> int:
    """Return "4096M" or "4G" in bytes; a bare number is MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([BKMG]?)(?:i?B)?", text)
    if match is None:
        raise ValueError("no size")
    return int(float(match[1]) * (1 << _UNITS[match[2]]))


def _set_pools(trt: Any, config: Any, value: str) -> None:
    for part in value.split(","):
        name, _, size = part.partition(":")
        if name not in POOLS:
            raise ValueError(f"no pool {name!r} among {', '.join(POOLS)}")
        pool, wanted = getattr(trt.MemoryPoolType, POOLS[name]), read_bytes(size)
        config.set_memory_pool_limit(pool, wanted)
        if config.get_memory_pool_limit(pool) != wanted:  # a refusal is told the logger alone
            raise ValueError(f"{name} refuses {size}")


def _set_number(attribute: str, lowest: int = 0) -> Apply:
    def apply(trt: Any, config: Any, value: str) -> None:
        number = int(value)
        if number < lowest:
            raise ValueError(f"below {lowest}")
        setattr(config, attribute, number)
        if getattr(config, attribute) != number:
            raise ValueError("refused")

    return apply


def _set_size(attribute: str) -> Apply:
    return lambda trt, config, value: setattr(config, attribute, read_bytes(value))


def _set_flag(flag: str, on: bool = True) -> Apply:
    def apply(trt: Any, config: Any, value: str) -> None:
        if value:
            raise ValueError("takes no value")
        (config.set_flag if on else config.clear_flag)(getattr(trt.BuilderFlag, flag))

    return apply


def _set_sparsity(trt: Any, config: Any, value: str) -> None:
    if value not in ("enable", "disable"):
        raise ValueError("enable or disable")
    flag = trt.BuilderFlag.SPARSE_WEIGHTS
    (config.set_flag if value == "enable" else config.clear_flag)(flag)


def _set_tiling(trt: Any, config: Any, value: str) -> None:
    name = _LEVELS.get(value, value.upper())
    config.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, name)


def _set_verbosity(trt: Any, config: Any, value: str) -> None:
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, value.upper())


def _set_names(what: str, enum: str, setter: Callable[[Any, Any, str, bool], None]) -> Apply:
    """Make an option of "+NAME,-NAME" words over an enumeration of the library."""

    def apply(trt: Any, config: Any, value: str) -> None:
        for word in value.split(","):
            if word[:1] not in "+-" or word[1:] not in getattr(trt, enum).__members__:
                known = ", ".join(getattr(trt, enum).__members__)
                raise ValueError(f"no {what} {word!r}; + or - before one of {known}")
            setter(trt, config, word[1:], word[0] == "+")

    return apply


def _switch_tactics(trt: Any, config: Any, name: str, on: bool) -> None:
    bit = 1 << int(getattr(trt.TacticSource, name))
    sources = config.get_tactic_sources()
    if not config.set_tactic_sources(sources | bit if on else sources & ~bit):
        raise ValueError("refused")


def _switch_preview(trt: Any, config: Any, name: str, on: bool) -> None:
    config.set_preview_feature(getattr(trt.PreviewFeature, name), on)


OPTIONS: dict[str, Option] = {
    "avgTiming": Option("=N", _set_number("avg_timing_iterations", 1)),
    "builderOptimizationLevel": Option("=0..5", _set_number("builder_optimization_level")),
    "errorOnTimingCacheMiss": Option("", _set_flag("ERROR_ON_TIMING_CACHE_MISS")),
    "l2LimitForTiling": Option("=SIZE", _set_size("l2_limit_for_tiling"), "l2_limit_for_tiling"),
    "maxAuxStreams": Option("=N", _set_number("max_aux_streams")),
    "maxTactics": Option("=N", _set_number("max_num_tactics"), "max_num_tactics"),
    "memPoolSize": Option(f"={'|'.join(POOLS)}:SIZE[K|M|G],...", _set_pools),
    "noCompilationCache": Option("", _set_flag("DISABLE_COMPILATION_CACHE")),
    "noTF32": Option("", _set_flag("TF32", on=False)),
    "previewFeatures": Option(
        "=+NAME,-NAME", _set_names("preview feature", "PreviewFeature", _switch_preview)
    ),
    "profilingVerbosity": Option("=layer_names_only|detailed|none", _set_verbosity),
    "sparsity": Option("=enable|disable", _set_sparsity),
    "tacticSources": Option(
        "=+NAME,-NAME", _set_names("tactic source", "TacticSource", _switch_tactics)
    ),
    "tilingOptimizationLevel": Option(
        "=none|fast|moderate|full", _set_tiling, "tiling_optimization_level"
    ),
}
"""What may be passed through, by trtexec's name."""
